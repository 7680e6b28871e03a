"""Measure a model's layers on data, and suggest which could go. The model is not changed.

Without a number of layers to be left their similarity is measured, and clusters are found at a threshold; with one, a
criterion scores every layer. With --threshold auto it does, too, and the plan for every number is shown.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .flags import COLUMNS, add_config_flags, add_data_flags, config_words, read_config
from .output import add_format, align, command_line, say, show
from .parser import UsageError, same_trust, same_words
from .placement import add_placement_flags, check_alone_in_memory, check_streams, is_placed, read_placement
from .processes import check_one_process, rank, sharing
from .profile import Profile, add_flag

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from hf_mpruner.config import PruningConfig
    from hf_mpruner.halves import HalvesReport
    from hf_mpruner.placement import Placement
    from hf_mpruner.runtime import Runtime
    from hf_mpruner.tasks import Task

    from .scores import Scored


EXAMPLES = """examples:
  hf-mpruner analyze MODEL --dataset dair-ai/emotion --output_dir analysis
  hf-mpruner analyze MODEL --dataset rows.csv --split train --text_column body --threshold 0.95
  hf-mpruner analyze MODEL --dataset dair-ai/emotion --criterion block_influence --target_num_layers 2
  hf-mpruner analyze MODEL --dataset dair-ai/emotion --halves"""

USAGE = "hf-mpruner analyze MODEL --dataset DATASET [--output_dir DIR] ..."
# What a user would try next to the threshold that was asked for.
THRESHOLDS = (0.99, 0.98, 0.95, 0.9)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `hf-mpruner analyze`."""
    add_data_flags(parser)
    parser.add_argument("--split", default="validation", help="part of the data to measure on (default: validation)")
    parser.add_argument("--output_dir", help="write matrices, heat maps and the plan here (default: only print)")
    parser.add_argument(
        "--halves", action="store_true", help="also measure the attention and the feed-forward half of each block"
    )
    add_flag(parser)
    add_format(parser)
    add_placement_flags(parser)
    add_config_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write if a folder was given; several processes share the data."""
    config = read_config(args)
    folder = None if args.output_dir is None else _check_folder(args.output_dir)
    if args.halves or not config.plans_by_threshold:
        what = "--halves" if args.halves else f"--criterion {config.criterion}"
        check_one_process(f"hf-mpruner analyze {what}")
    check_streams(args, config)
    placement = read_placement(args)
    check_alone_in_memory(placement)
    with sharing("analyzing") as runtime:
        return _analyze(args, config, folder, placement, runtime)


def _analyze(
    args: argparse.Namespace, config: PruningConfig, folder: Path | None, placement: Placement, runtime: Runtime
) -> int:
    profile = Profile(args.profile)

    from hf_mpruner.placement import unquantised

    from . import halves, scores, settled
    from .loading import load_split, read_settings, take
    from .measure import Rows, chosen_stacks, measure, measure_streaming, suggest
    from .models import load_config, load_for_analysis, load_processor
    from .processes import main_process_first

    if not config.plans_by_threshold:
        scores.check_alone(config, "hf-mpruner prune can.")

    model_config = load_config(args.model, args.revision, args.trust_remote_code)
    task = choose_reader(args, model_config)
    with main_process_first():
        data = load_split(args, "split")
    columns, purpose = scores.choose_columns_for(config, args, data, task)
    data = take(args, data, columns, task)
    profile.mark("reading data")
    options = task.processor_options(model_config)
    processor = load_processor(args.model, task.kind, args.revision, args.trust_remote_code, **options)
    named = task if args.task else None
    model = load_for_analysis(args.model, model_config, args.revision, args.trust_remote_code, named, placement)
    stacks = chosen_stacks(model, config)
    profile.mark("loading the model")
    rows = Rows(model, data, processor, columns, task, read_settings(args, config.seed))
    parts = None
    if args.halves:
        parts = halves.measure(rows, config, stacks, folder)
        profile.mark("measuring halves")
    profile.measure(rows, config, stacks)
    if not config.plans_by_threshold:
        if config.has_target:  # all that are to go, in however many rounds
            config = dataclasses.replace(config, layers_per_round=None)
        scored = scores.score(args.model, rows, config, stacks, purpose)
        profile.mark("measuring")
        return _show_scores(args, config, scored, unquantised(model), folder, parts, profile)
    streams = args.stream_layers
    matrices = measure_streaming(rows, config, stacks) if streams else measure(rows, config, stacks, runtime)
    profile.mark("measuring")
    plan = suggest(args.model, model, matrices, stacks, config)
    choices = _choices(unquantised(model), matrices, stacks, config)
    profile.mark("clusters and plans")
    drawn = folder is not None and rank() == 0 and _write(folder, matrices, plan)
    profile.write(folder)
    show(
        args,
        table=_table(matrices, choices, config.fixed_threshold) + halves.to_table(parts) + profile.to_table(),
        values={
            "model": args.model,
            "similarity": {path: matrix.to_dict() for path, matrix in matrices.items()},
            "adjacent": {path: list(matrix.adjacent) for path, matrix in matrices.items()},
            "intervals": settled.intervals(matrices),
            "thresholds": choices,
            "plan": plan.to_dict(),
            **halves.to_values(parts),
            **profile.to_values(),
        },
        quiet=str(plan),
    )
    _say_next(args, plan.num_removed, config.fixed_threshold, drawn)
    return 0


def _show_scores(
    args: argparse.Namespace,
    config: PruningConfig,
    scored: Scored,
    model: Any,
    folder: Path | None,
    parts: HalvesReport | None,
    profile: Profile,
) -> int:
    from . import candidates, halves, scores

    drawn = folder is not None and scores.write(folder, scored)
    profile.write(folder)
    found = scored.candidates
    listed = "" if found is None else "\n\n" + candidates.to_table(found, scored.criterion, config)
    show(
        args,
        table=scores.to_table(scored, model) + listed + halves.to_table(parts) + profile.to_table(),
        values={
            "model": args.model,
            **{key: scored.plan.evidence[key] for key in ("criterion", "title", "scores", "cost", "num_removed")},
            "plan": scored.plan.to_dict(),
            "preview": dataclasses.asdict(scored.plan.preview(model)),
            **({} if found is None else {"candidates": [one.to_dict() for one in found]}),
            **halves.to_values(parts),
            **profile.to_values(),
        },
        quiet=str(scored.plan),
    )
    if folder is not None:
        say(args, f"Wrote scores{', pictures' if drawn else ''} and the plan to {args.output_dir}.")
    _say_command(args, config_words(args))
    return 0


def _prune_words(args: argparse.Namespace) -> list[str]:
    """The model and the data as they were named, for a command to try next."""
    words = ["prune", args.model, *same_words(args, ["revision", "dataset", "dataset_config", *COLUMNS, "task"])]
    return [*words, *same_words(args, ["max_length", "max_target_length", "source_prefix"]), *same_trust(args)]


def choose_reader(args: argparse.Namespace, config: PreTrainedConfig) -> Task:
    """The task whose rows the model reads: the one that was named, its head's, or one of the same kind of input."""
    from hf_mpruner.heads import find_head
    from hf_mpruner.tasks import TASKS, find_reader

    from .loading import choose_task
    from .models import main_input

    head = find_head(config)
    if args.task or (head is not None and head.task in TASKS):
        return choose_task(args, config)
    return find_reader(main_input(config, args.trust_remote_code))


def _check_folder(output_dir: str) -> Path:
    from hf_mpruner.storage import find_model_files

    folder = Path(output_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {output_dir} is a file. Pass a folder.")
    found = find_model_files(folder)
    if found:
        raise UsageError(
            f"--output_dir {output_dir} holds a model ('{found[0]}'): a plan beside it would not be its own. Pass "
            f"another folder, e.g. --output_dir {folder.with_name(folder.resolve().name + '-analysis')}."
        )
    return folder


def _choices(model: Any, matrices: Any, stacks: Any, config: Any) -> list[dict[str, Any]]:
    """For each threshold the clusters, the layers that stay, and the parameters that are left or why it is refused."""
    from hf_mpruner.errors import UnsupportedArchitectureError
    from hf_mpruner.plan import PruningPlan

    from .measure import cluster

    choices = []
    for threshold in sorted({*THRESHOLDS, config.fixed_threshold}, reverse=True):
        clusters = cluster(matrices, config, threshold)
        plan = PruningPlan.from_clusters(clusters, stacks, config.granularity, config.protect)
        choice: dict[str, Any] = {
            "threshold": threshold,
            "clusters": {path: [list(found.layers) for found in runs] for path, runs in clusters.items()},
            "kept": {path: list(layers) for path, layers in plan.kept.items()},
            "parameters": None,
            "refused": None,
        }
        try:
            choice["parameters"] = plan.preview(model).parameters_after
        except UnsupportedArchitectureError as error:  # one choice that cannot be cut must not hide the others
            choice["refused"] = " ".join(str(error).split())
        choices.append(choice)
    return choices


def _write(folder: Path, matrices: Any, plan: Any) -> bool:
    """Write everything; false if no heat map could be drawn."""
    from hf_mpruner.report.plots import write_heat_maps

    folder.mkdir(parents=True, exist_ok=True)
    for path, matrix in matrices.items():
        matrix.save(folder / f"similarity_{path}.json")
    plan.save_pretrained(folder)
    return bool(write_heat_maps(folder, matrices, "similarity"))


def _table(matrices: Any, choices: list[dict[str, Any]], asked: float) -> str:
    from . import settled

    parts = []
    for path, matrix in matrices.items():
        layers = matrix.layers
        parts.append(f"{path}: CKA of neighbouring layers, {matrix.num_samples} examples\n")
        parts.append(settled.neighbours(matrix) + "\n")
        rows = [
            [
                f"{choice['threshold']:g}{' *' if choice['threshold'] == asked else ''}",
                " ".join(_run(run) for run in choice["clusters"][path]),
                f"{len(choice['kept'][path])} of {len(layers)}",
                "refused" if choice["refused"] else f"{choice['parameters']:,}",
            ]
            for choice in choices
        ]
        parts.append(align(["threshold", "clusters", "layers left", "parameters"], rows, right=[2, 3]) + "\n")
    refused = [f"refused at {choice['threshold']:g}: {choice['refused']}" for choice in choices if choice["refused"]]
    return "\n".join([*parts, "* the threshold of the plan", *settled.endings(matrices), *refused])


def _run(layers: list[int]) -> str:
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"


def _say_next(args: argparse.Namespace, num_removed: int, threshold: float, drawn: bool) -> None:
    if args.output_dir is not None and drawn:
        say(args, f"Wrote matrices, heat maps and the plan to {args.output_dir}.")
    elif args.output_dir is not None:
        say(
            args,
            f"Wrote matrices and the plan to {args.output_dir}, but no heat maps: for those, pip install "
            "'hf_mpruner[plots]' and run this again.",
        )
    if not num_removed:
        say(args, f"No neighbouring layers are alike at threshold {threshold:g}: try one of the smaller ones above.")
    _say_command(args, [*config_words(args, besides=("threshold",)), "--threshold", f"{threshold:g}"])


def _say_command(args: argparse.Namespace, config: list[str]) -> None:
    """What to type next: prune as it was measured; of a model that was not loaded whole, cut the one on the disk."""
    words = [*_prune_words(args), *config]
    if is_placed(args) and args.output_dir is not None:
        words = ["apply", args.model, *same_words(args, ["revision"]), *same_trust(args), "--plan", args.output_dir]
    if not is_placed(args) or args.output_dir is not None:
        say(args, f"Next: {command_line(*words, '--output_dir', 'smaller')}")
