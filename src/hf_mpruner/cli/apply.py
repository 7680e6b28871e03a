"""Cut a model as a plan says, and save it. Nothing is trained and nothing is measured.

Weights go from file to file, without a model in memory. What that cannot do is refused; --in_memory can.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from .output import add_format, command_line, say, show
from .parser import UsageError, add_model_flags, same_trust

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from hf_mpruner.plan import PruningPlan
    from hf_mpruner.report import PruningReport

EXAMPLES = """examples:
  hf-mpruner apply google-bert/bert-base-uncased --plan analysis --output_dir smaller
  hf-mpruner apply MODEL --plan org/pruned-model --plan_revision v1 --output_dir smaller
  hf-mpruner apply MODEL --plan plan.json --output_dir smaller --in_memory
  hf-mpruner apply MODEL --plan plan.json --dry_run"""
USAGE = "hf-mpruner apply MODEL --plan PLAN --output_dir DIR ..."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `hf-mpruner apply`."""
    add_model_flags(parser)
    parser.add_argument(
        "--plan",
        required=True,
        help="file, folder or Hub id with a pruning_plan.json, of analyze or of a pruned model",
    )
    parser.add_argument("--plan_revision", help="branch, tag or commit of a plan from the Hub")
    parser.add_argument("--output_dir", help="new folder for the smaller model")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that lies there")
    parser.add_argument("--dry_run", action="store_true", help="show what would go, write nothing")
    parser.add_argument(
        "--max_shard_size",
        default="50GB",
        metavar="SIZE",
        help="weights go into files of at most this size, e.g. 5GB (default: 50GB, as save_pretrained)",
    )
    parser.add_argument(
        "--in_memory",
        action="store_true",
        help="load the whole model, cut it and save it: for merged layers, quantized weights, code of the model's own",
    )
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Check the folder and the plan before the weights are read; then cut and write."""
    if args.output_dir is None and not args.dry_run:
        raise UsageError("--output_dir is missing: name a new folder for the smaller model, or pass --dry_run.")

    from hf_mpruner.plan import PruningPlan
    from hf_mpruner.storage import check_output_dir

    from .models import load_config

    _check_size(args.max_shard_size)
    if args.output_dir is not None:
        try:
            check_output_dir(args.output_dir, source=args.model, overwrite=args.overwrite)
        except (ValueError, OSError) as error:
            raise UsageError(str(error)) from error
    plan = PruningPlan.from_pretrained(args.plan, revision=args.plan_revision)
    config = load_config(args.model, args.revision, args.trust_remote_code)
    if args.dry_run:
        return _preview(args, config, plan)
    report, processed = (_cut_in_memory if args.in_memory else _cut_on_disk)(args, config, plan)
    show(
        args,
        table=f"{report}\n\n{plan}",
        values={"output_dir": args.output_dir, "plan": plan.to_dict(), "report": report.to_dict()},
        quiet=args.output_dir,
    )
    kept = "Weights are merged as the plan says, the others are" if plan.merged else "The weights are"
    say(args, f"Wrote {args.output_dir}. {kept} those of '{args.model}': nothing was trained or measured since.")
    if not processed:
        say(args, f"'{args.model}' has no tokenizer or image processor beside it, so there is none here either.")
    say(args, f"Next: {command_line('inspect', args.output_dir, *same_trust(args))}")
    return 0


def _check_size(size: str) -> None:
    """Refuse what `save_pretrained` would refuse once the model is cut."""
    from huggingface_hub import split_torch_state_dict_into_shards

    try:
        split_torch_state_dict_into_shards({}, max_shard_size=size)
    except ValueError as error:
        raise UsageError(f"--max_shard_size {size} is no size. Write e.g. 5GB or 500MB.") from error


def _preview(args: argparse.Namespace, config: PreTrainedConfig, plan: PruningPlan) -> int:
    """Apply the plan to a model without weights, and say what would go."""
    from hf_mpruner.surgery import apply_plan_

    from .models import build_empty

    empty = build_empty(config, args.trust_remote_code)
    preview = plan.preview(empty)
    apply_plan_(empty, plan)
    values = {"plan": plan.to_dict(), "preview": dataclasses.asdict(preview)}
    show(args, table=str(preview), values=values, quiet=str(plan))
    say(args, "Dry run: nothing was changed and nothing written. Leave --dry_run out to cut.")
    return 0


def _cut_on_disk(args: argparse.Namespace, config: PreTrainedConfig, plan: PruningPlan) -> tuple[PruningReport, bool]:
    """Write the smaller checkpoint tensor by tensor, and what belongs to it; whether a processor went along."""
    from hf_mpruner.artifacts import write_artifacts
    from hf_mpruner.card.facts import processor_in
    from hf_mpruner.errors import CheckpointError
    from hf_mpruner.slicing import Slicing
    from hf_mpruner.slicing.room import check_apart

    from .models import own_class

    try:
        check_apart(args.model, args.output_dir)
        slicing = Slicing(args.model, revision=args.revision, model_class=own_class(config, args.trust_remote_code))
        report = cut_once_(slicing.model, plan, args, slicing.cut)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    if slicing.unknown:
        kind, number = type(slicing.model).__name__, len(slicing.unknown)
        say(args, f"Left out: {number} tensors that {kind} has no place for ({slicing.unknown[0]} ...).")
    folder = write_artifacts(
        args.output_dir,
        model=slicing.model,
        report=report,
        source=args.model,
        overwrite=args.overwrite,
        save=functools.partial(slicing.write, max_shard_size=args.max_shard_size),
    )
    return report, processor_in(folder) is not None


def _cut_in_memory(
    args: argparse.Namespace, config: PreTrainedConfig, plan: PruningPlan
) -> tuple[PruningReport, bool]:
    """Load the model, cut it, and save it, with all that belongs to it; whether a processor went along."""
    from hf_mpruner.artifacts import write_artifacts
    from hf_mpruner.surgery import apply_plan_

    from .models import build_empty

    apply_plan_(build_empty(config, args.trust_remote_code), plan)  # refused before any weight is read
    model = load_whole(args, config)
    report = cut_once_(model, plan, args, lambda plan: apply_plan_(model, plan))
    processor = find_processor(args)
    write_artifacts(
        args.output_dir,
        model=model,
        processing_class=processor,
        report=report,
        source=args.model,
        overwrite=args.overwrite,
        max_shard_size=args.max_shard_size,
    )
    return report, processor is not None


def cut_once_(
    model: PreTrainedModel, plan: PruningPlan, args: argparse.Namespace, cut: Callable[[PruningPlan], object]
) -> PruningReport:
    """Let `cut` apply a plan to a model, and report it as one round that nobody judged."""
    from pathlib import Path

    from hf_mpruner.architectures import parameters_after
    from hf_mpruner.record import Measurement, PruningRecord, Round
    from hf_mpruner.report import PruningReport

    before = Measurement(*parameters_after(model, {}))
    cut(plan)
    evidence: dict[str, Any] = plan.evidence
    round_ = Round(
        number=1,
        granularity=int(evidence.get("granularity", 1)),
        kept={path: list(layers) for path, layers in plan.kept.items()},
        clusters=evidence.get("clusters", {}),
        similarity=evidence.get("similarity", {}),
        after=Measurement(*parameters_after(model, {})),
        verdict="unjudged",
        reason="a plan was applied: nothing was trained or measured",
        **_scored(evidence),
        merged={path: stack["merged"] for path, stack in plan.to_dict()["stacks"].items() if "merged" in stack},
    )
    record = PruningRecord(
        {path: stack.depth for path, stack in plan.stacks.items()},
        model_type=model.config.model_type,
        source_model=None if Path(args.model).exists() else args.model,
        source_revision=getattr(model.config, "_commit_hash", None),
        baseline=before,
        rounds=[round_],
        stopped="a plan was applied, without training",
    )
    return PruningReport(record)


def _scored(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """What a criterion said of the layers, as a round holds it; nothing of a plan that is not by one."""
    said = {key: evidence[key] for key in ("criterion", "title", "scores", "cost") if key in evidence}
    if not isinstance(said.get("criterion"), str) or not isinstance(said.get("scores"), Mapping):
        return {}
    scores = {path: {"layers": list(range(len(one["values"]))), **one} for path, one in said["scores"].items()}
    return {"criterion": said["criterion"], "scores": {**said, "scores": scores}}


def load_whole(args: argparse.Namespace, config: PreTrainedConfig) -> PreTrainedModel:
    """The model as it was saved, on the CPU.

    Raises:
        UsageError: if the checkpoint lacks weights, which would be made up at random and then written.
    """
    from .models import own_class

    load: Any = own_class(config, args.trust_remote_code).from_pretrained
    model, info = load(args.model, revision=args.revision, dtype="auto", output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise UsageError(
            f"'{args.model}' has no weights for {len(missing)} parameters of {type(model).__name__} ({missing[0]} ...), "
            "which would be random. Pass the whole model, as save_pretrained wrote it."
        )
    return cast("PreTrainedModel", model)


def find_processor(args: argparse.Namespace) -> Any:
    """The tokenizer, image processor or processor that lies beside the model, or `None`."""
    from transformers import AutoProcessor, AutoTokenizer
    from transformers.utils.hub import cached_file

    def has(name: str) -> bool:
        return cached_file(args.model, name, revision=args.revision, **quietly) is not None

    quietly: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    if has("processor_config.json") or has("preprocessor_config.json"):
        auto: Any = AutoProcessor
    elif has("tokenizer_config.json"):
        auto = AutoTokenizer
    else:
        return None
    return auto.from_pretrained(args.model, revision=args.revision, trust_remote_code=args.trust_remote_code)
