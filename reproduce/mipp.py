"""MIPP (Westphal, Hailes & Musolesi, arXiv 2411.00147) on digits: an MLP and a small CNN, before and after training.

    python reproduce/mipp.py

Neurons and channels are masked until a fraction is gone, and the network is trained (again). `mipp` (Gaussian), `cka`, `l1`
and `random` take the same fraction of each layer. `l1_global` ranks the neurons of all layers in one list, and
`mipp_global` raises one criterion for all layers until the fraction is met: what each layer loses is theirs to say, so
that layers can collapse. The MLP is also pruned by `mipp_neural`, the paper's estimator, whose criterion says how much
goes. Finished cells in --output_dir are not computed again.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
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

from hf_mpruner.width import NeuronInputs, find_neuron_criterion, sweep_layers
from hf_mpruner.width.masks import PlainLayer, layer_inputs, mask_neurons, widths
from hf_mpruner.width.mutual_information import GaussianMIPP
from hf_mpruner.width.neural import NeuralMIPP, Predictors

METHODS = ("mipp", "cka", "l1", "random", "mipp_global", "l1_global")
# What no cell depends on.
NOT_SETTINGS = ("output_dir", "processes", "seeds", "neural_seeds")
KINDS = ("mlp", "cnn")
# With `mipp_neural` at the widths that it chose.
RIVALS = ("mipp", "cka", "l1", "random")
WHENS = ("after training", "before training")
# Cell name to what each amount gave.
Found = dict[str, list[dict[str, Any]]]
INTRO = """`python reproduce/mipp.py` wrote this page. Figures are the mean and, in brackets, the smallest and largest over
{seeds} seeds ({neural_seeds} of `mipp_neural`).

Other than in the paper: scikit-learn's digits (1,797 images of 8 x 8) in place of MNIST and CIFAR, so an MLP of hidden
layers of {mlp} neurons and a CNN of {cnn} channels and {dense} neurons; the Gaussian estimator unless said otherwise;
activations of all {train} training images; and a channel is one variable of {grid} x {grid} averaged positions. How the
paper holds back what each layer may lose is not published. So `mipp` takes the same fraction of each layer, in the order
of MIPP, as `cka`, `l1` and `random` do; and `mipp_global` shows what one criterion for all layers does with nothing held
back but each layer's last neuron, which every method leaves."""


def build(kind: str, settings: Mapping[str, Any]) -> tuple[nn.Sequential, list[PlainLayer]]:
    """A network and its layers whose neurons may go."""
    modules: list[nn.Module] = []
    layers: list[PlainLayer] = []

    def add(layer: nn.Module, *after: nn.Module) -> None:
        layers.append(PlainLayer(str(len(modules)), str(len(modules) + len(after))))
        modules.extend([layer, *after])

    if kind == "mlp":
        modules.append(nn.Flatten())
        inputs, dense = 64, settings["mlp"]
    else:
        channels, side = 1, 8
        for i, width in enumerate(settings["cnn"]):
            add(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if i else []))
            channels, side = width, side // 2 if i else side
        modules.append(nn.Flatten())
        inputs, dense = channels * side * side, settings["dense"]
    for width in dense:
        add(nn.Linear(inputs, width), nn.ReLU())
        inputs = width
    modules.append(nn.Linear(inputs, 10))
    return nn.Sequential(*modules), layers


def share_of_parameters(kind: str, left: Mapping[str, int], settings: Mapping[str, Any]) -> float:
    """What a network of the widths that are left has of the parameters, were masked neurons taken out."""
    now, convolutions = list(left.values()), len(settings["cnn"])
    narrow = {"mlp": now} if kind == "mlp" else {"cnn": now[:convolutions], "dense": now[convolutions:]}
    sizes = [sum(p.numel() for p in build(kind, {**settings, **given})[0].parameters()) for given in (narrow, {})]
    return sizes[0] / sizes[1]


def mask_all(model: nn.Module, gone: Mapping[str, torch.Tensor | list[int]]) -> None:
    """Mask neurons of several layers."""
    for name, neurons in gone.items():
        mask_neurons(model.get_submodule(name), neurons)


def lowest_of_all(values: Mapping[str, torch.Tensor], number: int) -> dict[str, list[int]]:
    """The lowest of all layers in one list; one neuron of each layer stays."""
    listed = sorted((float(value), name, i) for name, of in values.items() for i, value in enumerate(of))
    gone: dict[str, list[int]] = {name: [] for name in values}
    for _, name, neuron in listed:
        if number and len(gone[name]) < len(values[name]) - 1:
            gone[name].append(neuron)
            number -= 1
    return gone


def least_informative(inputs: Sequence[NeuronInputs], number: int, bisections: int) -> dict[str, torch.Tensor]:
    """By MIPP, with the lowest criterion (in nats, the same for all layers) by which `number` neurons or more go."""

    def at(threshold: float) -> dict[str, torch.Tensor]:
        criterion = GaussianMIPP(threshold=threshold, max_fraction=1.0)
        return {name: order.order for name, order in sweep_layers(criterion, inputs).items()}

    low, high = 0.0, 0.01
    while sum(map(len, at(high).values())) < number and high < 1e3:
        low, high = high, 4 * high
    for _ in range(bisections):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(map(len, at(middle).values())) < number else (low, middle)
    return at(high)


def prune(
    model: nn.Module,
    layers: Sequence[PlainLayer],
    method: str,
    amount: float | Mapping[str, int],
    x: torch.Tensor,
    seed: int,
    settings: Mapping[str, Any],
) -> None:
    """Mask neurons by one method: a fraction, a number of each layer, or of `mipp_neural` as its confidence says."""
    inputs = layer_inputs(model, layers, x.split(500), settings["grid"], seed)
    if isinstance(amount, Mapping):
        orders = sweep_layers(find_neuron_criterion(method), inputs, amount)
        mask_all(model, {name: order.order for name, order in orders.items()})
        return
    number = round(amount * sum(one.num_neurons for one in inputs))
    if method == "mipp_global":
        mask_all(model, least_informative(inputs, number, settings["bisections"]))
    elif method == "mipp_neural":
        fit = Predictors(**{k.removeprefix("fit_"): v for k, v in settings.items() if k.startswith("fit_")})
        orders = sweep_layers(NeuralMIPP(amount, fit, max_fraction=1.0), inputs)
        mask_all(model, {name: order.order for name, order in orders.items()})
    elif not method.endswith("_global"):
        numbers = {one.layer: min(round(amount * one.num_neurons), one.num_neurons - 1) for one in inputs}
        prune(model, layers, method, numbers, x, seed, settings)
    else:
        criterion = find_neuron_criterion(method.removesuffix("_global"))
        mask_all(model, lowest_of_all({one.layer: criterion.order(one).values for one in inputs}, number))


def run(
    kind: str, when: str, seed: int, method: str, amounts: Sequence[float], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One seed by one method: for each amount what went and the accuracies."""
    train, _, test = digits.load(settings["train"], settings["validation"])

    def fit(model: nn.Module, epochs: int) -> float:
        torch.manual_seed(seed)
        digits.train(model, train, epochs, settings["batch_size"], settings["learning_rate"])
        return digits.evaluate(model, test)[1]

    torch.manual_seed(seed)
    whole, layers = build(kind, settings)
    after = when == "after training"
    uncut = fit(whole, settings["epochs"]) if after else fit(copy.deepcopy(whole), settings["epochs"])
    again = settings["epochs_again"] if after else settings["epochs"]
    full, found = widths(whole, layers), []

    def rival(name: str, left: Mapping[str, int]) -> float:
        model = copy.deepcopy(whole)
        prune(model, layers, name, {key: full[key] - left[key] for key in full}, train.x, seed, settings)
        return fit(model, again)

    for amount in amounts:
        model = copy.deepcopy(whole)
        started = time.perf_counter()
        prune(model, layers, method, amount, train.x, seed, settings)
        seconds = time.perf_counter() - started
        left = widths(model, layers)
        found.append(
            {
                "amount": amount,
                "uncut": uncut,
                "left": left,
                "sparsity": 1 - sum(left.values()) / sum(full.values()),
                "parameters": share_of_parameters(kind, left, settings),
                "smallest": min(left[name] / full[name] for name in full),
                "neurons_in_smallest": min(left.values()),
                "before": digits.evaluate(model, test)[1],
                "accuracy": fit(model, again),
                "seconds": seconds,
                "rivals": {name: rival(name, left) for name in RIVALS} if method == "mipp_neural" else {},
            }
        )
    return found


def judge(found: Found, settings: Mapping[str, Any]) -> list[Claim]:
    """What of the paper is seen, from the figures."""
    seeds = range(settings["seeds"])
    least = min(0.7, max(settings["sparsities"]))
    high = [i for i, amount in enumerate(settings["sparsities"]) if amount >= least]
    claims = []

    def gaps(kind: str, when: str, method: str, other: str, key: str) -> list[float]:
        def mean(method: str, seed: int) -> float:
            return statistics.fmean(found[cell(kind, when, seed, method)][i][key] for i in high)

        return [mean(method, seed) - mean(other, seed) for seed in seeds]

    def claim(says: str, differences: list[float]) -> None:
        points = f"{100 * statistics.fmean(differences):+.1f} points on average over {len(differences)} seeds"
        claims.append(Claim(says, points, verdict(differences)))

    for kind in KINDS:
        for when in WHENS:
            place = f"{kind}, pruned {when}, {100 * least:.0f} % and more gone"
            for other in METHODS[1:]:
                note = "" if other in ("l1", "l1_global") else "Not in the paper: "
                if other != "mipp_global":
                    differences = gaps(kind, when, "mipp", other, "accuracy")
                    claim(f"{note}`mipp` keeps more accuracy than `{other}`: {place}", differences)
            claim(
                f"MIPP resists layer collapse by its criterion alone: `mipp_global` leaves a larger share of the smallest "
                f"layer than `l1_global`, {place}",
                gaps(kind, when, "mipp_global", "l1_global", "smallest"),
            )
    for when in WHENS:
        cells = [found[cell("mlp", when, seed, "mipp_neural")] for seed in range(settings["neural_seeds"])]
        for other in RIVALS:
            note = "" if other == "l1" else "Not in the paper: "
            claim(
                f"{note}`mipp_neural` keeps more accuracy than `{other}` at the widths that it chose: mlp, pruned {when}",
                [statistics.fmean(at["accuracy"] - at["rivals"][other] for at in one) for one in cells],
            )
        words = f"A confidence of {settings['confidences'][-1]} removes more than one of {settings['confidences'][0]}"
        claim(
            f"{words} (`mipp_neural`, {when}), neurons removed",
            [one[-1]["sparsity"] - one[0]["sparsity"] for one in cells],
        )
    return claims


def cell(kind: str, when: str, seed: int, method: str) -> str:
    """The name of a cell."""
    return f"{kind}-{when.partition(' ')[0]}-seed{seed}-{method}"


def section(
    folder: Path, kind: str, when: str, found: Found, settings: Mapping[str, Any]
) -> tuple[str, str, dict[str, Any]]:
    """Heading, Markdown and figures of one network, pruned at one time; draws its plots."""
    methods = [*METHODS, *(["mipp_neural"] if kind == "mlp" else [])]
    rows, figures, curves = [], {}, {"accuracy": {}, "smallest": {}}  # type: ignore[var-annotated]
    for method in methods:
        seeds = settings["neural_seeds" if method == "mipp_neural" else "seeds"]
        cells = [found[cell(kind, when, seed, method)] for seed in range(seeds)]
        figures[method] = [
            {"amount": of[0]["amount"], "left": [one["left"] for one in of]} for of in zip(*cells, strict=True)
        ]
        for i, of in enumerate(zip(*cells, strict=True)):
            values = {
                key: [one[key] for one in of] for key in ("sparsity", "parameters", "before", "accuracy", "smallest")
            }
            figures[method][i] |= {key: spread(of_key) for key, of_key in values.items()}
            least = in_words([one["neurons_in_smallest"] for one in of], percent=False)
            asked = f"confidence {of[0]['amount']}" if method == "mipp_neural" else f"{100 * of[0]['amount']:.0f} %"
            seconds = in_words([one["seconds"] for one in of], percent=False)
            shown = [in_words(values[key]) for key in ("sparsity", "parameters", "before", "accuracy", "smallest")]
            rows.append([method, asked, *shown, least, seconds])
            place = 100 * statistics.fmean(values["sparsity"])
            for key, curve in curves.items():
                curve.setdefault(method, {})[place] = [100 * value for value in values[key]]
    name = f"{kind}_{when.partition(' ')[0]}"
    titles = {"accuracy": "test accuracy, %", "smallest": "neurons left of the smallest layer, %"}
    pictures = ""
    for key, curve in curves.items():
        plot_lines(folder / f"{name}_{key}.png", curve, ("neurons removed, %", titles[key]), f"{kind}, pruned {when}")
        pictures += f"\n![{titles[key]}]({name}_{key}.png)"
    rivals = ""
    if kind == "mlp":
        cells = [found[cell(kind, when, seed, "mipp_neural")] for seed in range(settings["neural_seeds"])]
        lines = [
            [of[0]["amount"], in_words([one["sparsity"] for one in of]), in_words([one["accuracy"] for one in of])]
            + [in_words([one["rivals"][name] for one in of]) for name in RIVALS]
            for of in zip(*cells, strict=True)
        ]
        rivals = "Accuracy at the widths that `mipp_neural` chose, %:\n\n"
        rivals += table(["confidence", "removed, %", "mipp_neural", *RIVALS], lines) + "\n"
    uncut = in_words([found[cell(kind, when, seed, "mipp")][0]["uncut"] for seed in range(settings["seeds"])])
    heads = ["method", "asked", "removed, %", "parameters left, %", "accuracy untrained, %", "accuracy, %"]
    heads += ["smallest layer, % left", "its neurons", "seconds to choose"]
    return f"{kind}, pruned {when}", f"Uncut: {uncut} %.\n\n{table(heads, rows)}\n\n{rivals}{pictures}", figures


def main() -> None:
    """Compute what is missing, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "mipp")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--neural_seeds", type=int, default=3, help="of mipp_neural, which takes longest")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.7, 0.8, 0.9])
    parser.add_argument("--confidences", type=float, nargs="+", default=[0.5, 0.95, 0.99], help="of mipp_neural")
    parser.add_argument("--mlp", type=int, nargs="+", default=[64, 32], help="hidden neurons")
    parser.add_argument("--cnn", type=int, nargs="+", default=[16, 32, 32], help="channels")
    parser.add_argument("--dense", type=int, nargs="+", default=[64], help="hidden neurons behind the channels")
    parser.add_argument("--grid", type=int, default=2, help="positions of a channel that MIPP sees, in each direction")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--epochs_again", type=int, default=14, help="after pruning a trained network")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument(
        "--train", type=int, default=1000, help="images to train on; the rest but --validation is the test"
    )
    parser.add_argument("--validation", type=int, default=0)
    parser.add_argument("--bisections", type=int, default=10, help="to find the criterion that meets a fraction")
    parser.add_argument("--fit_hidden", type=int, nargs="+", default=[64], help="hidden layers of the predictors")
    parser.add_argument("--fit_epochs", type=int, default=200, help="of their first fit, at most")
    parser.add_argument("--fit_epochs_per_neuron", type=int, default=20)
    parser.add_argument("--fit_patience", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as the processes that compute the cells have it
    settings = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    jobs = {}
    for kind in KINDS:
        for when in WHENS:
            for seed in range(args.seeds):
                for method in METHODS:
                    job = (kind, when, seed, method, args.sparsities, settings)
                    jobs[cell(kind, when, seed, method)] = (run, job)
                if kind == "mlp" and seed < args.neural_seeds:
                    job = (kind, when, seed, "mipp_neural", args.confidences, settings)
                    jobs[cell(kind, when, seed, "mipp_neural")] = (run, job)
    found = compute_all(Cells(args.output_dir, settings), jobs, args.processes)
    settings |= {"seeds": args.seeds, "neural_seeds": args.neural_seeds}
    parts = [section(args.output_dir, kind, when, found, settings) for kind in KINDS for when in WHENS]
    results = {heading: figures for heading, _, figures in parts}
    title = "MIPP: neurons and channels by mutual information\n\n" + INTRO.format(**settings)
    sections = [(heading, text) for heading, text, _ in parts]
    write_page(args.output_dir, title, settings, results, sections, judge(found, settings))
    print((args.output_dir / "table.md").read_text())


if __name__ == "__main__":
    main()
