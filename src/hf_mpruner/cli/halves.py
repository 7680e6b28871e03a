"""`hf-mpruner analyze --halves`: the attention and the feed-forward half of each block, measured apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_mpruner.architectures import BlockStack
from hf_mpruner.config import PruningConfig
from hf_mpruner.halves import HALVES_NAME, HalvesReport, measure_halves

from .measure import Rows


def measure(rows: Rows, config: PruningConfig, stacks: list[BlockStack], folder: Path | None) -> HalvesReport:
    """Measure on the sample of raw data that layers are measured on, and write if there is a folder."""
    halves = measure_halves(rows.model, rows.batches(config), stacks)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        halves.save(folder / HALVES_NAME)
    return halves


def to_table(halves: HalvesReport | None) -> str:
    """Below the other tables; empty if halves were not asked for."""
    return "" if halves is None else f"\n\n{halves}"


def to_values(halves: HalvesReport | None) -> dict[str, Any]:
    """Beside the other values of JSON output; empty if halves were not asked for."""
    return {} if halves is None else {"halves": halves.to_dict()}
