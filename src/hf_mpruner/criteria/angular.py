"""`angular`: the contiguous run of layers whose input and output point the same way (Gromov et al., arXiv 2403.17887)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from hf_mpruner.architectures import BlockStack
from hf_mpruner.criteria.base import Criterion, Scores
from hf_mpruner.criteria.inputs import CriterionInputs
from hf_mpruner.criteria.scores import LayerScores
from hf_mpruner.criteria.select import check_number, free_layers
from hf_mpruner.criteria.streams import BlockPass, check_finite, each_pass
from hf_mpruner.errors import CalibrationError


class Angular(Criterion):
    """arccos(cosine) / pi between the input of a run of n blocks and its output; the run with the smallest mean goes.

    In stacks whose blocks see only what came before (decoders) the angle is that of the last real token of each example,
    as in the paper, and the mean is over examples. Elsewhere (encoders) it is the angle of every real token, and the mean
    is over all of them, each one term. Which of both it is, is found out: in the first batch the first block is run
    again with its last real token changed, and a stack is causal if no earlier token notices.

    Where no single run can go (pinned or protected layers, a period), as few runs as possible go, of these the ones with
    the smallest sum of distances.
    """

    name = "angular"
    title = "angle between the input and the output of a run of layers"
    source = "Gromov et al., arXiv 2403.17887, equations 6 and 7"
    cost = "1"
    needs = frozenset({"data"})

    def score(self, inputs: CriterionInputs) -> Scores:
        """Distances of single layers; `pairs` has those of all places: row and column 0 is the input of the first block.

        `pairs` is 1, the largest distance, between places of different shape. `details["tokens"]` is `"last"` or `"all"`.
        """
        measures = {stack.path: _Distances(stack.depth) for stack in inputs.stacks}
        for _ in each_pass(inputs, lambda block: measures[block.path].visit(block), "Measuring angular distance"):
            for measure in measures.values():
                measure.end()
        return {path: measure.scores(path) for path, measure in measures.items()}

    def select(
        self, scores: LayerScores, stack: BlockStack, num_removed: int, protected: Collection[int] = ()
    ) -> tuple[int, ...]:
        """The run of layers that goes, ascending.

        Raises:
            ValueError: if so many cannot go; says how many can.
        """
        check_number(stack, num_removed, protected)
        found = cheapest_runs(scores.pairs, stack, num_removed, protected)
        if found is None:
            possible = [
                number
                for number in range(1, stack.depth)
                if cheapest_runs(scores.pairs, stack, number, protected) is not None
            ]
            raise ValueError(
                f"{num_removed} layers of '{stack.path}' cannot be removed together: {stack.period_reason}. Numbers that "
                f"can: {', '.join(map(str, possible)) or 'none'}."
            )
        return found


class _Distances:
    """Sums of angular distances between all places of one stack; the states of one batch at a time."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.is_causal: bool | None = None
        self._sums = torch.zeros(depth + 1, depth + 1, dtype=torch.float64)
        self._counts = torch.zeros(depth + 1, depth + 1, dtype=torch.float64)
        self._states: list[Tensor] = []

    def visit(self, block: BlockPass) -> None:
        """Keep the states that count; of the first block its input, too."""
        if self.is_causal is None and not self._states:
            self.is_causal = sees_only_the_past(block)
        all_count = self.is_causal is False  # with one token in each example the last is all of them
        places = ([block.before] if not self._states else []) + [block.after]
        for states in places:
            mask = block.mask if states.shape[:2] == block.after.shape[:2] else None
            rows = _real(states, mask) if all_count else last_real(states, mask)
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            check_finite(block, rows)
            # A copy: the next block may add to its input in place.
            self._states.append(rows / rows.norm(dim=1, keepdim=True))

    def end(self) -> None:
        """Add the distances of this batch, and let its states go."""
        for later, after in enumerate(self._states):
            for earlier, before in enumerate(self._states[:later]):
                if before.shape != after.shape:
                    continue
                cosine = (before * after).sum(1).cpu().double()
                known = cosine[~cosine.isnan()]  # where all features are zero there is no angle
                angles = known.clamp(-1, 1).arccos() / math.pi
                self._sums[earlier, later] += angles.sum()
                self._counts[earlier, later] += len(known)
        self._states.clear()

    def scores(self, path: str) -> LayerScores:
        """The mean distances."""
        known = self._counts > 0
        if not known.any():
            raise CalibrationError(
                f"No two places of '{path}' could be compared: everything is padding, or all states are zero. Use other "
                "examples."
            )
        mean = torch.where(known, self._sums / self._counts.clamp(min=1), 1.0).triu(1)
        pairs = (mean + mean.T).tolist()
        values = [pairs[layer][layer + 1] if known[layer, layer + 1] else None for layer in range(self.depth)]
        tokens = {"tokens": "all" if self.is_causal is False else "last"}
        return LayerScores(path, tuple(values), pairs=tuple(map(tuple, pairs)), details=tokens)


def sees_only_the_past(block: BlockPass) -> bool | None:
    """Whether no real token notices when a later one changes, found out by running the block again.

    Args:
        block (`BlockPass`): of a batch; the example with the most real tokens is looked at.

    Returns:
        `bool`, *optional*: `None` if no example has two real tokens: then there is nothing to see.
    """
    if not block.is_same_shape or block.is_map:
        return False
    mask = torch.ones(block.before.shape[:2], dtype=torch.bool) if block.mask is None else block.mask.cpu()
    example = int(mask.sum(1).argmax())
    real = mask[example].nonzero().flatten().tolist()
    if len(real) < 2:
        return None
    changed = block.before.clone()
    changed[example, real[-1]] = changed[example, real[-1]].flip(0) + 1
    moved = (block.again(changed) - block.after)[example, real].abs().amax(1)
    return bool(moved[:-1].max() <= 1e-6 * moved[-1])


def last_real(states: Tensor, mask: Tensor | None) -> Tensor:
    """The last real token of each example that has one, whichever side is padded: `(examples, features)`."""
    if mask is None:
        return states[:, -1]
    index = mask.shape[1] - 1 - mask.int().flip(1).argmax(1)
    return states[torch.arange(len(states), device=states.device), index][mask.any(1)]


def _real(states: Tensor, mask: Tensor | None) -> Tensor:
    return states.flatten(0, 1) if mask is None else states[mask]


def cheapest_runs(
    pairs: Sequence[Sequence[float]], stack: BlockStack, num_removed: int, protected: Collection[int] = ()
) -> tuple[int, ...] | None:
    """The layers of as few contiguous runs as possible, of these with the smallest sum of distances over the runs.

    Args:
        pairs (rows of `float`): distances between places; a run of layers first..last goes from place `first` to
            `last + 1`.
        stack (`BlockStack`): says which layers are pinned, and in which runs layers go.
        num_removed (`int`): how many.
        protected (collection of `int`): layers that stay, besides pinned ones.

    Returns:
        `tuple[int, ...]`, *optional*: ascending; of equal ones the later layers; `None` if so many cannot go together.
    """
    free, depth = set(free_layers(stack, protected)), stack.depth
    # best[place][left]: how to remove `left` of the layers from `place` on, if the layer before stays
    best: list[dict[int, tuple[int, float, tuple[int, ...]]]] = [{} for _ in range(depth + 2)]
    best[depth] = best[depth + 1] = {0: (0, 0.0, ())}
    for place in reversed(range(depth)):
        best[place] = dict(best[place + 1])
        for end in range(place + 1, depth + 1):
            if end - 1 not in free:
                break
            run = tuple(range(place, end))
            if stack.removable(run) != run:
                continue
            for left, (runs, total, layers) in best[end + 1].items():
                option = (runs + 1, total + pairs[place][end], run + layers)
                known = best[place].get(left + len(run))
                if known is None or option[:2] < known[:2]:
                    best[place][left + len(run)] = option
    found = best[0].get(num_removed)
    return None if found is None else found[2]
