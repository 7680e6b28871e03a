"""How often is a bound of the drop too low, and how often do several rounds let a bad cut through? Numbers drawn, no models.

    python reproduce/guarantee/coverage.py

Outcomes of two models are drawn with a known true drop, thousands of times, for 0/1 outcomes, for means and for metrics of
the whole set, in cases that are kind and cases that are not (rare large losses, rare classes, models that differ on a few
examples). How often the bound is below the true drop stands beside the level that was asked for, beside what the usual
bound would give, and beside the plain comparison: how often the measured drop is below the true one, which is how often a
cut that is just too bad would be kept. Then sequences of rounds: candidates in a fixed tree, whose true drops are known.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from papers import Cells, add_arguments, compute_all, table, write_page

from hf_mpruner.guarantee import TestLevels, resample_indices
from hf_mpruner.guarantee.means import MIN_UNITS, mean_at_most
from hf_mpruner.guarantee.proportions import PairedTest
from hf_mpruner.guarantee.replicates import metric_at_most
from hf_mpruner.intervals import student_t_quantile

# As they occur: one branch, the first of two or more, and a third one; confidence 0.95.
LEVELS = (0.05, 0.025, 0.00625)
BUDGET = 0.01
BATCH = 32
# Rates of disagreement of two models with 0/1 outcomes.
DISCORDANCES = (0.015, 0.05, 0.15)
Draw = Callable[[int, torch.Generator], Tensor]
Metric = Callable[[Tensor], Tensor]


def main() -> None:
    """Count, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_arguments(parser, "guarantee_coverage")
    parser.add_argument("--repetitions", type=int, default=2000, help="of each case")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 1000], help="examples of a judging set")
    parser.add_argument("--num_batches", type=int, default=30, help=f"of {BATCH} examples, for means over batches")
    args = parser.parse_args()
    fixed = {"repetitions": args.repetitions, "levels": list(LEVELS)}
    cells = Cells(args.output_dir, fixed)
    jobs: dict[str, tuple[Callable[..., Any], Sequence[Any]]] = {}
    for size in args.sizes:
        for discordance in DISCORDANCES:
            jobs[f"shares-{discordance:g}-{size}"] = (count_shares, (discordance, size, args.repetitions))
        for case in MEANS:
            jobs[f"means-{case}-{size}"] = (count_means, (case, size, args.repetitions))
        for tree in TREES:
            jobs[f"rounds-{tree}-{size}"] = (count_rounds, (tree, size, args.repetitions))
        for case in METRICS:
            jobs[f"metrics-{case}-{size}"] = (count_metrics, (case, size, args.repetitions))
    for case in BATCHES:
        jobs[f"means-{case}-{args.num_batches}"] = (count_means, (case, args.num_batches, args.repetitions))
    found = compute_all(cells, jobs, args.processes)
    _write(args.output_dir, {**fixed, "sizes": args.sizes, "num_batches": args.num_batches}, found)
    print(f"{cells.seconds / 60:.1f} minutes of cells; see {args.output_dir / 'table.md'}")


# -- 0/1 outcomes ----------------------------------------------------------------------------------------------------------


@cache
def most_worse(num: int, better: int, level: float, drop: float) -> int:
    """With how many worse examples at most, beside so many better ones, the exact test refutes that drop; -1: with none."""
    low, high = -1, min(better + math.ceil(num * drop), num - better) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if PairedTest(num, middle, better, level).rejects(drop) else (low, middle)
    return low


def rejects(num: int, worse: int, better: int, level: float, drop: float) -> bool:
    """Whether the exact test refutes that drop, which is whether the bound is below it."""
    return worse <= most_worse(num, better, level, drop)


def counts(num: int, discordance: float, drop: float, generator: random.Random) -> tuple[int, int]:
    """Of how many examples get worse and how many better, drawn."""
    drawn = generator.choices((0, 1, 2), ((discordance + drop) / 2, (discordance - drop) / 2, 1 - discordance), k=num)
    return drawn.count(0), drawn.count(1)


def count_shares(discordance: float, num: int, repetitions: int) -> dict[str, Any]:
    """Share of repetitions in which a bound is below the true drop, which is the budget."""
    generator, missed = random.Random(f"{discordance} {num}"), _nothing()
    for _ in range(repetitions):
        worse, better = counts(num, discordance, BUDGET, generator)
        drop = (worse - better) / num
        error = math.sqrt(max((worse + better) / num - drop * drop, 0.0) / num)
        missed["plain"] += drop < BUDGET
        for i, level in enumerate(LEVELS):
            missed["usual"][i] += drop + NormalDist().inv_cdf(1 - level) * error < BUDGET
            missed["ours"][i] += rejects(num, worse, better, level, BUDGET)
    return _shares(missed, repetitions)


def _nothing() -> dict[str, Any]:
    return {"plain": 0, "usual": [0] * len(LEVELS), "ours": [0] * len(LEVELS)}


def _shares(missed: dict[str, Any], repetitions: int) -> dict[str, Any]:
    return {k: [c / repetitions for c in v] if isinstance(v, list) else v / repetitions for k, v in missed.items()}


# -- means -----------------------------------------------------------------------------------------------------------------


def _normal(num: int, generator: torch.Generator) -> Tensor:
    return torch.randn(num, generator=generator, dtype=torch.float64)


def _exponential(num: int, generator: torch.Generator) -> Tensor:
    return -torch.rand(num, generator=generator, dtype=torch.float64).clamp(min=1e-300).log()


def _rare(share: float) -> Draw:
    """Noise everywhere, and a loss of 1 on average on a share of the examples."""

    def draw(num: int, generator: torch.Generator) -> Tensor:
        hit = torch.rand(num, generator=generator) < share
        return 0.05 * _normal(num, generator) + hit * _exponential(num, generator)

    return draw


def _batches(draw: Draw) -> Draw:
    """Means over batches."""
    return lambda num, generator: draw(num * BATCH, generator).view(num, BATCH).mean(1)


# Differences of two models, and their true mean.
MEANS: dict[str, tuple[Draw, float]] = {
    "symmetric": (_normal, 0.0),
    "a tail of worse ones": (_exponential, 1.0),
    "a tail of better ones": (lambda num, generator: -_exponential(num, generator), -1.0),
    "a long tail of worse ones": (lambda num, generator: _normal(num, generator).exp(), math.exp(0.5)),
    "20 % much worse": (_rare(0.2), 0.2),
    "5 % much worse": (_rare(0.05), 0.05),
}
BATCHES: dict[str, tuple[Draw, float]] = {
    f"{name}, batches of {BATCH}": (_batches(draw), true)
    for name, (draw, true) in MEANS.items()
    if name in ("symmetric", "a long tail of worse ones", "5 % much worse")
}


def count_means(case: str, num: int, repetitions: int) -> dict[str, Any]:
    """As `count_shares`, of a mean of differences; the usual bound is Student's."""
    draw, true = {**MEANS, **BATCHES}[case]
    generator, missed = torch.Generator().manual_seed(num + 1000 * len(case)), _nothing()
    students = [student_t_quantile(1 - level, min(num - 1, 1000)) for level in LEVELS]
    for _ in range(repetitions):
        values = draw(num, generator)
        mean, error = float(values.mean()), float(values.std()) / math.sqrt(num)
        listed = values.tolist()
        missed["plain"] += mean < true
        for i, level in enumerate(LEVELS):
            missed["usual"][i] += mean + students[i] * error < true
            missed["ours"][i] += mean_at_most(listed, (), level, math.inf).upper < true
    return _shares(missed, repetitions)


# -- metrics of the whole set ----------------------------------------------------------------------------------------------


def _classes(priors: Sequence[float], accuracies: Sequence[float], changed: float, to: int | None) -> Tensor:
    """`(label, before, after)`: joint probabilities; a share of predictions changes, to one class or to any other."""
    many = len(priors)
    found = torch.zeros(many, many, many, dtype=torch.float64)
    for label, prior in enumerate(priors):
        for before in range(many):
            right = accuracies[label]
            share = prior * (right if before == label else (1 - right) / (many - 1))
            for after in range(many):
                moved = float(after == to) if to is not None else (after != before) / (many - 1)
                found[label, before, after] = share * ((1 - changed) * (after == before) + changed * moved)
    return found


def _indicators(many: int) -> Tensor:
    """`(cells, 2 models * classes * 3)`: whether a cell is a true positive, false positive or false negative of a class."""
    label, before, after = (i.flatten() for i in torch.meshgrid(*[torch.arange(many)] * 3, indexing="ij"))
    columns = []
    for guess in (before, after):
        for k in range(many):
            columns += [(label == k) & (guess == k), (label != k) & (guess == k), (label == k) & (guess != k)]
    return torch.stack(columns, 1).double()


def macro_f1(sums: Tensor) -> Tensor:
    """`(..., 2)`: of both models, from sums of indicators."""
    hits, wrong, missed = sums.unflatten(-1, (2, -1, 3)).unbind(-1)
    return (2 * hits / (2 * hits + wrong + missed).clamp(min=1e-12)).mean(-1)


def matthews(sums: Tensor) -> Tensor:
    """Correlation of two classes, of both models."""
    parts = sums.unflatten(-1, (2, 2, 3))
    right, wrong, missed, correct = parts[..., 1, 0], parts[..., 1, 1], parts[..., 1, 2], parts[..., 0, 0]
    sides = ((right + wrong) * (right + missed) * (correct + wrong) * (correct + missed)).clamp(min=0).sqrt()
    return torch.where(sides > 0, (right * correct - wrong * missed) / sides.clamp(min=1e-12), 0.0)


def _labelled(cells: Tensor) -> tuple[Draw, Tensor]:
    """Draws of the indicators of examples, and their expectation."""
    indicators, shares = _indicators(cells.shape[0]), cells.flatten()

    def draw(num: int, generator: torch.Generator) -> Tensor:
        return indicators[torch.multinomial(shares, num, replacement=True, generator=generator)]

    return draw, shares @ indicators


def _corpus(num: int, generator: torch.Generator) -> Tensor:
    """Matched words of both models, and words, as in BLEU's precisions: long sentences weigh more; a fifth get worse."""
    words = (0.6 * _normal(num, generator) + 2.5).exp().round() + 1
    share = torch.rand(num, generator=generator, dtype=torch.float64)
    worse = torch.rand(num, generator=generator) < 0.2
    left = torch.where(worse, torch.rand(num, generator=generator, dtype=torch.float64), 1.0)
    return torch.stack([words * share, words * share * left, words], 1)


def corpus_ratio(sums: Tensor) -> Tensor:
    """The fourth root of the matched share, as BLEU has it."""
    return (sums[..., :2] / sums[..., 2:]) ** 0.25


def _losses(num: int, generator: torch.Generator) -> Tensor:
    """Losses of both models, and ones; 5 % of the examples get much worse."""
    loss = (0.5 * _normal(num, generator) + 0.8).exp()
    return torch.stack([loss, loss + _rare(0.05)(num, generator), torch.ones_like(loss)], 1)


def perplexity(sums: Tensor) -> Tensor:
    """The exponential of the mean loss; negative, so that greater is better here too."""
    return -(sums[..., :2] / sums[..., 2:]).exp()


def _metrics() -> dict[str, tuple[Draw, Metric, Tensor]]:
    """Draws of what an example adds to the sums that a metric is made of, the metric, and the expected sums."""
    rare = ((0.8, 0.15, 0.05), (0.95, 0.8, 0.6))
    two = ((0.9, 0.1), (0.95, 0.7))
    found = {}
    for name, metric, cells in (
        ("macro F1, a rare class, 5 % change", macro_f1, _classes(*rare, 0.05, None)),
        ("macro F1, a rare class, 5 % go to the largest class", macro_f1, _classes(*rare, 0.05, 0)),
        ("macro F1, a rare class, 1 % go to the largest class", macro_f1, _classes(*rare, 0.01, 0)),
        ("Matthews correlation, 5 % change", matthews, _classes(*two, 0.05, None)),
    ):
        draw, expected = _labelled(cells)
        found[name] = (draw, metric, expected)
    mean = math.exp(0.8 + 0.125)
    # a matched share of 1/2, of which a fifth of the sentences keep half
    found["corpus ratio"] = (_corpus, corpus_ratio, torch.tensor([0.5, 0.45, 1.0], dtype=torch.float64))
    found["perplexity, 5 % much worse"] = (
        _losses,
        perplexity,
        torch.tensor([mean, mean + 0.05, 1.0], dtype=torch.float64),
    )
    return found


METRICS = _metrics()


@lru_cache(maxsize=1)
def resamples(num: int) -> Tensor:
    """`(resamples, num)`: how often each example is in each."""
    return torch.stack([torch.bincount(rows, minlength=num) for rows in resample_indices(num)]).float()


def count_metrics(case: str, num: int, repetitions: int) -> dict[str, Any]:
    """As `count_shares`, of a metric of the whole set; the usual bound is the bootstrap's percentile."""
    draw, metric, expected = METRICS[case]
    before, after = metric(expected).tolist()
    true = before - after
    generator, missed = torch.Generator().manual_seed(num + 1000 * len(case)), _nothing()
    margins: list[list[float]] = [[] for _ in LEVELS]
    for _ in range(repetitions):
        examples = draw(num, generator)
        values = metric((resamples(num) @ examples.float()).double())
        of_all = metric(examples.sum(0))
        drop, differences, uncut = float(of_all[0] - of_all[1]), values[:, 0] - values[:, 1], values[:, 0].tolist()
        listed, ordered = differences.tolist(), differences.sort().values
        missed["plain"] += drop < true
        spread = float(differences.std(correction=0))
        for i, level in enumerate(LEVELS):
            missed["usual"][i] += float(ordered[len(ordered) - int(level * (len(ordered) + 1))]) < true
            upper = metric_at_most(drop, uncut, listed, num, level).upper
            missed["ours"][i] += upper < true
            if spread > 0:
                margins[i].append((upper - drop) / (NormalDist().inv_cdf(1 - level) * spread))
    wide = [sorted(m)[len(m) // 2] if m else None for m in margins]
    return {**_shares(missed, repetitions), "width": wide}


# -- several rounds ---------------------------------------------------------------------------------------------------------

NUM_BRANCHES, MOST_ROUNDS = 3, 6
# Which true drops the candidates have: each after those verdicts its own, fixed before anything is drawn.
TREES = ("all just above the budget", "anything from 0 to twice the budget", "one more layer each time")
RULES = ("plain", "every round at the full level", "paid")


def true_drop(tree: str, world: int, verdicts: tuple[bool, ...]) -> float:
    """Of the candidate that is tested after these verdicts, in one of many worlds."""
    generator = random.Random(f"{tree} {world} {verdicts}")
    if tree == "all just above the budget":
        return BUDGET * 1.0001
    if tree == "one more layer each time":
        return BUDGET * (0.25 * (1 + verdicts.count(True)) + 0.3 * generator.random())
    return 2 * BUDGET * generator.random()


def count_rounds(tree: str, num: int, repetitions: int) -> dict[str, Any]:
    """Share of runs in which a candidate was accepted whose true drop is above the budget; and rounds accepted on average."""
    wrong, accepted = dict.fromkeys(RULES, 0), dict.fromkeys(RULES, 0)
    levels = TestLevels(LEVELS[0], NUM_BRANCHES)
    for repetition in range(repetitions):
        for rule in RULES:
            generator, verdicts, bad = random.Random(f"{tree} {num} {repetition}"), (), False
            while len(verdicts) < MOST_ROUNDS and verdicts.count(False) < NUM_BRANCHES:
                drop = true_drop(tree, repetition, verdicts)
                worse, better = counts(num, 0.05, drop, generator)
                if rule == "plain":
                    holds = (worse - better) / num <= BUDGET
                else:
                    level = levels.next(verdicts) if rule == "paid" else LEVELS[0]
                    holds = rejects(num, worse, better, level, BUDGET)
                bad = bad or (holds and drop > BUDGET)
                verdicts = (*verdicts, holds)
            wrong[rule] += bad
            accepted[rule] += sum(verdicts)
    return {rule: {"wrong": wrong[rule] / repetitions, "rounds": accepted[rule] / repetitions} for rule in RULES}


# -- the page ---------------------------------------------------------------------------------------------------------------


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _rows(found: dict[str, Any], kind: str) -> list[list[str]]:
    rows = []
    for name, cell in found.items():
        if not name.startswith(f"{kind}-"):
            continue
        _, case, size = name.split("-", 2)
        sides = [" / ".join(map(_percent, cell[side])) for side in ("usual", "ours")]
        row = [case, f"{int(size):,}", _percent(cell["plain"]), *sides]
        if "width" in cell:
            row.append(" / ".join("" if wide is None else f"{wide:.2f}" for wide in cell["width"]))
        rows.append(row)
    return rows


def _write(folder: Path, settings: dict[str, Any], found: dict[str, Any]) -> None:
    levels = " / ".join(_percent(level) for level in LEVELS)
    spread = 200 * math.sqrt(LEVELS[0] * (1 - LEVELS[0]) / settings["repetitions"])
    sections = [
        (
            "0/1 outcomes: the exact test",
            f"The true drop is {BUDGET:g}. The usual bound is the normal one (Wald).\n\n"
            + table(["disagreement", "n", "plain", f"usual, {levels}", f"ours, {levels}"], _rows(found, "shares")),
        ),
        (
            "Means: Student's t, corrected for skewness",
            "The usual bound is Student's. The cases say what the differences of the two models are like. The library asks for "
            f"{MIN_UNITS['examples']} examples or {MIN_UNITS['batches']} batches at least.\n\n"
            + table(["differences", "n", "plain", f"usual, {levels}", f"ours, {levels}"], _rows(found, "means")),
        ),
        (
            "Metrics of the whole set: paired bootstrap",
            "The usual bound is the percentile. The width is the median distance of our bound from the measured drop, in those of "
            "a normal bound with the bootstrap's standard error: what the coverage costs.\n\n"
            + table(["metric", "n", "plain", f"usual, {levels}", f"ours, {levels}", "width"], _rows(found, "metrics")),
        ),
        (
            "Several rounds on one judging set",
            f"Runs of up to {MOST_ROUNDS} rounds that end with the third rejection, two models disagreeing on 5 % of the "
            f"examples, budget {BUDGET:g}, confidence {1 - LEVELS[0]:g}. In how many of 100 runs a candidate was accepted "
            "whose true drop is above the budget, and how many rounds were accepted on average.\n\n"
            + table(
                ["candidates", "n", *(f"{rule}: wrong, % (rounds)" for rule in RULES)],
                [
                    [
                        name.split("-")[1],
                        f"{int(name.split('-')[2]):,}",
                        *(f"{_percent(cell[rule]['wrong'])} ({cell[rule]['rounds']:.2f})" for rule in RULES),
                    ]
                    for name, cell in found.items()
                    if name.startswith("rounds-")
                ],
            ),
        ),
    ]
    worst = {
        kind: max(cell["ours"][0] for name, cell in found.items() if name.startswith(f"{kind}-"))
        for kind in ("shares", "means", "metrics")
    }
    title = (
        "How often a bound of the drop is too low\n\nIn how many of 100 repetitions a bound is below the true drop, at levels of "
        f"{levels} %. *plain*: in how many the measured drop is below it, so that a comparison of measured values keeps a cut that "
        f"is just too bad. {settings['repetitions']:,} repetitions: at a level of 5 % a figure is sure to about "
        f"{spread:.1f} points (two standard errors)."
    )
    write_page(folder, title, settings, {"cells": found, "worst": worst}, sections, [])


if __name__ == "__main__":
    main()
