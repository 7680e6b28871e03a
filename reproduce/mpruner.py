"""MPruner's tables (arXiv 2408.13482, Tables 3-6 and 8) on models that train in minutes: thresholds, k, freeze or not.

    python reproduce/mpruner.py --subject resnet --seeds 2
    python reproduce/mpruner.py --subject text

From each trained model whole clusters go at each threshold with k = 1, 2, 3, and what is left recovers for
`--recovery_epochs`, all of it or with the untouched layers frozen; then once more from there. Layers are compared by the
paper's protocol (`paper`) and by ours (`default`). Cuts that two settings agree on are trained once. Last, the whole of
Algorithm 1 runs in the Trainer's callback with its limit gamma. With `--model` and `--data` the text model is one of your own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from papers import Cells, Claim, add_arguments, in_words, plot_lines, table, write_page
from subjects import (
    Subject,
    Weights,
    add_subject,
    evaluate,
    make_subject,
    make_trainer,
    matrices_of,
    measure,
    train,
    train_original,
)
from transformers import set_seed

from hf_mpruner import LayerPruningCallback, PruningConfig, PruningPlan, apply_plan_, find_block_stacks, find_clusters
from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.intervals import wilson_interval
from hf_mpruner.recovery import freeze_untouched_, touched_layers

PRESETS = ("paper", "default")
CALIBRATION = 256


class Experiment:
    """All cells of one subject."""

    def __init__(self, subject: Subject, args: argparse.Namespace) -> None:
        self.subject, self.args = subject, args
        folder = args.output_dir / subject.name
        self.settings = {**subject.settings, "recovery_epochs": args.recovery_epochs, "gamma": args.gamma}
        self.cells = Cells(folder, self.settings)
        self.weights = Weights(folder / "weights")
        self.kind = type(subject.build(0))
        self.folder = folder

    def original(self, seed: int) -> dict[str, Any]:
        """The uncut model."""
        return self.cells.get(f"s{seed}-o", lambda: train_original(self.subject, seed, self.weights))

    def longer(self, seed: int) -> dict[str, Any]:
        """The uncut model, trained on for as long as a cut one recovers."""
        return self.cells.get(f"s{seed}-o-longer", lambda: self._recover(seed, "o", None, False, "o-longer"))

    def rows(self, seed: int, preset: str, threshold: float, k: int, freeze: bool) -> Iterable[dict[str, Any]]:
        """One row an iteration, until nothing is alike."""
        chain: list[Any] = [("o", None, False)]
        setting = {"seed": seed, "preset": preset, "threshold": threshold, "k": k, "freeze": freeze}
        for iteration in range(1, self.args.iterations + 1):
            row = {**setting, "iteration": iteration}
            kept, removed = self._plan(seed, preset, threshold, k, chain)
            if not removed:
                yield {**row, "removed": 0}
                return
            row["removed"] = removed
            chain.append(self._next(chain, kept, freeze))
            yield {**row, **self._cut(seed, chain)}

    def algorithm(self, seed: int, preset: str) -> dict[str, Any]:
        """Algorithm 1 in the Trainer: rounds until nothing is alike, or k = 3 is rejected, too."""

        def run() -> dict[str, Any]:
            set_seed(seed)
            model = self._model(seed, "o", [("o", None, False)])
            config = PruningConfig(
                threshold=self.args.algorithm_threshold, preset=preset, max_metric_drop=self.args.gamma, metric="accuracy",
                recovery_epochs=self.args.recovery_epochs, stop_when_done=True, calibration_samples=CALIBRATION,
                learning_rate_policy="restart",
            )  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                rate = self.subject.settings["recovery_rate"]
                trainer = make_trainer(model, self.subject, folder, 10 * self.args.recovery_epochs, rate, seed)
                callback = LayerPruningCallback(trainer, config, calibration=self.subject.data["validation"])
                trainer.add_callback(callback)
                trainer.train()
            rounds = [
                {"k": one.granularity, "layers": sum(map(len, one.kept.values())), "verdict": one.verdict,
                 "accuracy": one.after.metric}
                for one in callback.record.rounds
            ]  # fmt: skip
            return {"rounds": rounds, "stopped": callback.record.stopped, **evaluate(model, self.subject)}

        return self.cells.get(f"s{seed}-algorithm-{preset}-{self.args.algorithm_threshold:g}", run)

    def _next(
        self, chain: list[Any], kept: dict[str, list[int]], freeze: bool
    ) -> tuple[str, dict[str, list[int]], bool]:
        """The model that a cut leads to, named by all cuts before it."""
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:6]
        return f"{chain[-1][0]}.{digest}{'f' if freeze else 'u'}", kept, freeze

    def _plan(
        self, seed: int, preset: str, threshold: float, k: int, chain: list[Any]
    ) -> tuple[dict[str, list[int]], int]:
        """What stays, and how many layers go."""
        key = chain[-1][0]

        def similarity() -> dict[str, Any]:
            model = self._model(seed, key, chain)
            try:
                stacks = find_block_stacks(model)
            except UnsupportedArchitectureError:  # one layer is left in each stack
                return {"seconds": 0.0, "matrices": {}, "pinned": {}}
            pinned = {stack.path: sorted(stack.pinned) for stack in stacks}
            return {**measure(model, self.subject, preset, CALIBRATION), "pinned": pinned}

        found = self.cells.get(f"s{seed}-{key}-similarity-{preset}", similarity)
        kept = {}
        for path, matrix in matrices_of(found).items():
            gone = {layer for cluster in find_clusters(matrix, threshold) for layer in cluster.layers[1::k]}
            gone -= set(found["pinned"][path])
            kept[path] = [layer for layer in range(len(matrix.layers)) if layer not in gone]
        return kept, sum(len(matrix.layers) - len(kept[path]) for path, matrix in matrices_of(found).items())

    def _cut(self, seed: int, chain: list[Any]) -> dict[str, Any]:
        key, kept, freeze = chain[-1]
        parent = chain[-2][0]
        return self.cells.get(f"s{seed}-{key}", lambda: self._recover(seed, parent, kept, freeze, key, chain[:-1]))

    def _recover(
        self, seed: int, parent: str, kept: dict[str, list[int]] | None, freeze: bool, key: str, chain: Any = None
    ) -> dict[str, Any]:
        """Cut, measure as it is, recover, measure, and keep the weights."""
        set_seed(seed)
        model = self._model(seed, parent, chain or [("o", None, False)])
        frozen, before = 0, None
        if kept is not None:
            stacks = find_block_stacks(model)
            apply_plan_(model, PruningPlan.from_kept(kept, stacks))
            before = evaluate(model, self.subject)["accuracy"]
            touched = {s.path: touched_layers(s.depth, kept.get(s.path, list(range(s.depth)))) for s in stacks}
            if freeze:
                undo = freeze_untouched_(model, touched)
                frozen = sum(len(layers) - len(touched[path]) for path, layers in kept.items())
        rate = self.subject.settings["recovery_rate"]
        trained = train(model, self.subject, self.args.recovery_epochs, rate, seed)
        if freeze:
            undo.undo()
        self.weights.save(f"s{seed}-{key}", model)
        return {"kept": kept, "frozen": frozen, "accuracy_before": before, **trained, **evaluate(model, self.subject)}

    def _model(self, seed: int, key: str, chain: Sequence[Any]) -> Any:
        def make() -> None:
            places = [place for place, *_ in chain]
            if key == "o":
                train_original(self.subject, seed, self.weights)
            else:
                number = places.index(key)
                self._recover(seed, places[number - 1], chain[number][1], chain[number][2], key, chain[:number])

        return self.weights.load(f"s{seed}-{key}", self.kind, make)


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "mpruner")
    add_subject(parser)
    parser.add_argument("--thresholds", nargs="+", type=float, default=[0.9, 0.95, 0.98, 0.99])
    parser.add_argument("--granularities", nargs="+", type=int, default=[1, 2, 3], help="the paper's k")
    parser.add_argument("--recovery_epochs", type=int, default=3, help="of the paper: 3")
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--gamma", type=float, default=0.02, help="largest drop that Algorithm 1 accepts (paper, ResNet: 2 %%)"
    )
    parser.add_argument("--algorithm_threshold", type=float, default=0.98)
    parser.add_argument("--no_algorithm", action="store_true", help="leave Algorithm 1 in the Trainer out")
    args = parser.parse_args()
    one = Experiment(make_subject(args), args)
    originals = [one.original(seed) for seed in range(args.seeds)]
    longer = [one.longer(seed) for seed in range(args.seeds)]
    rows = [
        row
        for seed in range(args.seeds)
        for preset in PRESETS
        for threshold in sorted(args.thresholds, reverse=True)
        for k in args.granularities
        for freeze in (False, True)
        for row in one.rows(seed, preset, threshold, k, freeze)
    ]
    presets = () if args.no_algorithm else PRESETS
    algorithm = {preset: [one.algorithm(seed, preset) for seed in range(args.seeds)] for preset in presets}
    _write(one, originals, longer, rows, algorithm)
    print(f"{one.cells.seconds / 60:.1f} minutes of cells; see {one.folder / 'table.md'}")


def _write(
    one: Experiment, originals: list[Any], longer: list[Any], rows: list[Any], algorithm: dict[str, list[Any]]
) -> None:
    groups: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for row in rows:
        groups[row["preset"], row["iteration"], row["k"], row["threshold"], row["freeze"]].append(row)
    depth = sum(originals[0]["layers"].values())
    base = [found["accuracy"] for found in originals]
    sections = [("Uncut", _uncut(originals, longer, depth))]
    sections += [(f"Cut by `{preset}`", _cuts(groups, preset)) for preset in PRESETS]
    if algorithm:
        sections.append(("Algorithm 1 in the Trainer", _algorithm(algorithm)))
    for preset in PRESETS:
        series: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row["preset"] == preset and row["removed"]:
                way = f"k={row['k']}, {'frozen' if row['freeze'] else 'all trains'}"
                series[way][float(sum(row["layers"].values()))].append(100 * row["accuracy"])
        series["uncut"] = {float(depth): [100 * value for value in base]}
        plot_lines(
            one.folder / f"accuracy-{preset}.png", series, ("layers left", "accuracy on test, %"), f"cut by {preset}"
        )
        sections.append((f"Accuracy by depth, `{preset}`", f"![accuracy by layers left](accuracy-{preset}.png)"))
    title = (
        f"MPruner's tables on {one.settings['model']}\n\n"
        "After arXiv 2408.13482, Tables 3-6 and 8. Different from the paper: a small model trained from scratch or from a small "
        "encoder, AdamW with a linear schedule in each recovery, figures of `test` after the last epoch (not the best of three), "
        f"layers chosen on `validation` ({CALIBRATION} examples). `a (b-c)`: mean, smallest and largest over seeds."
    )
    settings = {
        **one.settings,
        **{k: v for k, v in vars(one.args).items() if k in ("thresholds", "granularities", "seeds")},
    }
    results = {"uncut": originals, "longer": longer, "rows": rows, "algorithm": algorithm}
    write_page(
        one.folder,
        title,
        settings,
        results,
        sections,
        _claims(originals, longer, rows, groups, one.settings["test_examples"]),
    )


def _uncut(originals: list[Any], longer: list[Any], depth: int) -> str:
    rows = [
        [name, depth, f"{some[0]['parameters']:,}", in_words([one["accuracy"] for one in some]),
         in_words([one["seconds"] for one in some], percent=False), in_words([one["eval_seconds"] for one in some], False, 2)]
        for name, some in (("trained", originals), ("trained on as long as a recovery", longer))
    ]  # fmt: skip
    return table(["", "layers", "parameters", "accuracy, %", "training, s", "evaluation, s"], rows)


def _cuts(groups: dict[tuple[Any, ...], list[Any]], preset: str) -> str:
    rows = []
    for (found, iteration, k, threshold, freeze), some in sorted(groups.items(), key=lambda item: _order(item[0])):
        if found != preset:
            continue
        cut = [row for row in some if row["removed"]]
        head = [iteration, k, threshold, "yes" if freeze else "no"]
        if not cut:
            rows.append([*head, "nothing is alike", *[""] * 7])
            continue
        rows.append([
            *head, in_words([sum(row["layers"].values()) for row in cut], False), f"{statistics.fmean(row['parameters'] for row in cut):,.0f}",
            in_words([row["accuracy_before"] for row in cut]), in_words([row["accuracies"][0] for row in cut]),
            in_words([row["accuracy"] for row in cut]), in_words([row["seconds"] for row in cut], False),
            in_words([row["eval_seconds"] for row in cut], False, 2), in_words([row["frozen"] for row in cut], False),
        ])  # fmt: skip
    header = ["iteration", "k", "threshold", "freeze", "layers", "parameters", "as cut, %", "after 1 epoch, %", "after all, %",
              "recovery, s", "evaluation, s", "frozen layers"]  # fmt: skip
    return table(header, rows)


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    preset, iteration, k, threshold, freeze = key
    return (preset, iteration, k, -threshold, freeze)


def _algorithm(found: dict[str, list[Any]]) -> str:
    rows = []
    for preset, runs in found.items():
        for seed, run in enumerate(runs):
            rounds = "; ".join(f"k={one['k']}: {one['layers']} layers, {one['verdict']}" for one in run["rounds"])
            layers = sum(run["layers"].values())
            rows.append([preset, seed, rounds or "none", layers, f"{100 * run['accuracy']:.1f}", run["stopped"]])
    return table(["protocol", "seed", "rounds", "layers in the end", "accuracy, %", "stopped, since"], rows)


def _claims(originals: list[Any], longer: list[Any], rows: list[Any], groups: Any, num_test: int) -> list[Claim]:
    base = {seed: one["accuracy"] for seed, one in enumerate(originals)}
    first = [row for row in rows if row["removed"] and row["iteration"] == 1]
    claims = []
    for preset in PRESETS:
        by = {
            key: statistics.fmean(row["removed"] for row in some) for key, some in groups.items()
            if key[0] == preset and key[1] == 1 and not key[4]
        }  # fmt: skip
        for k in sorted({key[2] for key in by}):
            counts = [by[key] for key in sorted(by, key=lambda key: -key[3]) if key[2] == k]
            if k == 1 and len(counts) > 1:
                agrees = all(low <= high for low, high in pairwise(counts))
                shown = ", ".join(f"{count:g}" for count in counts)
                claims.append(Claim(
                    f"Tables 4-6: a lower threshold removes more layers (k=1, by {preset})",
                    f"removed from the highest threshold to the lowest: {shown}", agrees,
                ))  # fmt: skip
        found = [
            base[row["seed"]] - row["accuracy"]
            for row in first
            if row["preset"] == preset and row["k"] == 1 and row["threshold"] >= 0.98
        ]
        claims.append(Claim(
            f"Tables 1 and 6: at 0.98 and 0.99 accuracy is kept within a point after recovery (by {preset})",
            f"drop in points: {in_words(found)}" if found else "no cut at these thresholds",
            statistics.fmean(found) <= 0.01 if found else None,
        ))  # fmt: skip
    claims += _granularity(first, base) + _freezing(rows) + _speed(rows, originals)
    second = [row for row in rows if row["iteration"] == 2 and not row["freeze"]]
    removed = [row["removed"] for row in second]
    claims.append(Claim(
        "Tables 4-6: after recovery a second iteration finds more to remove",
        f"in {sum(map(bool, removed))} of {len(removed)} cases", any(removed) if removed else None,
    ))  # fmt: skip
    return [*claims, *_gain(originals, longer, first, num_test)]


def _gain(originals: list[Any], longer: list[Any], first: list[Any], num_test: int) -> list[Claim]:
    """Does a cut model beat the original by more than chance does on so many examples?"""
    if not first:
        return []
    gain = [after["accuracy"] - before["accuracy"] for before, after in zip(originals, longer, strict=True)]
    best = max(first, key=lambda row: row["accuracy"] - originals[row["seed"]]["accuracy"])
    base = originals[best["seed"]]["accuracy"]
    above = best["accuracy"] - base
    low, high = wilson_interval(base, num_test)
    return [Claim(
        "Tables 1 and 6: a pruned model can beat the original",
        f"the best of {len(first)} cut models {100 * above:+.1f} points ({best['accuracy']:.3f}; 95 % interval of the original "
        f"{low:.3f}-{high:.3f}); the original trained on as long {in_words(gain)}",
        True if best["accuracy"] > high else (None if above > 0 else False),
    )]  # fmt: skip


def _granularity(first: list[Any], base: dict[int, float]) -> list[Claim]:
    """K = 2 beside k = 1 at the same threshold, seed, protocol and freeze."""
    pairs = _pairs(first, "k", 1, 2)
    drops = [[base[row["seed"]] - row["accuracy"] for row in pair] for pair in pairs]
    says = "Table 4: k = 2 keeps more layers and loses less accuracy than k = 1"
    if not pairs:
        return [Claim(says, "no setting has both", None)]
    ones, twos = zip(*drops, strict=True)
    return [Claim(
        says, f"drop in points with k=1 {in_words(ones)}, with k=2 {in_words(twos)} ({len(pairs)} pairs)",
        statistics.fmean(twos) <= statistics.fmean(ones),
    )]  # fmt: skip


def _freezing(rows: list[Any]) -> list[Claim]:
    pairs = _pairs([row for row in rows if row["removed"] and row["iteration"] == 1], "freeze", False, True)
    if not pairs:
        return []
    faster = [frozen["seconds"] / free["seconds"] for free, frozen in pairs]
    worse = [frozen["accuracy"] - free["accuracy"] for free, frozen in pairs]
    return [
        Claim("Table 6: frozen, the same cut recovers in less time", f"frozen / all: {in_words(faster, False, 2)}", statistics.fmean(faster) < 1),
        Claim("Tables 4 and 6: freezing costs no more than a point on average", f"difference in points: {in_words(worse)}", statistics.fmean(worse) >= -0.01),
    ]  # fmt: skip


def _speed(rows: list[Any], originals: list[Any]) -> list[Claim]:
    """Evaluation time goes with the depth."""
    found = [row for row in rows if row["removed"]]
    if not found:
        return []
    depth = sum(originals[0]["layers"].values())
    layers = [sum(row["layers"].values()) / depth for row in found]
    times = [row["eval_seconds"] / originals[row["seed"]]["eval_seconds"] for row in found]
    return [Claim(
        "Tables 4-6: a shallower model is evaluated faster",
        f"layers left {in_words(layers)} %, evaluation time {in_words(times)} % of the uncut model's", statistics.fmean(times) < 0.95,
    )]  # fmt: skip


def _pairs(rows: list[Any], by: str, one: Any, other: Any) -> list[tuple[Any, Any]]:
    """Rows that are alike but in one setting."""
    names = [name for name in ("seed", "preset", "threshold", "k", "freeze", "iteration") if name != by]
    found = {(*(row[name] for name in names), row[by]): row for row in rows}
    return [
        (row, found[*key[:-1], other]) for key, row in found.items() if key[-1] == one and (*key[:-1], other) in found
    ]


if __name__ == "__main__":
    main()
