"""Higgins 2023, "Representation Aware Pruning with Centered Kernel Alignment", on digits: CKA against L1 over 15 rounds.

    python reproduce/higgins.py

A network of two hidden layers of 512 neurons with dropout is trained; then a fifth of the neurons that are left in each
layer is masked and the network is trained again, 15 times, by each of four ways to choose: `cka`, the greedy search of
the paper's text in closed form on activations after ReLU; `cka_published`, what the published code does (one ranking, on
activations before ReLU); `l1`; and `random`. Finished cells in --output_dir are not computed again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import digits
import torch
from papers import (
    Cells,
    Claim,
    add_arguments,
    compute_all,
    in_words,
    plot_lines,
    spread,
    table,
    verdict,
    write_page,
)
from torch import nn

from hf_mpruner.width import find_neuron_criterion
from hf_mpruner.width.masks import PlainLayer, mask_by_criterion, widths
from hf_mpruner.width.schedule import prune_in_rounds

METHODS = {"cka": "cka", "cka_published": "cka_one_shot", "l1": "l1", "random": "random"}
LINEAR = ("1", "4")
# Cell name to its rounds; and for each seed of a pair of methods, shares by round.
Found = dict[str, list[dict[str, Any]]]
Agreed = list[dict[str, list[float]]]
INTRO = """`python reproduce/higgins.py` wrote this page. Figures are the mean and, in brackets, the smallest and largest over the
seeds, as the paper's error bars.

Other than in the paper: scikit-learn's digits (1,797 images of 8 x 8) in place of MNIST, so 64 inputs, a batch of
{batch_size} (the paper: 512, here two steps an epoch), activations of all {validation} validation images instead
of 512, and {seeds} seeds (the paper: 9). As in the published code a masked neuron keeps its bias, the fraction is of the
neurons that are left, Adam starts fresh in every round, and training ends with the weights it has then."""


def build(hidden: int, dropout: float) -> nn.Sequential:
    """The paper's network: `nn.Linear` at "1" and "4", their ReLU at "2" and "5"."""
    first = [nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*first, nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 10))


def run(seed: int, method: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One seed by one method: what each round removed, and accuracies; the first entry is before any round."""
    train, validation, test = digits.load(settings["train"], settings["validation"])
    torch.manual_seed(seed)
    model = build(settings["hidden"], settings["dropout"])

    def retrain(number: int) -> None:
        torch.manual_seed(1000 * seed + number)
        fit = {name: settings[name] for name in ("epochs", "batch_size", "learning_rate", "patience")}
        epochs.append(digits.train(model, train, validation=validation, **fit))

    epochs: list[int] = []
    # The published code reads the layers' own outputs, without the activation function.
    shift = 0 if method == "cka_published" else 1
    layers = [PlainLayer(name, str(int(name) + shift)) for name in LINEAR]
    criterion = find_neuron_criterion(METHODS[method])

    def prune(numbers: dict[str, int]) -> Mapping[str, Any]:
        draw = 1000 * seed + len(epochs)
        return mask_by_criterion(model, layers, criterion, [validation.x], numbers, bias=False, seed=draw)

    def accuracy() -> dict[str, float]:
        return {"accuracy": digits.evaluate(model, test)[1]}

    retrain(0)
    start = {"round": 0, "removed": {}, "left": widths(model, layers), "accuracy": accuracy()["accuracy"]}
    rounds = prune_in_rounds(widths(model, layers), settings["fraction"], settings["rounds"], prune, retrain, accuracy)
    found = [start]
    for done in rounds:
        removed = {name: list(gone) for name, gone in done.removed.items()}
        both = {"before": done.before["accuracy"], "accuracy": done.after["accuracy"]}
        found.append({"round": done.number, "removed": removed, "left": done.widths, **both})
    return [{**entry, "epochs": count} for entry, count in zip(found, epochs, strict=True)]


def agreement(a: list[dict[str, Any]], b: list[dict[str, Any]], width: int) -> dict[str, list[float]]:
    """Per round, over both layers: shares of neurons that two methods both removed.

    `round`: of those of this round; `so_far`: of those of this and all earlier rounds; `round_by_chance` and
    `so_far_by_chance`: what is expected if the second method drew from those that it has left.
    """
    found: dict[str, list[float]] = {"round": [], "so_far": [], "round_by_chance": [], "so_far_by_chance": []}
    gone_a: dict[str, set[int]] = {name: set() for name in LINEAR}
    gone_b: dict[str, set[int]] = {name: set() for name in LINEAR}
    for one, other in zip(a[1:], b[1:], strict=True):
        values: dict[str, list[float]] = {key: [] for key in found}
        for name in LINEAR:
            now_a, now_b = set(one["removed"][name]), set(other["removed"][name])
            left_b = set(range(width)) - gone_b[name]
            if now_a:
                values["round"].append(len(now_a & now_b) / len(now_a))
                values["round_by_chance"].append(len(now_a & left_b) / len(now_a) * len(now_b) / len(left_b))
            gone_a[name] |= now_a
            gone_b[name] |= now_b
            values["so_far"].append(len(gone_a[name] & gone_b[name]) / max(1, len(gone_a[name])))
            values["so_far_by_chance"].append(len(gone_b[name]) / width)
        for key, kept in found.items():
            # With next to no neurons left a round removes none, and all agree.
            kept.append(statistics.fmean(values[key]) if values[key] else 1.0)
    return found


def compare(claim: str, first: Sequence[float], second: Sequence[float]) -> Claim:
    """A claim that the first is higher, seed by seed."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    measured = f"{100 * statistics.fmean(differences):+.2f} points on average over {len(differences)} seeds"
    return Claim(claim, measured, verdict(differences))


def judge(found: Found, agreed: Agreed, seeds: range, rounds: int) -> list[Claim]:
    """What of the paper is seen, from the figures."""
    third = max(1, rounds // 3)
    early, late = range(1, third + 1), range(rounds - third + 1, rounds + 1)

    def means(method: str, over: range) -> list[float]:
        cells = [found[f"seed{seed}-{method}"] for seed in seeds]
        return [statistics.fmean(cell[i]["accuracy"] for i in over) for cell in cells]

    claims = []
    for method in ("cka", "cka_published"):
        gaps = [[a - b for a, b in zip(means(method, over), means("l1", over), strict=True)] for over in (late, early)]
        claims += [
            compare(
                f"`{method}` keeps more accuracy than `l1` when most neurons are gone (section 4.1): last third of the rounds",
                means(method, late),
                means("l1", late),
            ),
            compare(f"The advantage of `{method}` is larger in the last third of the rounds than in the first", *gaps),
        ]
    claims.append(
        compare(
            "Not in the paper: `cka` keeps more accuracy than `random`, last third of the rounds",
            means("cka", late),
            means("random", late),
        )
    )

    def share(key: str, place: int) -> tuple[float, str]:
        value, chance = (statistics.fmean(one[k][place] for one in agreed) for k in (key, f"{key}_by_chance"))
        return value, f"{100 * value:.0f} %; by chance {100 * chance:.0f} %"

    first, text = share("round", 0)
    claims.append(
        Claim("Around 50 % of the first round's neurons are chosen by both (figure 2)", text, 0.4 <= first <= 0.6)
    )
    if rounds >= 3:
        third_round, text = share("round", 2)
        claims.append(Claim("By the third round this falls to almost 10 %", text, third_round <= 0.15))
    last, text = share("so_far", -1)
    claims.append(Claim("Across all rounds the majority of removed neurons are removed by both", text, last > 0.5))
    return claims


def write_results(
    folder: Path, settings: dict[str, Any], found: Found, agreed: dict[str, Agreed], claims: list[Claim]
) -> None:
    """results.json, table.md and the plots."""
    seeds = range(settings["seeds"])

    def over_seeds(method: str, key: str, number: int) -> list[float]:
        return [found[f"seed{seed}-{method}"][number][key] for seed in seeds]

    numbers = range(settings["rounds"] + 1)
    left = [found["seed0-l1"][number]["left"][LINEAR[0]] for number in numbers]
    accuracies = {
        m: {100 * (1 - n / left[0]): over_seeds(m, "accuracy", i) for i, n in enumerate(left)} for m in METHODS
    }
    plot_lines(
        folder / "accuracy.png",
        {m: {x: [100 * v for v in values] for x, values in points.items()} for m, points in accuracies.items()},
        ("neurons removed, %", "test accuracy, %"),
        "After each round's training: mean, smallest and largest over the seeds",
    )
    for key, name in (("round", "per_round"), ("so_far", "cumulative")):
        lines = {pair: {i + 1: [100 * one[key][i] for one in of] for i in numbers[:-1]} for pair, of in agreed.items()}
        lines["cka_published and l1, by chance"] = {
            i + 1: [100 * one[f"{key}_by_chance"][i] for one in agreed["cka_published and l1"]] for i in numbers[:-1]
        }
        plot_lines(folder / f"agreement_{name}.png", lines, ("round", "removed by both, %"), name.replace("_", " "))

    rows = [[i, left[i], *(in_words(over_seeds(m, "accuracy", i)) for m in METHODS)] for i in numbers]
    untrained = [[i, left[i], *(in_words(over_seeds(m, "before", i)) for m in METHODS)] for i in numbers[1:]]
    keys = ("round", "round_by_chance", "so_far", "so_far_by_chance")
    pairs = [
        [pair, i + 1, *(in_words([one[key][i] for one in of], digits=0) for key in keys)]
        for pair, of in agreed.items()
        for i in numbers[:-1]
    ]
    heads = ["round", "neurons a layer", *METHODS]
    sections = [
        ("Test accuracy after each round's training, %", table(heads, rows) + "\n\n![accuracy](accuracy.png)"),
        ("Test accuracy after pruning, before training, %", table(heads, untrained)),
        (
            "Neurons removed by both, %",
            "`this round`: of those of the round; `so far`: of those of all rounds up to it. By chance: were the second "
            "method's neurons drawn from those that it has left. Two methods that remove nearly all neurons remove nearly "
            "all of them both.\n\n"
            + table(["methods", "round", "this round", "by chance", "so far", "by chance"], pairs)
            + "\n\n![per round](agreement_per_round.png)\n![cumulative](agreement_cumulative.png)",
        ),
    ]
    results = {
        "accuracy": {m: [spread(over_seeds(m, "accuracy", i)) for i in numbers] for m in METHODS},
        "left": left,
        "agreement": {
            pair: {key: [spread([one[key][i] for one in of]) for i in numbers[:-1]] for key in keys}
            for pair, of in agreed.items()
        },
    }
    title = "Greedy CKA pruning of neurons against L1 (Higgins 2023)\n\n" + INTRO.format(**settings)
    write_page(folder, title, settings, results, sections, claims)


def main() -> None:
    """Compute what is missing, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "higgins")
    parser.add_argument("--seeds", type=int, default=9)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--fraction", type=float, default=0.2, help="p of each round, of the neurons that are left")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=50, help="at most, of each training")
    parser.add_argument("--patience", type=int, default=3, help="epochs without a lower validation loss")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument(
        "--train", type=int, default=1000, help="images to train on; the rest but --validation is the test"
    )
    parser.add_argument("--validation", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as the processes that compute the cells have it
    settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "processes", "seeds")}
    seeds = range(args.seeds)
    jobs = {f"seed{seed}-{method}": (run, (seed, method, settings)) for seed in seeds for method in METHODS}
    found = compute_all(Cells(args.output_dir, settings), jobs, args.processes)

    pairs = (("cka", "l1"), ("cka_published", "l1"), ("cka", "cka_published"))
    agreed = {
        f"{a} and {b}": [agreement(found[f"seed{s}-{a}"], found[f"seed{s}-{b}"], args.hidden) for s in seeds]
        for a, b in pairs
    }
    claims = judge(found, agreed["cka_published and l1"], seeds, args.rounds)
    write_results(args.output_dir, settings | {"seeds": args.seeds}, found, agreed, claims)
    print((args.output_dir / "table.md").read_text())


if __name__ == "__main__":
    main()
