"""How the analysis' own cost grows: with layers, batch, sequence, width and number of examples, against what is expected.

Run: `python benchmarks/growth.py [--plot growth.png]`. The hooks and the accumulator get block outputs without a model that computes
them, so nothing else is in the time. Exponents are slopes of log time over log size. All sizes of a curve take turns, so
that a busy machine slows all alike. Expected, with L layers, n examples in a batch, T tokens, D features:

- `default` (an example a row): a Gram matrix a layer, n n T D, and L L n n for all pairs, which stays small: 1 in L, T, D and
  the number of examples, between 1 (bytes of the outputs) and 2 (the Gram matrix) in n.
- `paper` (the tokens of an example as rows): a Gram matrix an example and layer, n T T D, and L L n T T for all pairs: 1 in n, between 1 and
  2 in L and T, 1 or less in D, which the pairs do not see.

Less than expected means that a fixed cost was not small beside it at the smallest size.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import torch
from measure import Results, Side, exponent, in_turn
from torch import nn

from hf_mpruner.architectures.stack import BlockStack, ConfigField
from hf_mpruner.features.recorder import StackRecorder
from hf_mpruner.similarity import SimilarityProtocol

SIZE = {"layers": 12, "batch": 32, "length": 64, "hidden": 256, "batches": 1}
CURVES = {
    "layers": [6, 12, 24, 48, 96],
    "batch": [16, 32, 64],
    "length": [64, 128, 256],
    "hidden": [256, 512, 1024],
    "batches": [1, 3, 9],
}
EXPECTED = {
    "default": {"layers": (1, 1), "batch": (1, 2), "length": (1, 1), "hidden": (1, 1), "batches": (1, 1)},
    "paper": {"layers": (1, 2), "batch": (1, 1), "length": (1, 2), "hidden": (0, 1), "batches": (1, 1)},
}


class Outputs(nn.Module):
    """A stack that puts out the same random tensor at every block."""

    def __init__(self, layers: int, batch: int, length: int, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Identity() for _ in range(layers))
        self.hidden = torch.randn(batch, length, hidden, generator=torch.Generator().manual_seed(0))

    def forward(self) -> None:
        """Call the blocks."""
        for block in self.blocks:
            block(self.hidden)


def analysis(protocol: str, layers: int, batch: int, length: int, hidden: int, batches: int) -> Side:
    """The hooks and the accumulator on outputs of this size."""
    model = Outputs(layers, batch, length, hidden)
    stack = BlockStack("blocks", "Identity", layers, ConfigField("num_hidden_layers"))

    @torch.no_grad()
    def work() -> None:
        recorder = StackRecorder(model, stack, SimilarityProtocol.named(protocol))
        with ExitStack() as undo:
            recorder.attach(undo)
            for _ in range(batches):
                recorder.begin(None)
                model()
                recorder.end()

    return work


def main() -> None:
    """Print a table of exponents, and the times behind it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--protocols", nargs="+", choices=EXPECTED, default=list(EXPECTED))
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument("--divide", type=int, default=1, help="make every batch this many times smaller")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the curves (needs matplotlib)")
    results = Results(__doc__, parser)
    args = results.args
    exponents, seconds = [], []
    for protocol in args.protocols:
        for name in args.curves:
            sizes = {}
            for value in CURVES[name]:
                size = {**SIZE, name: value}
                sizes[value] = analysis(protocol, **{**size, "batch": max(4, size["batch"] // args.divide)})
            taken = in_turn({str(value): side for value, side in sizes.items()}, args.repeats)
            curve = {value: median(taken[str(value)].cpu) for value in sizes}
            low, high = EXPECTED[protocol][name]
            found = exponent(list(curve), list(curve.values()))
            exponents.append({
                "protocol": protocol, "in": name, "from": min(curve), "to": max(curve), "measured": round(found, 2),
                "expected": str(low) if low == high else f"{low} to {high}",
                "more than expected": "YES" if found > high + 0.15 else "no",
            })  # fmt: skip
            seconds += [{"protocol": protocol, name: v, "CPU s": t} for v, t in curve.items()]
    results.table("exponents of the analysis' own processor time", exponents)
    results.table(
        "seconds",
        [
            {"curve": " ".join(map(str, list(row.items())[1])), **{k: row[k] for k in ("protocol", "CPU s")}}
            for row in seconds
        ],
    )
    if args.plot:
        draw(seconds, args.plot)
    results.finish()


def draw(seconds: list[dict[str, object]], file: Path) -> None:
    """One picture: log time over log size, a line a curve, a panel a protocol."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(EXPECTED), figsize=(10, 4), sharey=True)
    for panel, protocol in zip(panels, EXPECTED, strict=True):
        rows = [row for row in seconds if row["protocol"] == protocol]
        for name in CURVES:
            points = [(row[name], row["CPU s"]) for row in rows if name in row]
            if points:
                first = points[0]
                panel.loglog([x / first[0] for x, _ in points], [y / first[1] for _, y in points], "o-", label=name)
        panel.set(title=protocol, xlabel="size over the smallest", ylabel="processor time over the smallest")
        panel.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
