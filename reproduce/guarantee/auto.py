"""No threshold at all beside fixed ones, and a mixture of criteria beside each alone.

    python reproduce/guarantee/auto.py --digits
    python reproduce/guarantee/auto.py --model ENCODER --data DATA --max_metric_drop 0.05
    python reproduce/guarantee/auto.py --model DECODER --data DATA --task text-generation --max_metric_drop 0.3

`threshold="auto"` with `confidence=0.95` and fixed thresholds, by the paper's protocol and by ours, prune the same model with
the same budget and the same recovery in each round. What was kept is measured on examples that no run saw. At the numbers of
layers that auto chose, the mixture of criteria is then compared with each criterion alone, with one and the same recovery.
Finished runs are kept as cells: what was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from work import Work, add_arguments, make_work

sys.path.insert(0, str(Path(__file__).parents[1]))

from papers import RESULTS, Cells, in_words, table, write_page

from hf_mpruner import Comparison, LayerPruningCallback, PruningConfig, compare_criteria
from hf_mpruner.intervals import mean_interval

AUTO, AUTO_PLAIN = "auto promised", "auto"
PRESETS = ("default", "paper")
SINGLES = ("cka", "cka_segments", "angular", "block_influence", "taylor", "loss", "magnitude", "tail", "random")
# Epochs that a Trainer is given; the training ends when no round is left.
MOST_RECOVERIES = 40
CALIBRATION_BATCH = 32


def settings_of(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Runs by name: what each asks for, besides the budget and the recovery."""
    searched = {"threshold": "auto", "criterion": args.auto_criterion}
    runs: dict[str, dict[str, Any]] = {AUTO: {**searched, "confidence": args.confidence}, AUTO_PLAIN: searched}
    for preset in PRESETS:
        for threshold in args.thresholds:
            fixed = {"threshold": threshold, "preset": preset}
            runs[f"{preset} {threshold}"] = fixed
            if args.fixed_confidence:
                runs[f"{preset} {threshold} promised"] = {**fixed, "confidence": args.confidence}
    return runs


def prune(work: Work, args: argparse.Namespace, asked: dict[str, Any], seed: int) -> dict[str, Any]:
    """One run in a Trainer, as a user would; and what the kept model is worth on unseen examples."""
    trainer = work.make_trainer(str(work.source), seed, work.judge)
    trainer.args.num_train_epochs, trainer.args.max_steps = MOST_RECOVERIES * args.recovery_epochs, -1
    config = PruningConfig(
        **asked,
        metric=work.metric,
        max_metric_drop=args.max_metric_drop,
        recovery_epochs=args.recovery_epochs,
        learning_rate_policy="restart",
        stop_when_done=True,
        calibration_samples=args.calibration_samples,
        calibration_batch_size=max(CALIBRATION_BATCH, args.batch_size),
        seed=seed,
    )
    callback = LayerPruningCallback(trainer, config)
    trainer.add_callback(callback)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    record = callback.report.record
    before, after = (work.unseen_outcomes(model, seed) for model in (_uncut(work, seed), trainer.model))
    sign = 1.0 if work.metric == "accuracy" else -1.0
    drops = sign * (before - after)
    return {
        "kept": record.kept, "removed": sum(record.depths.values()) - sum(map(len, record.kept.values())),
        "layers": sum(record.depths.values()), "seconds": seconds, "stopped": record.stopped,
        "recoveries": sum(not one.refused for one in record.rounds),
        "rounds": [{"kept": one.kept, "verdict": one.verdict, "drop": one.drop, "reason": one.reason} for one in record.rounds],
        "uncut": float(before.mean()), "value": float(after.mean()), "drop": float(drops.mean()),
        "interval": mean_interval(drops.tolist()), "report": str(callback.report),
    }  # fmt: skip


def _uncut(work: Work, seed: int) -> Any:
    model = work.make_trainer(str(work.source), seed, work.judge).model
    if model is None:
        raise ValueError(f"{work.source} gave a Trainer without a model.")
    return model


def estimate(work: Work, args: argparse.Namespace, num_runs: int) -> str:
    """How long it takes, from the seconds of a few steps."""
    trainer = work.make_trainer(str(work.source), 0, work.judge.select(range(min(64, len(work.judge)))))
    trainer.args.max_steps = 3
    trainer.train()
    started = time.perf_counter()
    trainer.train()
    steps = -(-len(work.train) // args.batch_size) * args.recovery_epochs
    recovery = (time.perf_counter() - started) / 3 * steps
    # a run of fixed thresholds has one to three rounds, a search gallops and bisects
    recoveries = args.seeds * (2.5 * (num_runs - 2) + 14) + args.criteria_seeds * (len(args.criteria) + 2)
    minutes = recoveries * recovery / 60
    return f"about {minutes:.0f} minutes of training ({recoveries:.0f} recoveries of {recovery:.0f} s), and the measurements"


def compare(work: Work, args: argparse.Namespace, depths: list[int]) -> Comparison:
    """The mixture and each criterion alone, at the same depths and with the same recovery, judged on unseen examples."""

    def make_trainer(path: str, seed: int) -> Any:
        return work.make_trainer(path, seed, work.unseen)

    config = PruningConfig(
        metric=work.metric, recovery_epochs=args.recovery_epochs, calibration_samples=args.calibration_samples,
        calibration_batch_size=max(CALIBRATION_BATCH, args.batch_size),
    )  # fmt: skip
    return compare_criteria(
        make_trainer, work.source, config, criteria=[args.auto_criterion, *args.criteria], num_layers=depths, seeds=args.criteria_seeds,
        calibration=work.judge, output_dir=args.work / "comparison",
    )  # fmt: skip


# -- the page ------------------------------------------------------------------------------------------------------------


def runs_table(found: dict[str, list[dict[str, Any]]], scale: float) -> str:
    """A row a way and seed."""
    rows = []
    for name, runs in found.items():
        for seed, run in enumerate(runs):
            low, high = (scale * end for end in run["interval"])
            verdicts = " ".join(
                f"{sum(map(len, one['kept'].values()))}{'+' if one['verdict'] == 'accepted' else '-'}"
                for one in run["rounds"]
            )
            rows.append([
                name, seed, run["removed"], f"{scale * run['drop']:.2f} [{low:.2f}, {high:.2f}]", run["recoveries"],
                verdicts or "none", f"{run['seconds']:.0f}", run["stopped"],
            ])  # fmt: skip
    header = [
        "run",
        "seed",
        "removed",
        "drop on unseen",
        "recoveries",
        "rounds (layers, + kept)",
        "seconds",
        "stopped, since",
    ]
    return table(header, rows)


def findings(found: dict[str, list[dict[str, Any]]], budget: float, scale: float) -> list[str]:
    """What the runs say, a line each."""
    lines = []
    for name, runs in found.items():
        above = sum(run["drop"] > budget for run in runs)
        surely = sum(run["interval"][0] > budget for run in runs)
        removed = in_words([float(run["removed"]) for run in runs], False)
        drop = in_words([scale * run["drop"] for run in runs], False, 2)
        recoveries = in_words([float(run["recoveries"]) for run in runs], False)
        lines.append(
            f"{name}: {removed} layers removed with {recoveries} recoveries, drop on unseen {drop}; above the budget in "
            f"{above} of {len(runs)} runs, by more than the interval in {surely}."
        )
    for mine, promised in ((AUTO, True), (AUTO_PLAIN, False)):
        fixed = [name for name in found if name not in (AUTO, AUTO_PLAIN) and name.endswith(" promised") == promised]
        if not fixed:
            continue
        best = max(fixed, key=lambda name: _removed_within(found[name], budget))
        lines.append(
            f"Layers removed on average, where a run whose drop on unseen is above the budget counts 0: {mine} "
            f"{_removed_within(found[mine], budget):.2f}, the best fixed threshold in hindsight ({best}) "
            f"{_removed_within(found[best], budget):.2f}, the mean of the fixed ones "
            f"{statistics.fmean(_removed_within(found[name], budget) for name in fixed):.2f}."
        )
    return lines


def _removed_within(runs: list[dict[str, Any]], budget: float) -> float:
    return statistics.fmean(run["removed"] if run["drop"] <= budget else 0 for run in runs)


def mixture_lines(comparison: Comparison) -> list[tuple[str, bool | None]]:
    """At each depth: is the mixture worse than the best single criterion by more than the interval of the difference?"""
    lines: list[tuple[str, bool | None]] = []
    for target in comparison.targets:
        rows = {row.criterion: row for row in comparison.at(target)}
        mixture = rows.pop("mixture", None)
        singles = {name: row for name, row in rows.items() if row.spread_after is not None}
        if mixture is None or mixture.spread_after is None or not singles:
            lines.append((f"{target} layers: the mixture was not measured.", None))
            continue
        sign = 1 if comparison.greater_is_better else -1
        best = max(singles.values(), key=lambda row: sign * row.spread_after.mean)  # type: ignore[union-attr]
        gaps = [
            sign * (one - other)
            for one, other in zip(best.after, mixture.after, strict=True)
            if one is not None and other is not None
        ]
        mean, interval = statistics.fmean(gaps), mean_interval(gaps)
        equal = (
            "the same layers in every seed"
            if best.plans == mixture.plans
            else f"{mixture.spread_after} against {best.spread_after}"
        )
        holds = mean <= 0 or all(gap == 0 for gap in gaps) or (None if interval is None else interval[0] <= 0)
        words = {True: "not worse by more than the interval", False: "WORSE", None: "one seed says nothing of it"}[
            holds
        ]
        span = "" if interval is None else f" [{interval[0]:.4f}, {interval[1]:.4f}]"
        lines.append(
            (
                f"{target} layers: mixture behind the best single criterion ({best.criterion}) by {mean:.4f}{span} ({equal}): {words}.",
                holds,
            )
        )
    return lines


def write_results(
    work: Work, args: argparse.Namespace, found: dict[str, list[dict[str, Any]]], comparison: Comparison | None
) -> None:
    """results.json and table.md."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    scale = 100 if work.metric == "accuracy" else 1
    unit = "points of accuracy" if work.metric == "accuracy" else "nats"
    sections = [
        ("What the figures say", "\n".join(f"- {line}" for line in findings(found, args.max_metric_drop, scale))),
        (
            "Runs",
            f"Drops in {unit}, with Student's 95 % interval over the unseen examples, paired.\n\n{runs_table(found, scale)}",
        ),
    ]
    mixture: list[tuple[str, bool | None]] = []
    if comparison is not None:
        mixture = mixture_lines(comparison)
        text = "\n".join(f"- {line}" for line, _ in mixture)
        sections.append(
            (
                "The mixture beside single criteria, at the depths that auto chose",
                f"{text}\n\n{comparison.to_markdown()}",
            )
        )
    any_run = next(iter(found.values()))[0]
    title = (
        f"No threshold beside fixed ones: {work.name}\n\n"
        f"`python reproduce/guarantee/auto.py` wrote this page. {any_run['layers']} layers; uncut, {work.metric} is "
        f"{any_run['uncut']:.4f} on {len(work.unseen):,} examples that no run saw. Every run may lose {args.max_metric_drop:g}, has "
        f"the same {len(work.judge):,} examples to choose and judge by, and recovers {args.recovery_epochs} epoch(s) of "
        f"{len(work.train):,} examples in each round, at a rate of {args.learning_rate:g} that warms up and decays to 0. `auto`: "
        'threshold="auto". Others: the named protocol and threshold. A drop is compared plainly as '
        f"in the paper, or, where it is `promised`, by its upper bound at confidence={args.confidence:g} (auto also keeps examples "
        "that choose from those that judge). Seconds are of a machine with other work on it."
    )
    told = (
        "thresholds",
        "max_metric_drop",
        "confidence",
        "recovery_epochs",
        "seeds",
        "criteria_seeds",
        "batch_size",
        "learning_rate",
        "calibration_samples",
    )
    if not args.digits:
        told = (*told, "fit", "epochs", "max_length")
    settings = {"model and data": work.name, **{name: getattr(args, name) for name in told}}
    results = {"runs": found, "mixture": [{"says": line, "holds": holds} for line, holds in mixture]}
    write_page(args.output_dir, title, settings, results, sections, [])


def read_arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--thresholds", nargs="+", type=float, default=[0.95, 0.98, 0.99])
    parser.add_argument("--max_metric_drop", type=float, default=0.02, help="the budget of every run")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--auto_criterion", default="mixture", help="what chooses layers under auto")
    parser.add_argument("--fixed_confidence", action="store_true", help="fixed thresholds with the promise, too")
    parser.add_argument("--recovery_epochs", type=int, default=1)
    parser.add_argument("--calibration_samples", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--criteria",
        nargs="*",
        default=list(SINGLES),
        help="single criteria beside the mixture; none: leave that part out",
    )
    parser.add_argument("--criteria_seeds", type=int, help="of that part (default: as many as --seeds)")
    parser.add_argument("--work", type=Path, help="for models and unfinished work (default: runs/guarantee/NAME)")
    parser.add_argument("--output_dir", type=Path, help="default: reproduce/results/guarantee/auto/NAME")
    args = parser.parse_args()
    name = "digits" if args.digits else Path(args.model or "model").name
    args.criteria_seeds = args.criteria_seeds or args.seeds
    args.work = args.work or Path(__file__).parents[2] / "runs" / "guarantee" / name
    args.output_dir = args.output_dir or RESULTS / "guarantee" / "auto" / name
    return args


def main() -> None:
    """Run what is missing, and write the page."""
    args = read_arguments()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    work, runs = make_work(args), settings_of(args)
    left_out = (
        "output_dir",
        "work",
        "seeds",
        "criteria_seeds",
        "thresholds",
        "criteria",
        "fixed_confidence",
        "model",
        "data",
    )
    facts = {name: value for name, value in vars(args).items() if name not in left_out} | {"subject": work.name}
    cells = Cells(args.work, facts)
    names = {(name, seed): f"{name.replace(' ', '-')}-s{seed}" for name in runs for seed in range(args.seeds)}
    if not all(map(cells.has, names.values())):
        print(estimate(work, args, len(runs)), flush=True)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for (name, seed), cell in names.items():
        found[name].append(cells.get(cell, lambda name=name, seed=seed: prune(work, args, runs[name], seed)))
    # where nothing could be promised, the depths of the search alone
    chosen = found[AUTO] if any(run["removed"] for run in found[AUTO]) else found[AUTO_PLAIN]
    left = sorted({run["layers"] - run["removed"] for run in chosen if run["removed"]}, reverse=True)
    comparison = compare(work, args, left) if args.criteria and left else None
    write_results(work, args, found, comparison)
    print((args.output_dir / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
