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
) -> HalvesReport:
    """Measure the halves of blocks on a sample of raw data, the one that similarities are measured on."""
    sample = draw_sample(data, config.calibration_samples, config.seed)
    loader = calibration_loader(
        task.prepare(sample, columns, model, processing_class, settings, "calibration"),
        num_samples=config.calibration_samples,
        batch_size=config.calibration_batch_size,
        seed=config.seed,
        processing_class=processing_class,
        model=model,
    )
    return measure_halves(model, loader, stacks)


def write(folder: Path, halves: HalvesReport) -> None:
    """Write what was measured beside the rest of the analysis."""
    folder.mkdir(parents=True, exist_ok=True)
    halves.save(folder / HALVES_NAME)
