"""`Criterion`: a measure of how much each layer matters, and which layers go by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from hf_mpruner.architectures import BlockStack
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.scores import LayerScores, ScoredLayers, check_scores
from hf_mpruner.criteria.select import pick_lowest
from hf_mpruner.errors import CalibrationError
from hf_mpruner.placement import offloaded

Scores = Mapping[str, "LayerScores | Sequence[float | None] | torch.Tensor"]


class Criterion(ABC):
    """A measure of layers. Subclass it, define `name` and `score`, register it, and use it by its name everywhere.

    Attributes:
        name (`str`): how it is called in `PruningConfig(criterion=...)`, on the command line and in reports.
        title (`str`): one line on what it measures.
        source (`str`): paper, or "baseline".
        cost (`str`): forward passes over the calibration data, in words: "1", "L" (one a layer), "R x L" (R removals).
        needs (`frozenset[str]`): of `"data"`, `"loss"`, `"gradients"`, `"metric"`, and `"weights"`: it reads them itself, so
            they must be in memory.
        compares_stacks (`bool`): whether `harm` can be compared between stacks, so that a number of layers in total can be
            shared out by it. If not, every stack loses the same share of its layers.
        optional (`frozenset[str]`): of the same words, what it uses where it is there.
        chooses (`bool`): whether it chooses among proposals that it makes itself, so that these are made on other data than
            chooses where sets are kept apart (`CriterionInputs.proposing`).

    Example:
        >>> class FirstHalf(Criterion):
        ...     name = "first_half"
        ...     title = "later layers matter more"
        ...     def score(self, inputs):
        ...         return {stack.path: range(stack.depth) for stack in inputs.stacks}
        >>> FirstHalf().needs
        frozenset()
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    source: ClassVar[str] = ""
    cost: ClassVar[str] = "0"
    needs: ClassVar[frozenset[str]] = frozenset()
    compares_stacks: ClassVar[bool] = False
    optional: ClassVar[frozenset[str]] = frozenset()
    chooses: ClassVar[bool] = False

    @property
    def reads_labels(self) -> bool:
        """Whether it measures a loss, so that it is given batches with labels where there are any."""
        return bool((self.needs | self.optional) & {"loss", "gradients"})

    @abstractmethod
    def score(self, inputs: CriterionInputs) -> Scores:
        """How much each layer matters, for each stack path of `inputs.stacks`; the lowest go first.

        Called in eval mode and with gradients on. The model must be left as it was.
        """

    def select(
        self, scores: LayerScores, stack: BlockStack, num_removed: int, protected: Collection[int] = ()
    ) -> tuple[int, ...]:
        """Which layers of one stack go, ascending.

        By default those of the lowest total score that can go together; of a greedy criterion the first of its order.

        Args:
            scores (`LayerScores`): of this stack, from `score`.
            stack (`BlockStack`): says which layers are pinned, and in which runs layers go.
            num_removed (`int`): how many.
            protected (collection of `int`): layers that stay, besides pinned ones.

        Raises:
            ValueError: if so many cannot go; says how many can.
        """
        return pick_lowest(scores, stack, num_removed, protected)

    def harm(self, scores: LayerScores, removed: Sequence[int]) -> float:
        """What a plan for one stack costs, by these scores; 0 for none, and by default the sum over the layers that go.

        Args:
            scores (`LayerScores`): of the stack, from `score`.
            removed (`Sequence[int]`): from `select`.
        """
        return sum(value for layer in removed if (value := scores.values[layer]) is not None)

    def must_stay(self, model: nn.Module, stack: BlockStack) -> Mapping[int, str]:
        """Layers that this criterion removes under no data, each with the reason; none, for all that only delete.

        A number of layers that cannot be reached for it is refused before anything is measured or trained.

        Args:
            model (`nn.Module`): uncut.
            stack (`BlockStack`): of it.
        """
        return {}

    def merges(self, scores: LayerScores, stack: BlockStack, removed: Sequence[int]) -> dict[int, dict[int, float]]:
        """What the layers that stay take over from those that go: empty, for all that only delete.

        Returns:
            `dict`: for each kept layer that changes, the coefficient of every layer in the sum that its weights become.
        """
        return {}


def score_layers(criterion: Criterion, inputs: CriterionInputs) -> ScoredLayers:
    """Let a criterion score a model, check what it says, and measure what it cost.

    Args:
        criterion (`Criterion`): which measure.
        inputs (`CriterionInputs`): model, stacks, data, loss, metric.

    Raises:
        CalibrationError: if the criterion needs what is not there: data, labels, gradients, a metric; or a score is not
            finite.
        TypeError, ValueError: if the criterion's own code returns something else than one number a layer.
    """
    check_needs(criterion, inputs)
    with inputs.counting() as cost, torch.enable_grad():
        found = criterion.score(inputs)
        spent = cost()
    return ScoredLayers(criterion.name, check_scores(criterion.name, found, inputs.stacks), spent, criterion.title)


def check_needs(criterion: Criterion, inputs: CriterionInputs) -> None:
    """Refuse inputs without something that a criterion needs; what only a pass over the data shows is not looked at.

    Raises:
        CalibrationError: naming it.
    """
    name, needs = criterion.name, criterion.needs
    if inputs.batches is None and needs & {"data", "loss", "gradients"}:
        raise CalibrationError(f"The criterion '{name}' measures on calibration data: pass calibration=dataset.")
    if "metric" in needs and inputs.evaluate is None:
        raise CalibrationError(
            f"The criterion '{name}' evaluates the model without each layer: pass evaluate (or compute_metrics to the "
            "Trainer), or take a criterion that needs no metric, e.g. loss."
        )
    if "gradients" in needs:
        _check_gradients(name, inputs)
    if needs & {"weights", "gradients"} and (elsewhere := offloaded(inputs.model)):
        raise CalibrationError(
            f"The criterion '{name}' needs {'gradients' if 'gradients' in needs else 'the weights'}, but {len(elsewhere)} of "
            f"the model's are offloaded, '{elsewhere[0]}' for one. Load the whole model (no device_map, or more memory), or "
            "take a criterion that runs the model as it is, e.g. cka, block_influence or loss."
        )


def _check_gradients(name: str, inputs: CriterionInputs) -> None:
    """Gradients can be had of weights that are floats and that somebody may differentiate."""
    quantised = sorted(
        {str(weight.dtype) for weight in inputs.model.parameters() if not weight.is_floating_point()}
        | ({"quantised"} if any_quantised(inputs.model) else set())
    )
    if quantised:
        raise CalibrationError(
            f"The criterion '{name}' needs gradients, but the model has weights of type {', '.join(quantised)}. Load it "
            "without quantisation, or take a criterion without gradients, e.g. block_influence or loss."
        )


def any_quantised(model: Any) -> bool:
    """Whether transformers says that a model's weights are quantised."""
    return bool(getattr(model, "is_quantized", False))
