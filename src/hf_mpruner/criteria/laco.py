"""`laco`: layers collapse into one before them (LaCo, arXiv 2402.11187); merged, not deleted."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_mpruner.architectures import BlockStack
from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.scores import LayerScores
from hf_mpruner.criteria.select import check_number, free_layers, pick_lowest
from hf_mpruner.criteria.streams import as_positions
from hf_mpruner.errors import CalibrationError
from hf_mpruner.features.rows import fit_mask, hidden_states, padding_mask
from hf_mpruner.merging import cannot_sum, merged_weights
from hf_mpruner.skipping import skip_blocks

# The layers that are left, each with what its weights are a sum of.
Layers = tuple[tuple[int, Mapping[int, float]], ...]


class Laco(Criterion):
    """A layer takes over the layers behind it: theta + sum over k of (theta_k - theta), the paper's RDSC merge.

    The paper walks from the top: up to `merge_size` layers are collapsed into the lowest of them; if the final hidden states
    of a few examples still have a mean cosine with the model's own above a threshold, that stays, and the walk goes on
    `interval` layers further down, else one. Threshold and number of layers are set by hand there. Here a number n is
    asked for: the threshold is the largest one at which the walk removes n layers, found exactly, and the walk ends
    there. It may take fewer than `merge_size` layers at a time where fewer are left to remove.

    The final hidden states are those that leave the stack, before a final norm; the cosine is that of an example's real
    positions as one vector. Where no threshold gives n layers, those go that change the final states least when each is
    collapsed alone into its predecessor.

    By the formula a layer that takes over one other alone becomes that other: theta + (theta_1 - theta). The published code
    subtracts the sum so far instead of theta, so it leaves the last layer's weights however many are collapsed; that is
    not done here. It merges linear maps only; here all parameters of a block are merged.
    """

    name = "laco"
    title = "layers that can be collapsed into one before them; merges"
    source = "LaCo, arXiv 2402.11187, equation 1 and Algorithm 1"
    cost = "R x L on 8 examples"
    needs = frozenset({"data", "weights"})

    merge_size = 4
    """Layers that become one in a step at most (the paper's C)."""
    interval = 2
    """Layers from one merge to the next (the paper's I)."""
    num_examples = 8
    """Calibration examples that the final states are compared on."""

    def score(self, inputs: CriterionInputs) -> Scores:
        """1 - cosine of the final states if a layer alone is collapsed into the one before it."""
        examples = take_examples(inputs, self.num_examples)
        trials = {stack.path: Trials(inputs, stack, examples) for stack in inputs.stacks}
        if not any(trial.mergeable for trial in trials.values()):
            reason = next((trial.reason for trial in trials.values() if trial.reason), "no two layers can be summed")
            raise CalibrationError(
                f"The criterion '{self.name}' merges layers, which this model's cannot be: {reason}. Or take a criterion that "
                "deletes layers, e.g. block_influence."
            )
        return {path: self._score_stack(inputs, trial) for path, trial in trials.items()}

    def _score_stack(self, inputs: CriterionInputs, trial: Trials) -> LayerScores:
        stack, start = trial.stack, uncut(trial.stack.depth)
        values: list[float | None] = [None] * stack.depth
        for layer in sorted(trial.mergeable):
            values[layer] = 1 - trial.similarity(collapse(start, layer - 1, 1))
        possible = max(0, min(len(trial.mergeable), stack.depth - 1))
        most = min(possible, inputs.num_removed.get(stack.path, 0)) if inputs.num_removed else possible
        removed, merged, thresholds = {}, {}, {}
        for number in range(1, most + 1):
            found = best_walk(stack.depth, number, self.merge_size, self.interval, trial.similarity, trial.is_allowed)
            if found is not None:
                layers, thresholds[str(number)] = found
                removed[str(number)] = removed_of(layers, stack.depth)
                merged[str(number)] = {
                    str(layer): {str(of): c for of, c in terms.items() if c}
                    for layer, terms in layers
                    if len(terms) > 1
                }
        details = {"removed": removed, "merged": merged, "thresholds": thresholds, "num_examples": trial.num_examples}
        return LayerScores(stack.path, tuple(values), details=details)

    def must_stay(self, model: nn.Module, stack: BlockStack) -> dict[int, str]:
        """Layers whose weights cannot be added to those of the layer before."""
        return unmergeable(model, stack)

    def select(
        self, scores: LayerScores, stack: BlockStack, num_removed: int, protected: Collection[int] = ()
    ) -> tuple[int, ...]:
        """The layers that the walk collapses into others, ascending.

        Raises:
            ValueError: if so many cannot go; says how many can.
        """
        check_number(stack, num_removed, protected)
        walked = tuple(scores.details.get("removed", {}).get(str(num_removed), ()))
        if walked and set(walked) <= set(free_layers(stack, protected)) and stack.removable(walked) == walked:
            return walked
        return pick_lowest(scores, stack, num_removed, protected)

    def merges(self, scores: LayerScores, stack: BlockStack, removed: Sequence[int]) -> dict[int, dict[int, float]]:
        """The sums of the walk, or those of collapsing each run of removed layers into the layer before it."""
        key = str(len(removed))
        if list(scores.details.get("removed", {}).get(key, ())) == list(removed):
            table = scores.details["merged"][key]
            return {int(layer): {int(of): c for of, c in terms.items()} for layer, terms in table.items()}
        runs = runs_behind(removed, stack.depth)
        return {
            base: {of: c for of, c in {base: 1.0 - len(run), **dict.fromkeys(run, 1.0)}.items() if c}
            for base, run in runs.items()
        }


def unmergeable(model: nn.Module, stack: BlockStack) -> dict[int, str]:
    """Layers that may go but whose weights cannot be added to those of the layer before, each with the reason."""
    followers = [follower.path for follower in stack.followers]
    found = {}
    for layer in stack.prunable:
        reason = cannot_sum(model, stack.path, layer - 1, [layer], followers) if layer else "no layer is before it"
        if reason is not None:
            found[layer] = reason
    return found


def runs_behind(removed: Sequence[int], depth: int) -> dict[int, list[int]]:
    """For each layer that stays before layers that go, those up to the next that stays.

    Example:
        >>> runs_behind([0, 2, 3, 5], 6)
        {1: [2, 3], 4: [5]}
    """
    runs: dict[int, list[int]] = {}
    base = None
    for layer in range(depth):
        if layer not in removed:
            base = layer
        elif base is not None:
            runs.setdefault(base, []).append(layer)
    return runs


def uncut(depth: int) -> Layers:
    """All layers, each of its own weights."""
    return tuple((layer, {layer: 1.0}) for layer in range(depth))


def collapse(layers: Layers, place: int, number: int) -> Layers:
    """The layers after `number` of them were collapsed into the one at `place` before them.

    Example:
        >>> collapse(uncut(4), 1, 2)
        ((0, {0: 1.0}), (1, {1: -1.0, 2: 1.0, 3: 1.0}))
    """
    base, terms = layers[place]
    total = {of: coefficient * (1 - number) for of, coefficient in terms.items()}
    for _, others in layers[place + 1 : place + 1 + number]:
        for of, coefficient in others.items():
            total[of] = total.get(of, 0.0) + coefficient
    return (*layers[:place], (base, total), *layers[place + 1 + number :])


def removed_of(layers: Layers, depth: int) -> list[int]:
    """The layers that are not left."""
    left = {layer for layer, _ in layers}
    return [layer for layer in range(depth) if layer not in left]


def walk(
    depth: int,
    wanted: int,
    size: int,
    interval: int,
    threshold: float,
    similarity: Callable[[Layers], float],
    is_allowed: Callable[[Layers], bool],
) -> tuple[Layers, list[float]]:
    """Algorithm 1 of the paper, until `wanted` layers are gone or the bottom is reached.

    Args:
        depth (`int`): layers.
        wanted (`int`): that are to go.
        size (`int`): layers that become one in a step at most.
        interval (`int`): layers from one merge to the next.
        threshold (`float`): a merge stays at this similarity or above.
        similarity (callable): of the final states of a merged model with those of the uncut one.
        is_allowed (callable): whether layers may be removed and merged so.

    Returns:
        the layers that are left, and the similarities of the merges that did not stay.
    """
    layers, rejected = uncut(depth), list[float]()
    place = depth - min(size, wanted + 1)
    while place >= 0 and (left := wanted - depth + len(layers)):
        most = min(size - 1, left, len(layers) - place - 1)
        tried = (collapse(layers, place, number) for number in range(most, 0, -1))
        trial = next(filter(is_allowed, tried), None)
        value = -math.inf if trial is None else similarity(trial)
        if trial is not None and value >= threshold:
            layers = trial
            place = min(place - interval, len(layers) - min(size, wanted - depth + len(layers) + 1))
        else:
            rejected += [value] if trial is not None else []
            place -= 1
    return layers, rejected


def best_walk(
    depth: int,
    wanted: int,
    size: int,
    interval: int,
    similarity: Callable[[Layers], float],
    is_allowed: Callable[[Layers], bool],
) -> tuple[Layers, float] | None:
    """The walk at the largest threshold at which `wanted` layers go, and that threshold; `None` if there is none.

    Below the largest similarity that was rejected the walk first takes another way, so no threshold in between is tried.
    """
    threshold = 1.0
    while True:
        layers, rejected = walk(depth, wanted, size, interval, threshold, similarity, is_allowed)
        if depth - len(layers) == wanted:
            return layers, threshold
        lower = [value for value in rejected if value < threshold]
        if not lower:
            return None
        threshold = max(lower)


def take_examples(inputs: CriterionInputs, number: int) -> list[dict[str, Tensor]]:
    """The first examples of the calibration data, as batches."""
    taken: list[dict[str, Tensor]] = []
    left = number
    for batch in inputs.each_batch("Choosing examples"):
        size = inputs.size(batch)
        if left:
            taken.append(
                {name: value[:left] if value.shape[:1] == (size,) else value for name, value in batch.items()}
            )
            left -= min(left, size)
    return taken


class Trials:
    """Merged models on a few examples: what leaves the stack, against what leaves it uncut. No merge is run twice.

    Args:
        inputs (`CriterionInputs`): the model, in eval mode.
        stack (`BlockStack`): whose layers are merged.
        examples (list of `dict`): batches.

    Attributes:
        mergeable (`set[int]`): layers that may go, and whose weights can be added to those of the layer before.
        reason (`str`): why the first that cannot be merged cannot.
        num_examples (`int`): compared.
    """

    def __init__(self, inputs: CriterionInputs, stack: BlockStack, examples: list[dict[str, Tensor]]) -> None:
        """See what can be merged, and run the uncut model."""
        self.inputs, self.stack, self.examples = inputs, stack, examples
        reasons = unmergeable(inputs.model, stack)
        self.mergeable = set(stack.prunable) - reasons.keys()
        self.reason = next((reason for layer, reason in reasons.items() if layer), "")
        self._values: dict[Any, float] = {}
        self._known: dict[str, set[Any]] = {}
        self._whole = self._run([]) if self.mergeable else []
        self.num_examples = sum(map(len, self._whole))

    def is_allowed(self, layers: Layers) -> bool:
        """Whether the layers that are not left may go together."""
        gone = removed_of(layers, self.stack.depth)
        return set(gone) <= self.mergeable and self.stack.removable(gone) == tuple(gone)

    def similarity(self, layers: Layers) -> float:
        """Mean cosine of the final states; -1 where they are not finite."""
        key = tuple((layer, tuple(sorted(terms.items()))) for layer, terms in layers)
        if key not in self._values:
            sums = {layer: terms for layer, terms in layers if len(terms) > 1}
            self.inputs.runtime.before_edit()  # a forward pass under FSDP leaves some weights whole, beside the real ones
            with merged_weights(self.inputs.model, {self.stack.path: sums}):
                states = self._run(removed_of(layers, self.stack.depth))
                self.inputs.runtime.before_edit()
            self._values[key] = _mean_cosine(self._whole, states)
        return self._values[key]

    def _run(self, removed: list[int]) -> list[list[Tensor]]:
        """The final states of each example, as vectors of its real positions."""
        model, path = self.inputs.model, self.stack.path
        last, found = self.inputs.blocks(self.stack)[-1], list[list[Tensor]]()
        name = f"{path}.{self.stack.depth - 1}"

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            states = as_positions(hidden_states(output, name)).detach()
            padding = None if hidden_states(output, name).dim() == 4 else padding_mask(model, path, batch)
            mask = None if padding is None else fit_mask(padding, (states.shape[0], states.shape[1]), name)
            rows = [one if mask is None else one[mask[row].to(one.device)] for row, one in enumerate(states)]
            found.append([one.flatten().cpu().double() for one in rows])

        with torch.no_grad(), skip_blocks(model, {path: removed} if removed else {}, known=self._known):
            handle = last.register_forward_hook(keep)
            try:
                for batch in self.examples:
                    self.inputs.forward(batch)
            finally:
                handle.remove()
        if len(found) != len(self.examples):
            raise CalibrationError(
                f"{name} did not run on the calibration data. Give the batch every input that the stack needs (an "
                "encoder-decoder model: labels or decoder_input_ids)."
            )
        return found


def _mean_cosine(whole: list[list[Tensor]], states: list[list[Tensor]]) -> float:
    cosines = []
    for ones, others in zip(whole, states, strict=True):
        for one, other in zip(ones, others, strict=True):
            lengths = one.norm() * other.norm()
            if len(one) and lengths > 0:
                cosines.append(float(one @ other / lengths))
            elif len(one):
                cosines.append(-1.0)
    if not cosines:
        raise CalibrationError("The first calibration examples are padding alone. Use other examples.")
    mean = sum(cosines) / len(cosines)
    return min(1.0, mean) if math.isfinite(mean) else -1.0
