"""`hf-mpruner analyze --halves`: the attention and the feed-forward half of each block, measured apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_mpruner.architectures import BlockStack
from hf_mpruner.config import PruningConfig
from hf_mpruner.data import Columns, calibration_loader, draw_sample
from hf_mpruner.halves import HALVES_NAME, HalvesReport, measure_halves
from hf_mpruner.tasks import Settings, Task


def measure(
    model: PreTrainedModel,
    data: Any,
    processing_class: Any,
    columns: Columns,
    config: PruningConfig,
    stacks: list[BlockStack],
    task: Task,
    settings: Settings,
    folder: Path | None,
) -> HalvesReport:
    """Measure on the sample of raw data that layers are measured on, and write if there is a folder."""
    sample = draw_sample(data, config.calibration_samples, config.seed)
    loader = calibration_loader(
        task.prepare(sample, columns, model, processing_class, settings, "calibration"),
        num_samples=config.calibration_samples,
        batch_size=config.calibration_batch_size,
        seed=config.seed,
        processing_class=processing_class,
        model=model,
    )
    halves = measure_halves(model, loader, stacks)
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
