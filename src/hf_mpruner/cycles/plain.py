"""What is measured of a plain model that no Trainer sees: similarities, scores of layers, latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from hf_mpruner.config import PruningConfig
from hf_mpruner.criteria import Criterion, CriterionInputs, ScoredLayers, check_needs, find_criterion, score_layers
from hf_mpruner.cycles.whole import on_device
from hf_mpruner.data import FirstBatch
from hf_mpruner.features import measure_similarity
from hf_mpruner.features.measure import evaluating
from hf_mpruner.footprint import measure_costs
from hf_mpruner.record import Measurement, PruningRecord
from hf_mpruner.runtime import Runtime, keep_rng_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_mpruner.architectures import BlockStack
    from hf_mpruner.similarity import SimilarityMatrix


class PlainModel:
    """Measures the model that the engine cuts, on the device where it may run.

    Args:
        model (callable): returns the model as it is.
        config (`PruningConfig`): what the user asked for.
        first (`FirstBatch`): calibration batches, as the model takes them.
        device: where a whole model runs.
        runtime (`Runtime`): the processes.
        proposing (*optional*): batches that cuts are proposed on; see `CriterionInputs`.
    """

    def __init__(
        self,
        model: Callable[[], PreTrainedModel],
        config: PruningConfig,
        first: FirstBatch,
        device: str | torch.device | None,
        runtime: Runtime,
        proposing: Any = None,
    ) -> None:
        """Remember what was given."""
        self._model, self.config, self.first, self.proposing = model, config, first, proposing
        self.device, self.runtime = device, runtime

    def measure(self, stacks: list[BlockStack]) -> dict[str, SimilarityMatrix]:
        """Similarity of all pairs of layers of each stack."""
        with on_device(self._model(), self.device) as model, keep_rng_state():
            return measure_similarity(
                model,
                self.first.batches,
                stacks,
                protocol=self.config.protocol,
                stop=self.config.stop,
                runtime=self.runtime,
            )

    def score(self, criterion: Criterion, stacks: list[BlockStack], num_removed: Mapping[str, int]) -> ScoredLayers:
        """What a criterion says; a loss is the model's own, which `check` has compared with the Trainer's."""
        with on_device(self._model(), self.device) as model:
            return score_layers(criterion, self._inputs(model, stacks, num_removed))

    def time_forward(self, record: PruningRecord, measured: Measurement) -> None:
        """Time the model on the first calibration batch."""
        with on_device(self._model(), self.device) as model:
            measure_costs(model, self.first, record, measured, runtime=self.runtime)

    def check(self, trainer: Trainer, model: PreTrainedModel) -> None:
        """Refuse a criterion that could not score a model beside any Trainer, before anything is trained.

        Args:
            trainer (`Trainer`): that `make_trainer` made for the uncut model.
            model (`PreTrainedModel`): the same, as the engine has it.

        Raises:
            ValueError: for an unknown criterion, one that needs the Trainer's evaluation, or a loss that the Trainer
                changes.
            CalibrationError: without labels, a finite loss or gradients that it needs.
        """
        if self.config.plans_by_threshold:
            return
        criterion = find_criterion(self.config.criterion)
        if "metric" in criterion.needs:
            raise ValueError(
                f"The criterion '{criterion.name}' evaluates the model without each layer, but in prune_in_cycles no Trainer "
                "is there while layers are chosen. Take loss or greedy_loss, or use LayerPruningCallback."
            )
        inputs = self._inputs(model, [], {})
        check_needs(criterion, inputs)
        if not criterion.reads_labels:
            return
        if changes := _changes_of_loss(trainer):
            raise ValueError(
                f"The criterion '{criterion.name}' measures the model's own loss, since no Trainer is there while layers are "
                f"chosen, but the Trainer trains another one ({changes}). Leave that out, take a criterion that needs no loss, "
                "e.g. block_influence, or use LayerPruningCallback."
            )
        if not criterion.needs & {"loss", "gradients"}:
            return
        with on_device(model, self.device), keep_rng_state(), evaluating(model), torch.no_grad():
            inputs.loss(next(inputs.each_batch()))

    def _inputs(self, model: Any, stacks: list[BlockStack], num_removed: Mapping[str, int]) -> CriterionInputs:
        return CriterionInputs(
            model,
            stacks,
            batches=self.first.batches,
            proposing=self.proposing,
            num_removed=num_removed,
            protocol=self.config.protocol,
            linkage=self.config.linkage,
            seed=self.config.seed,
            runtime=self.runtime,
        )


def _changes_of_loss(trainer: Trainer) -> str:
    """What makes a Trainer's loss another one than the model's own, in words; empty if nothing does."""
    if trainer.args.label_smoothing_factor:
        return f"label_smoothing_factor={trainer.args.label_smoothing_factor}"
    if trainer.compute_loss_func is not None:
        return "compute_loss_func"
    own = vars(trainer).get("compute_loss") is not None
    return (
        f"{type(trainer).__name__}.compute_loss"
        if own or type(trainer).compute_loss is not Trainer.compute_loss
        else ""
    )
