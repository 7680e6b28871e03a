"""Does the promise hold for real candidates? Thousands of runs with judging sets of their own, where the true drop is known.

    python reproduce/guarantee/promise.py

A ViT on handwritten digits is pruned as the library does it. Every candidate that a run can come to is cut, recovered and run
on a large population once, so its true drop is known. Then runs are repeated: each draws a judging set from the population,
decides round by round, and the true drop of the model that it keeps is looked at. Three ways to decide stand side by side:
the plain comparison of the paper, the upper confidence bound in every round as if it were the only one, and the promise
(levels that pay for all rounds). Candidates and counts are kept as cells: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tree import Model, Subject, Tree, Verdicts

sys.path.insert(0, str(Path(__file__).parents[1]))

from papers import RESULTS, Cells, plot_lines, table, write_page

from hf_mpruner import PruningConfig
from hf_mpruner.guarantee import Outcomes, TestLevels, bound_drop, resample_indices
from hf_mpruner.guarantee.proportions import PairedTest
from hf_mpruner.intervals import wilson_interval
from hf_mpruner.promises import fix_levels
from hf_mpruner.record import PruningRecord
from hf_mpruner.search import SearchBounds
from hf_mpruner.verdict import ROUNDING

CONFIDENCE = 0.95
LOSS_BATCH = 8
# Runs that look for the hardest budget, and the examples that each is judged on.
PILOTS, PILOT_SIZE = 100, 1000
# Ways to prune: Algorithm 1 at a threshold, a number of layers in each round, and the search.
WAYS: dict[str, dict[str, Any]] = {
    "clusters": {"threshold": 0.98},
    "layers": {"criterion": "cka", "layers_per_round": 2},
    "search": {"threshold": "auto", "criterion": "cka"},
}
RULES = ("plain", "each round alone", "promise")
Holds = Callable[[float, float], bool]


# -- metrics -------------------------------------------------------------------------------------------------------------


class Accuracy:
    """Share of right answers; 0/1 outcomes, bounded by the exact test."""

    name, unit = "accuracy", "points"

    def truth(self, uncut: Model, model: Model) -> float:
        """The drop on the population."""
        return float(np.mean(uncut.right.astype(float) - model.right))

    def error(self, uncut: Model, model: Model, original: np.ndarray) -> float:
        """Standard error of that drop, were the originals a sample of all digits."""
        return _clustered_error(uncut.right.astype(float) - model.right, original)

    def measure(self, uncut: Model, model: Model, drawn: np.ndarray) -> tuple[float, Holds]:
        """The drop on a judging set, and whether the bound at a level holds a budget."""
        before, after = uncut.right[drawn], model.right[drawn]
        lost, won = int(np.sum(before & ~after)), int(np.sum(~before & after))
        return (lost - won) / len(drawn), lambda budget, level: exact_holds(len(drawn), lost, won, budget, level)


@cache
def exact_holds(num_examples: int, lost: int, won: int, budget: float, level: float) -> bool:
    """`bound_drop(...).holds` of 0/1 outcomes: whether the bound holds, without looking for the bound.

    It depends on these counts alone, and the same counts come again and again.
    """
    return PairedTest(num_examples, lost, won, level).rejects(budget)


class Loss:
    """Mean cross-entropy; the units are batches of evaluation, as in a Trainer, bounded by Student's t."""

    name, unit = "loss", "nats"

    def truth(self, uncut: Model, model: Model) -> float:
        """The drop (that is, the rise) on the population."""
        return float(np.mean(model.losses - uncut.losses))

    def error(self, uncut: Model, model: Model, original: np.ndarray) -> float:
        """Standard error of that drop, were the originals a sample of all digits."""
        return _clustered_error(model.losses - uncut.losses, original)

    def measure(self, uncut: Model, model: Model, drawn: np.ndarray) -> tuple[float, Holds]:
        """The rise on a judging set, and whether the bound at a level holds a budget."""
        before, after = (_batch_means(one.losses[drawn]) for one in (uncut, model))

        def holds(budget: float, level: float) -> bool:
            return bound_drop(before, after, greater_is_better=False, max_drop=budget, level=level).holds

        return after.value - before.value, holds


def _batch_means(losses: np.ndarray) -> Outcomes:
    means = losses[: len(losses) // LOSS_BATCH * LOSS_BATCH].reshape(-1, LOSS_BATCH).mean(1)
    return Outcomes("values", tuple(means.tolist()), float(means.mean()), len(losses), "batches")


class MacroF1:
    """Mean of the ten digits' F1; a metric of the whole set, bounded by the paired bootstrap."""

    name, unit = "macro F1", "points"

    def __init__(self) -> None:
        """Nothing is resampled yet."""
        self._last: tuple[np.ndarray, Outcomes] | None = None  # of the uncut model

    def truth(self, uncut: Model, model: Model) -> float:
        """The drop on the population."""
        before, after = (float(macro_f1(one.labels[None], one.says[None])[0]) for one in (uncut, model))
        return before - after

    def error(self, uncut: Model, model: Model, original: np.ndarray) -> float:
        """Of the accuracy, which moves with it."""
        return Accuracy().error(uncut, model, original)

    def measure(self, uncut: Model, model: Model, drawn: np.ndarray) -> tuple[float, Holds]:
        """The drop on a judging set, and whether the bound at a level holds a budget."""
        if self._last is None or self._last[0] is not drawn:
            self._last = drawn, self._outcomes(uncut, drawn)
        before, after = self._last[1], self._outcomes(model, drawn)

        def holds(budget: float, level: float) -> bool:
            return bound_drop(before, after, greater_is_better=True, max_drop=budget, level=level).holds

        return before.value - after.value, holds

    def _outcomes(self, model: Model, drawn: np.ndarray) -> Outcomes:
        labels, says = model.labels[drawn], model.says[drawn]
        again = _resamples(len(drawn))
        value = float(macro_f1(labels[None], says[None])[0])
        return Outcomes("replicates", tuple(macro_f1(labels[again], says[again]).tolist()), value, len(drawn))


@lru_cache(maxsize=1)
def _resamples(num_examples: int) -> np.ndarray:
    return np.stack([drawn.numpy() for drawn in resample_indices(num_examples)])


def macro_f1(labels: np.ndarray, says: np.ndarray) -> np.ndarray:
    """Of each row: 2 x right / (labelled so + said so), the mean over digits that occur in either."""
    rows = len(labels)
    found = np.zeros((rows, 10, 10))
    for row in range(rows):
        found[row] = np.bincount(labels[row].astype(np.int64) * 10 + says[row], minlength=100).reshape(10, 10)
    right, all_of = np.diagonal(found, axis1=1, axis2=2), found.sum(1) + found.sum(2)
    occurs = all_of > 0
    return np.where(occurs, 2 * right / np.maximum(all_of, 1), 0.0).sum(1) / occurs.sum(1)


def _clustered_error(differences: np.ndarray, original: np.ndarray) -> float:
    """Variants of one image go together: the error of the mean of the originals' means."""
    sums, sizes = np.bincount(original, differences), np.bincount(original)
    means = sums[sizes > 0] / sizes[sizes > 0]
    return float(means.std(ddof=1) / np.sqrt(len(means)))


METRICS: dict[str, Any] = {"accuracy": Accuracy(), "loss": Loss(), "macro_f1": MacroF1()}


# -- repetitions ---------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """One run: its verdicts, the model that it keeps, the true drop of that, and whether one that breaks the budget came up."""

    verdicts: Verdicts
    kept: Model
    drop: float
    bad_judged: bool


def repeat(
    tree: Tree, metric: Any, budgets: Sequence[float], num_examples: int, repetitions: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Runs with a judging set of their own each.

    Judging sets are drawn from the population independently, with replacement: its mean is the true value then, with no
    correction for its size.

    Returns:
        `dict`: by budget and rule: how many runs `broke` the budget, kept `nothing`, layers that went (`removed`, mean),
        `rounds` judged (mean), `drop`: the mean true drop, and `bad_judged`: runs that judged a candidate that breaks it.
    """
    uncut, size = tree.subject.uncut, len(tree.subject.pool)
    truth = cache(lambda verdicts: metric.truth(uncut, tree.candidate(verdicts)))
    found: dict[str, list[Run]] = {}
    for repetition in range(repetitions):
        drawn = np.random.default_rng([seed, num_examples, repetition]).integers(0, size, num_examples)
        known: dict[str, tuple[float, Holds]] = {}

        def measure(model: Model, drawn: np.ndarray = drawn, known: dict[str, Any] = known) -> tuple[float, Holds]:
            if model.name not in known:
                known[model.name] = metric.measure(uncut, model, drawn)
            return known[model.name]

        for budget in budgets:
            for rule in RULES:
                found.setdefault(f"{budget:g} {rule}", []).append(walk(tree, budget, rule, measure, truth))
    counts: dict[str, dict[str, Any]] = {}
    for key, runs in found.items():
        budget = float(key.split(" ", 1)[0])
        counts[key] = {
            "broke": sum(one.drop > budget + ROUNDING for one in runs), "nothing": sum(one.kept is uncut for one in runs),
            "removed": statistics.fmean(uncut.layers - one.kept.layers for one in runs),
            "rounds": statistics.fmean(len(one.verdicts) for one in runs), "drop": statistics.fmean(one.drop for one in runs),
            "bad_judged": sum(one.bad_judged for one in runs), "repetitions": len(runs), "uncut_layers": uncut.layers,
        }  # fmt: skip
    return counts


def walk(
    tree: Tree,
    budget: float,
    rule: str,
    measure: Callable[[Model], tuple[float, Holds]],
    truth: Callable[[Verdicts], float],
) -> Run:
    """One run with one judging set.

    Args:
        tree (`Tree`): the candidates.
        budget (`float`): the largest allowed drop.
        rule (`str`): one of `RULES`.
        measure (callable): gets a candidate, returns its drop on the judging set and whether a bound holds.
        truth (callable): gets the verdicts before a candidate, returns its true drop.
    """
    kept = tree.subject.uncut
    verdicts: Verdicts = ()
    levels = levels_of(tree.config, kept.layers)
    kept_drop, bad_judged = 0.0, False
    while (model := tree.candidate(verdicts)) is not None:
        drop, holds = measure(model)
        if rule == "plain":
            accepted = drop <= budget + ROUNDING
        else:
            accepted = holds(budget, levels.next(verdicts) if rule == "promise" else 1 - CONFIDENCE)
        true_drop = truth(verdicts)
        bad_judged |= true_drop > budget + ROUNDING
        if accepted:
            kept, kept_drop = model, true_drop
        verdicts = (*verdicts, accepted)
    return Run(verdicts, kept, kept_drop, bad_judged)


def find_hardest(tree: Tree, metric: Any, seed: int, smallest: float) -> float | None:
    """The budget, just below the true drop of some candidate, that runs break most often if rounds are not paid for.

    Looked for with judging sets of their own, so that what is then counted at this budget was not chosen by its count.
    """
    uncut = tree.subject.uncut
    drops = {round(metric.truth(uncut, model), 5) for model in tree.known().values()}
    found: dict[float, int] = {}
    for budget in sorted(round(drop - 1e-5, 5) for drop in drops if drop > smallest):
        runs = repeat(tree, metric, [budget], PILOT_SIZE, PILOTS, seed + 1)
        found[budget] = runs[f"{budget:g} each round alone"]["broke"]
    return max(found, key=lambda budget: (found[budget], -budget), default=None)


def levels_of(config: PruningConfig, layers: int) -> TestLevels:
    """The levels of a run's tests, as the library pays for them."""
    record = PruningRecord({"vit.layers": layers})
    if config.searches:  # the first layer of a ViT stays
        record.search = SearchBounds.of(range(1, layers)).to_dict()
    return TestLevels(1 - CONFIDENCE, **fix_levels(config, record))


def alone(tree: Tree, metric: Any, budgets: Sequence[float], sizes: Sequence[int], repetitions: int, seed: int) -> Any:
    """How often each candidate that breaks a budget passes, judged once and alone; of its nearest budget."""
    rows, uncut = [], tree.subject.uncut
    for _, model in sorted(tree.known().items(), key=lambda item: (len(item[0]), not all(item[0]), item[0])):
        drop = metric.truth(uncut, model)
        below = [budget for budget in budgets if budget + ROUNDING < drop]
        row: dict[str, Any] = {
            "name": model.name, "layers": model.layers, "drop": drop,
            "error": metric.error(uncut, model, tree.subject.pool.original.numpy()), "budget": max(below, default=None),
        }  # fmt: skip
        for num_examples in sizes if below else ():
            passed = {"plain": 0, "bound": 0}
            for repetition in range(repetitions):
                draw = np.random.default_rng([seed, 1, num_examples, repetition])
                found, holds = metric.measure(uncut, model, draw.integers(0, len(model.labels), num_examples))
                passed["plain"] += found <= row["budget"] + ROUNDING
                passed["bound"] += holds(row["budget"], 1 - CONFIDENCE)
            row[str(num_examples)] = {name: int(number) for name, number in passed.items()}
        rows.append(row)
    return rows


# -- the page ------------------------------------------------------------------------------------------------------------


def share(number: int, of: int) -> str:
    """`3.2 % [2.5, 4.1]`, with Wilson's interval."""
    low, high = (100 * end for end in wilson_interval(number / of, of))
    return f"{100 * number / of:.1f} % [{low:.1f}, {high:.1f}]"


def verdict_line(metric: str, way: str, results: dict[str, dict[str, Any]]) -> tuple[str, bool]:
    """Whether the promise was kept in every setting, and what the others did."""
    worst: dict[str, tuple[int, int, str]] = {}
    for num_examples, found in results.items():
        for key, counts in found.items():
            budget, rule = key.split(" ", 1)
            where = f"n = {num_examples}, budget {budget}"
            worst[rule] = max(worst.get(rule, (-1, 1, "")), (counts["broke"], counts["repetitions"], where))
    broke, of, where = worst["promise"]
    holds = broke / of <= 1 - CONFIDENCE
    words = "kept" if holds else "BROKEN"
    plain, _, plain_where = worst["plain"]
    unpaid, _, unpaid_where = worst["each round alone"]
    return (
        f"{metric}, {way}: the promise holds in {100 * (1 - broke / of):.2f} % of {of:,} (at least "
        f"{100 * CONFIDENCE:.0f} % promised) where it holds least often ({where}): {words}. The plain comparison's worst is "
        f"{100 * (1 - plain / of):.2f} % ({plain_where}), that of the bound without paying for rounds "
        f"{100 * (1 - unpaid / of):.2f} % ({unpaid_where})."
    ), holds


def runs_table(results: dict[str, dict[str, Any]]) -> str:
    """A row a size and budget."""
    rows = []
    for num_examples, found in results.items():
        for budget in dict.fromkeys(key.split(" ", 1)[0] for key in found):
            by = {rule: found[f"{budget} {rule}"] for rule in RULES}
            of = by["promise"]["repetitions"]
            rows.append([
                num_examples, budget, *(share(by[rule]["broke"], of) for rule in RULES),
                *(f"{by[rule]['removed']:.2f}" for rule in RULES), f"{100 * by['promise']['nothing'] / of:.0f} %",
                f"{by['promise']['rounds']:.1f}", f"{100 * by['promise']['bad_judged'] / of:.0f} %",
            ])  # fmt: skip
    broke, removed = [f"broken: {rule}" for rule in RULES], [f"removed: {rule}" for rule in RULES]
    header = ["n", "budget", *broke, *removed, "nothing promised", "rounds", "bad one judged"]
    return table(header, rows)


def alone_table(rows: Sequence[dict[str, Any]], sizes: Sequence[int], repetitions: int, scale: float) -> str:
    """A row a candidate."""
    shown = []
    for row in rows:
        drop = f"{scale * row['drop']:.2f} ± {scale * row['error']:.2f}"
        cells = [
            f"{100 * row[str(n)]['plain'] / repetitions:.0f} / {100 * row[str(n)]['bound'] / repetitions:.1f}"
            if str(n) in row
            else ""
            for n in sizes
        ]
        shown.append([row["name"], row["layers"], drop, "" if row["budget"] is None else row["budget"], *cells])
    return table(["candidate", "layers", "true drop", "breaks", *(f"n = {n}" for n in sizes)], shown)


def write_results(args: argparse.Namespace, facts: dict[str, Any], subject: Subject, results: dict[str, Any]) -> bool:
    """results.json, table.md and a plot; whether every promise was kept."""
    lines, sections, all_hold = [], [], True
    for metric, ways in results.items():
        scale = 100 if METRICS[metric].unit == "points" else 1
        for way, found in ways.items():
            line, holds = verdict_line(METRICS[metric].name, way, found["runs"])
            lines.append(f"- {line}")
            all_hold &= holds
            sections.append((f"{METRICS[metric].name}, {way}: runs", runs_table(found["runs"])))
            if "alone" in found:
                text = (
                    f"Drops in {METRICS[metric].unit}, on the whole population; ± is a standard error, were its originals a "
                    "sample of all digits. For the largest budget that a candidate breaks: in how many per cent of judging "
                    "sets it passes, by the plain comparison / by the bound at 5 %. In a name a is a round that was "
                    "accepted before, r one that was rejected.\n\n"
                )
                rows = alone_table(found["alone"], args.sizes, found["repetitions"], scale)
                sections.append((f"{METRICS[metric].name}, {way}: each candidate, judged once", text + rows))
            _plot(args.output_dir / f"{metric}-{way}.png", found["runs"])
            sections.append(
                (f"{METRICS[metric].name}, {way}: plot", f"![how often the budget is broken]({metric}-{way}.png)")
            )
    sections = [("What the figures say", "\n".join(lines)), *sections]
    before = subject.uncut
    title = (
        "Is the promise kept? Runs on real candidates whose true drop is known\n\n"
        f"`{_command()}` wrote this page. A ViT of {before.layers} layers on scikit-learn's digits, "
        f"turned, moved, stretched and made noisy, says {100 * before.right.mean():.2f} % of the population right: "
        f"{len(subject.pool):,} variants of {len(set(subject.pool.original.tolist()))} images, of which no variant trains. "
        f"A cut recovers for {facts['recovery_steps']} steps on variants of the other {facts['originals']} images; so few, and images "
        "so hard, that drops of candidates lie around the budgets: where all are far below or far above, any rule is right. "
        "Candidates are cut and recovered by the library's own rounds, once for each sequence of verdicts that a run comes to. "
        "A budget that the settings do not name is the hardest: of those just below a candidate's true drop the one that runs break most "
        "often if rounds are not paid for, looked for with other judging sets. "
        "A judging set is n images drawn from the population with replacement, so that what holds on the population is the "
        "truth. `broken`: the true drop of the model that the run keeps is above the budget, with Wilson's 95 % interval; "
        f"`plain`: the measured drop is compared with the budget; `each round alone`: the bound at {100 * (1 - CONFIDENCE):.0f} % "
        "in every round; `promise`: at levels that pay for the rounds, as `confidence=0.95` does. `removed`: layers, on average. "
        "`nothing promised`, `rounds` and `bad one judged` (a candidate that breaks the budget came up) are of the promise."
    )
    write_page(args.output_dir, title, facts, {"results": results, "kept": all_hold}, sections, [])
    print("\n".join(lines))
    return all_hold


def _command() -> str:
    """What was typed, but for where the results go."""
    words = sys.argv[1:]
    if "--output_dir" in words:
        place = words.index("--output_dir")
        del words[place : place + 2]
    return " ".join(["python reproduce/guarantee/promise.py", *words])


def _plot(file: Path, results: dict[str, dict[str, Any]]) -> None:
    series: dict[str, dict[float, list[float]]] = {}
    for num_examples, found in results.items():
        for key, counts in found.items():
            rule = key.split(" ", 1)[1]
            line = series.setdefault(rule, {})
            line.setdefault(float(num_examples), []).append(100 * counts["broke"] / counts["repetitions"])
    plot_lines(
        file, series, ("examples in the judging set", "runs that break the budget, %"), "over the budgets", log_x=True
    )


def read_arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=RESULTS / "guarantee" / "promise")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["clusters", "search"])
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=["accuracy", "loss"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[200, 500, 1000, 2000], help="of judging sets")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.005, 0.01, 0.02], help="in shares")
    parser.add_argument("--loss_budgets", nargs="+", type=float, default=[0.01, 0.02, 0.05], help="in nats")
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--bootstrap_repetitions", type=int, default=200, help="of macro_f1, which is dear")
    for name, value in (("layers", 12), ("hidden", 48), ("originals", 900), ("train", 9000), ("pool", 20000),
                        ("steps", 1500), ("recovery_steps", 60), ("calibration_samples", 256), ("seed", 0)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, rate in (("rate", 2e-3), ("recovery_rate", 5e-4), ("strength", 0.5)):
        parser.add_argument(f"--{name}", type=float, default=rate)
    return parser.parse_args()


def main() -> None:
    """Compute what is missing, then write the page; exit 1 if a promise was broken."""
    args = read_arguments()
    torch.set_num_threads(1)
    own = ("layers", "hidden", "originals", "train", "pool", "strength", "steps", "rate", "recovery_steps", "recovery_rate",
           "calibration_samples", "seed")  # fmt: skip
    subject = Subject(args.output_dir, {name: getattr(args, name) for name in own})
    facts, results = {**subject.facts, "confidence": CONFIDENCE, "loss_batch": LOSS_BATCH}, {}
    for name in args.metrics:
        budgets = args.loss_budgets if name == "loss" else args.budgets
        number = args.bootstrap_repetitions if name == "macro_f1" else args.repetitions
        facts |= {f"{name} budgets": budgets, f"{name} repetitions": number}
        cells = Cells(args.output_dir / name, {**subject.facts, "budgets": budgets, "repetitions": number})
        results[name] = {}
        for way in args.ways:
            given = (Tree(way, PruningConfig(**WAYS[way]), subject), METRICS[name])
            found: dict[str, Any] = {"runs": {}, "repetitions": number}
            for size in args.sizes:
                job = partial(repeat, *given, budgets, size, number, args.seed)
                found["runs"][str(size)] = cells.get(f"{way}-{size}", job)
            if name != "macro_f1":  # the bootstrap is dear
                job = partial(alone, *given, budgets, args.sizes, number, args.seed)
                found["alone"] = cells.get(f"{way}-alone", job)
                hard = cells.get(f"{way}-hardest", partial(find_hardest, *given, args.seed, min(budgets) / 2))
                for size in args.sizes if hard is not None else ():
                    job = partial(repeat, *given, [hard], size, number, args.seed)
                    found["runs"][str(size)] |= cells.get(f"{way}-hard-{size}", job)
            results[name][way] = found
    sys.exit(0 if write_results(args, facts, subject, results) else 1)


if __name__ == "__main__":
    main()
