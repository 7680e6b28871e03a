"""Wanda on the original and on the layer-pruned model (arXiv 2408.13482, Tables 7 and 9, Figure 4).

    python reproduce/wanda.py --subject text
    python reproduce/wanda.py --subject resnet

A model is trained and cut once and once more (all layers recover, or only those beside the cuts), and in each of the five a
fraction of the weights is set to zero, without training after: 0.1 to 0.5 as in the paper, and on to 0.8, where it hurts; by
Wanda, by magnitude for comparison, and 2:4. With `--model` and `--data` the text model is one of your own.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections import defaultdict
from typing import Any

from mpruner import Experiment
from papers import Claim, add_arguments, in_words, plot_lines, table, write_page
from subjects import add_subject, evaluate, make_subject

from hf_mpruner import sparsify_

CALIBRATION = 128
# Of the paper's tables; what is above is ours.
PAPER = (0.1, 0.2, 0.3, 0.4, 0.5)
WAYS = (("wanda", "unstructured"), ("magnitude", "unstructured"), ("wanda", "2:4"), ("magnitude", "2:4"))


class Sweep(Experiment):
    """The models of `mpruner.py` at one threshold with k = 1, and zeros in each of them."""

    def models(self, seed: int) -> dict[str, tuple[list[Any], str]]:
        """Name -> the cuts that lead to it, and its key."""
        found: dict[str, tuple[list[Any], str]] = {"original": ([("o", None, False)], "o")}
        for freeze in (False, True):
            chain: list[Any] = [("o", None, False)]
            for iteration in range(1, self.args.iterations + 1):
                kept, removed = self._plan(seed, self.args.preset, self.args.threshold, 1, chain)
                if not removed:
                    break
                chain = [*chain, self._next(chain, kept, freeze)]
                self._cut(seed, chain)
                found[f"iteration {iteration}{', frozen' if freeze else ''}"] = (chain, chain[-1][0])
        return found

    def zeros(
        self, seed: int, key: str, chain: list[Any], method: str, pattern: str, sparsity: float
    ) -> dict[str, Any]:
        """Accuracy, loss and time with so many zeros."""

        def run() -> dict[str, Any]:
            model = copy.deepcopy(self._model(seed, key, chain))
            report = None
            if sparsity:
                report = sparsify_(
                    model, sparsity, method=method, pattern=pattern, calibration=self.subject.data["train"],
                    processing_class=self.subject.processing_class, num_samples=CALIBRATION, batch_size=32,
                    stacks=self.subject.paths,
                )  # fmt: skip
            achieved = (
                {}
                if report is None
                else {"zeros": report.sparsity, "passes": report.passes, "zeroing": report.seconds}
            )
            return {**evaluate(model, self.subject), **achieved}

        way = f"{method}-{pattern.replace(':', 'of')}-{sparsity:g}" if sparsity else "dense"
        return self.cells.get(f"s{seed}-{key}-{way}", run)


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "wanda")
    add_subject(parser)
    parser.set_defaults(subject="text")
    parser.add_argument("--threshold", type=float, default=0.98, help="of the cuts (paper: 0.98)")
    parser.add_argument("--preset", choices=("paper", "default"), default="default", help="how layers are compared")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[*PAPER, 0.6, 0.7, 0.8])
    parser.add_argument("--recovery_epochs", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    args.gamma = None  # nothing is rejected: the paper's tables show all
    one = Sweep(make_subject(args), args)
    rows = []
    for seed in range(args.seeds):
        one.original(seed)
        for name, (chain, key) in one.models(seed).items():
            rows.append({"seed": seed, "model": name, "method": "none", "pattern": "", "sparsity": 0.0,
                         **one.zeros(seed, key, chain, "", "", 0.0)})  # fmt: skip
            for method, pattern in WAYS:
                for sparsity in args.sparsities if pattern == "unstructured" else [0.5]:
                    found = one.zeros(seed, key, chain, method, pattern, sparsity)
                    rows.append(
                        {
                            "seed": seed,
                            "model": name,
                            "method": method,
                            "pattern": pattern,
                            "sparsity": sparsity,
                            **found,
                        }
                    )
    _write(one, rows)
    print(f"{one.cells.seconds / 60:.1f} minutes of cells; see {one.folder / 'table.md'}")


def _write(one: Sweep, rows: list[Any]) -> None:
    names = list(dict.fromkeys(row["model"] for row in rows))
    sections = []
    for method, pattern in (*WAYS[:2], (None, "2:4")):
        some = [
            row for row in rows if row["method"] == "none" or (row["pattern"] == pattern and method in (None, row["method"]))
        ]  # fmt: skip
        series: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in some:
            series[row["model"]][row["sparsity"]].append(100 * row["accuracy"])
        heading = f"{method}, unstructured" if method else "2:4"
        text = _table(some, names)
        if method:
            plot_lines(one.folder / f"{method}.png", series, ("share of zeros", "accuracy on test, %"), heading)
            text += f"\n\n![accuracy by sparsity]({method}.png)"
        sections.append((heading, text))
    title = (
        f"Wanda after MPruner on {one.settings['model']}\n\n"
        "After arXiv 2408.13482, Tables 7 and 9 and Figure 4: zeros without training after. Different from the paper: a small "
        f"model; zeros are placed by {CALIBRATION} training examples, layers by `validation`; the evaluation is timed as forward "
        "passes over `test`, the quickest of three. `a (b-c)`: mean, smallest and largest over seeds."
    )
    settings = {**one.settings, "threshold": one.args.threshold, "preset": one.args.preset, "seeds": one.args.seeds}
    write_page(one.folder, title, settings, {"rows": rows}, sections, _claims(rows))


def _table(rows: list[Any], names: list[str]) -> str:
    groups: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for row in rows:
        groups[names.index(row["model"]), row["sparsity"], row["method"]].append(row)
    lines = [
        [names[number], in_words([sum(row["layers"].values()) for row in some], False), method,
         f"{sparsity:g}", f"{statistics.fmean(row.get('zeros', 0.0) for row in some):.4f}",
         in_words([row["accuracy"] for row in some]), in_words([row["loss"] for row in some], False, 3),
         in_words([row["eval_seconds"] for row in some], False, 3)]
        for (number, sparsity, method), some in sorted(groups.items())
    ]  # fmt: skip
    return table(["model", "layers", "method", "sparsity", "zeros", "accuracy, %", "loss", "evaluation, s"], lines)


def _claims(rows: list[Any]) -> list[Claim]:
    dense = {(row["seed"], row["model"]): row for row in rows if row["method"] == "none"}
    wanda = [row for row in rows if (row["method"], row["pattern"]) == ("wanda", "unstructured")]
    inside = [row for row in wanda if row["sparsity"] <= max(PAPER)]

    def drops(some: list[Any]) -> list[float]:
        return [dense[row["seed"], row["model"]]["accuracy"] - row["accuracy"] for row in some]

    pruned = [row for row in inside if row["model"] != "original"]
    whole = [row for row in inside if row["model"] == "original"]
    claims = []
    if pruned:
        claims.append(Claim(
            "Figure 4, Table 7: up to 0.5 the pruned models lose no more by zeros than the original (within a point)",
            f"mean drop in points: original {in_words(drops(whole))}, pruned {in_words(drops(pruned))}",
            statistics.fmean(drops(pruned)) <= statistics.fmean(drops(whole)) + 0.01,
        ))  # fmt: skip
        share = [row["eval_seconds"] / _same(wanda, row, "original")["eval_seconds"] for row in pruned]
        claims.append(Claim(
            "Table 7: with fewer layers Wanda's model is evaluated faster than Wanda's original",
            f"evaluation time {in_words(share)} % of the original's at the same sparsity", statistics.fmean(share) < 0.95,
        ))  # fmt: skip
    time = [row["eval_seconds"] / dense[row["seed"], row["model"]]["eval_seconds"] for row in inside]
    claims.append(Claim(
        "Experiments section: the zeros further decrease inference time",
        f"evaluation time with zeros {in_words(time)} % of the same model's without", statistics.fmean(time) < 0.95,
    ))  # fmt: skip
    claims.append(Claim(
        "Tables 7 and 9: up to 0.5 the original keeps its accuracy within a point",
        f"largest drop in points: {100 * max(drops(whole)):.1f}", max(drops(whole)) <= 0.01,
    ))  # fmt: skip
    beyond = [row for row in rows if row["pattern"] == "unstructured" and row["sparsity"] >= max(PAPER)]
    by = {method: drops([row for row in beyond if row["method"] == method]) for method in ("wanda", "magnitude")}
    if all(by.values()):
        claims.append(Claim(
            "Sun et al. 2024: Wanda loses less than magnitude (here from 0.5 on, all models)",
            f"mean drop in points: wanda {in_words(by['wanda'])}, magnitude {in_words(by['magnitude'])}",
            statistics.fmean(by["wanda"]) <= statistics.fmean(by["magnitude"]),
        ))  # fmt: skip
    return claims


def _same(rows: list[Any], row: dict[str, Any], model: str) -> dict[str, Any]:
    return next(
        one for one in rows if one["model"] == model and all(one[name] == row[name] for name in ("seed", "sparsity"))
    )


if __name__ == "__main__":
    main()
