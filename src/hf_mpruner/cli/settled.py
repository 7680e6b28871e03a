"""How sure measured similarities are, in tables."""

from __future__ import annotations

from collections.abc import Mapping

from hf_mpruner.similarity import SimilarityMatrix

from .output import align


def neighbours(matrix: SimilarityMatrix) -> str:
    """A table of neighbouring layers: their similarity, and its interval where enough batches were measured."""
    layers, ends = matrix.layers, matrix.interval()
    rows = []
    for i, value in enumerate(matrix.adjacent):
        row = [f"{layers[i]} - {layers[i + 1]}", f"{value:.4f}"]
        if ends is not None:
            row.append(f"{ends[0][i, i + 1]:.4f} .. {ends[1][i, i + 1]:.4f}")
        rows.append(row)
    head = ["layers", "similarity"] + ([] if ends is None else ["95 % interval"])
    return align(head, rows, right=[1])


def endings(matrices: Mapping[str, SimilarityMatrix]) -> list[str]:
    """A line for each stack whose measurement could stop early."""
    return [
        f"{path}: {matrix.sampling.describe(matrix.layers)}; other thresholds are not settled"
        for path, matrix in matrices.items()
        if matrix.sampling is not None
    ]


def intervals(matrices: Mapping[str, SimilarityMatrix]) -> dict[str, list[list[float]] | None]:
    """Intervals of 95 % of neighbouring layers by stack path, as plain values."""
    found: dict[str, list[list[float]] | None] = {}
    for path, matrix in matrices.items():
        ends = matrix.interval()
        sides = [] if ends is None else [end.diagonal(1).tolist() for end in ends]
        found[path] = [list(pair) for pair in zip(*sides, strict=True)] if sides else None
    return found
