"""`mixture`: several criteria propose which layers go, and the proposal that measures best is taken."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from hf_mpruner.architectures import BlockStack
from hf_mpruner.criteria.base import Criterion, Scores, check_needs
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.output_change import change_of
from hf_mpruner.criteria.registry import find_criterion, known_criteria
from hf_mpruner.criteria.scores import LayerScores, check_scores
from hf_mpruner.criteria.select import check_number, pick_lowest
from hf_mpruner.criteria.without import (
    Layers,
    Measure,
    loss_of,
    measure_without,
    most_removed,
    remove_greedily,
)
from hf_mpruner.errors import CalibrationError, UnsupportedArchitectureError

logger = logging.getLogger(__name__)

# One pass or none each, and unlike each other: similarity, direction, runs of layers, gradients, place.
MEMBERS = ("cka", "cka_evidence", "block_influence", "angular", "taylor", "tail")

Begin = Callable[[Mapping[str, Any]], Measure]
# Of each member that could score: itself, and what it said of every stack.
Heard = dict[str, tuple[Criterion, dict[str, LayerScores]]]


class Mixture(Criterion):
    """Every member proposes a plan for each number of layers; each is run, and of each number the best one is taken.

    A plan is run with its layers skipped, each stack with the others whole, and judged by the loss on the data; where that
    has no labels, by how far the model's output moves (`output_change`). One more proposal is made by removing greedily
    what the judge misses least (`greedy_loss`, or `output_change` itself). No plan is run twice. Of plans of the same
    value the one that more members propose is taken, then the one of later layers.

    Where a run keeps three sets apart, members propose on the calibration set, greedy removal too, and the choosing set
    chooses: what fits the examples that it was found on by luck is not taken for that.

    So nothing here is better than what the data can tell before any recovery: what recovers best may be another plan.

    Args:
        members (sequence of `str` or `Criterion`, *optional*): who proposes, besides greedy removal; by default `MEMBERS`
            as far as they are known. A member that cannot score this model (no gradients, no labels) is left out, with a
            warning and in the record.

    Raises:
        ValueError: for an unknown name, no member, or a member that merges layers, which skipping them does not measure.

    Example:
        >>> Mixture(["cka", "tail"]).members
        ('cka', 'tail')
    """

    name = "mixture"
    title = "of the proposals of several criteria the one that measures best"
    source = "this library"
    cost = "at most R x (L + 6) + 6 + 1 backward"
    needs = frozenset({"data"})
    optional = frozenset({"loss", "gradients"})
    compares_stacks = True
    chooses = True

    def __init__(self, members: Sequence[str | Criterion] | None = None) -> None:
        """Find the members."""
        if members is None:
            known = known_criteria()
            members = [name for name in MEMBERS if name in known]
        self._members = [find_criterion(one) for one in members]
        if not self._members:
            raise ValueError("members is empty: name criteria that propose, e.g. ['cka', 'tail'].")
        for member in self._members:
            if type(member).merges is not Criterion.merges or isinstance(member, Mixture):
                raise ValueError(
                    f"members: '{member.name}' {'is a mixture itself' if isinstance(member, Mixture) else 'merges layers'}, "
                    "and proposals are measured with layers skipped. Name criteria that only remove layers, e.g. cka or tail."
                )

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the criteria that propose."""
        return tuple(member.name for member in self._members)

    def score(self, inputs: CriterionInputs) -> Scores:
        """For each layer the share, in 0..1, of the taken plans that keep it, over all numbers that may be asked for.

        `details["proposals"]` has every plan that was run, by number of layers and the best first: `layers`, the
        `members` that propose it and its `value`, `None` if that is not finite; `details["judged_by"]` says what the value
        is, `details["whole"]` that of the model as it is, and `details["left_out"]` which members could not score and why.
        """
        judge, begin = _find_judge(inputs)
        heard, left_out = self._hear(inputs.to_propose(), judge)
        scores = {}
        for stack in inputs.stacks:
            whole, proposals = _propose(inputs, stack, heard, judge, begin)
            details = {"judged_by": judge, "left_out": left_out, "whole": whole, "proposals": proposals}
            scores[stack.path] = LayerScores(stack.path, _shares(stack, proposals), details=details)
        return scores

    def select(
        self, scores: LayerScores, stack: BlockStack, num_removed: int, protected: Collection[int] = ()
    ) -> tuple[int, ...]:
        """The best proposal of so many layers; of a number that nobody was asked for, the layers that most plans remove."""
        check_number(stack, num_removed, protected)
        for proposal in scores.details.get("proposals", ()):
            layers = tuple(proposal["layers"])
            if len(layers) == num_removed and proposal["value"] is not None and not set(layers) & set(protected):
                return layers
        return pick_lowest(scores, stack, num_removed, protected)

    def harm(self, scores: LayerScores, removed: Sequence[int]) -> float:
        """How much worse a plan measured than the model as it is, in the judge's unit, with the other stacks whole.

        Raises:
            ValueError: for a plan that was not measured.
        """
        known = {tuple(one["layers"]): one["value"] for one in scores.details.get("proposals", ())}
        value = known.get(tuple(removed)) if removed else scores.details["whole"]
        if value is None:
            raise ValueError(f"Layers {list(removed)} of '{scores.path}' were not measured together.")
        return float(value - scores.details["whole"])

    def _hear(self, inputs: CriterionInputs, judge: str) -> tuple[Heard, dict[str, str]]:
        """What each member says, and why the others say nothing."""
        heard: Heard = {}
        left_out: dict[str, str] = {}
        for member in self._members:
            try:
                _check_member(member, inputs, judge)
                heard[member.name] = (member, check_scores(member.name, member.score(inputs), inputs.stacks))
            except (CalibrationError, UnsupportedArchitectureError) as error:
                left_out[member.name] = " ".join(str(error).split())
                logger.warning("mixture goes on without '%s': %s", member.name, left_out[member.name])
        return heard, left_out


def _check_member(member: Criterion, inputs: CriterionInputs, judge: str) -> None:
    check_needs(member, inputs)
    if judge != "loss" and member.reads_labels:
        raise CalibrationError("there is no loss")
    alone = {"gradients", "metric"} & member.needs
    if inputs.runtime.equal_forwards and alone:
        raise CalibrationError(f"{inputs.runtime.name} gives no {' and '.join(sorted(alone))} of single layers.")


def _find_judge(inputs: CriterionInputs) -> tuple[str, Begin]:
    """What measures a proposal: the loss where the data gives one.

    Raises:
        CalibrationError: if there is a loss, and it is not finite.
    """
    batch = next(inputs.each_batch("Looking for a loss"))
    try:
        with torch.no_grad():
            inputs.raw_loss(batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a Trainer's loss raises whatever its code raises where labels are missing
        logger.warning(
            "mixture judges by how far the model's output moves, since there is no loss: %s",
            " ".join(str(error).split()),
        )
        return "output_change", change_of(inputs)
    return "loss", loss_of(inputs)


class _Trials:
    """Values of the model without layers of one stack; what was measured before is not measured again.

    The main process's values hold on all: where forward passes communicate, every process must go on with the same plans.
    """

    def __init__(self, inputs: CriterionInputs, stack: BlockStack, begin: Begin) -> None:
        self._inputs, self._stack, self._begin = inputs, stack, begin
        self.known: dict[Layers, float] = {}

    def __call__(self, removals: Sequence[Layers]) -> list[float]:
        keys: list[Layers] = [tuple(sorted(layers)) for layers in removals]
        new = list(dict.fromkeys(key for key in keys if key not in self.known))
        if new:
            values = measure_without(self._inputs, self._stack, self._begin, new)
            self.known.update(zip(new, self._inputs.runtime.broadcast(values), strict=True))
        return [self.known[key] for key in keys]


def _propose(
    inputs: CriterionInputs, stack: BlockStack, heard: Heard, judge: str, begin: Begin
) -> tuple[float, list[dict[str, Any]]]:
    """The value of the whole model; and every proposal for every number of layers that may be asked for, the best first."""
    most, trials = most_removed(inputs, stack), _Trials(inputs, stack, begin)
    if not most:
        return 0.0, []
    apart = inputs.to_propose()
    greedy = remove_greedily(apart, stack, trials if apart is inputs else _Trials(apart, stack, _find_judge(apart)[1]))
    name = "greedy_loss" if judge == "loss" else judge  # the criterion that does the same
    proposed: dict[Layers, list[str]] = {}
    for number in range(1, most + 1):
        speakers = {name: partial(pick_lowest, greedy, stack, number)}
        speakers |= {
            name: partial(one.select, scores[stack.path], stack, number) for name, (one, scores) in heard.items()
        }
        for speaker, select in speakers.items():
            try:
                proposed.setdefault(tuple(sorted(select())), []).append(speaker)
            except ValueError:  # so many cannot go together, or not by this criterion
                continue
    proposed = inputs.runtime.broadcast(proposed)
    whole, *measured = trials([(), *proposed])
    values = dict(zip(proposed, measured, strict=True))

    def place(layers: Layers) -> tuple[Any, ...]:
        value = values[layers] if math.isfinite(values[layers]) else math.inf
        return len(layers), value, -len(proposed[layers]), tuple(-layer for layer in layers)

    return whole, [
        {
            "num_removed": len(layers),
            "layers": list(layers),
            "members": proposed[layers],
            "value": values[layers] if math.isfinite(values[layers]) else None,
        }
        for layers in sorted(proposed, key=place)
    ]


def _shares(stack: BlockStack, proposals: Sequence[Mapping[str, Any]]) -> tuple[float | None, ...]:
    """For each layer the share of the best plans, one for each number, that keep it; 1 without any."""
    best: dict[int, list[int]] = {}
    for proposal in proposals:
        best.setdefault(proposal["num_removed"], proposal["layers"])
    plans = list(best.values())
    return tuple(
        None if layer in stack.pinned else sum(layer not in plan for plan in plans) / len(plans) if plans else 1.0
        for layer in range(stack.depth)
    )
