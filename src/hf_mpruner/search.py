"""How many layers are tried next where nobody says how many go: galloping, then bisection, read off the record alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, NamedTuple

from .architectures import BlockStack
from .criteria import Criterion, Quota, ScoredLayers, hold_protected, plan_layers, possible_totals, share_by
from .plan import PruningPlan
from .record import PruningRecord
from .roundplan import RoundPlan, find_alike

# Scores of some stacks for as many layers of each as may go, and the seconds that they took.
ScoreOnce = Callable[[list[BlockStack], dict[str, int]], tuple[ScoredLayers, float]]


class Standing(NamedTuple):
    """Where a search stands.

    Args:
        removed (`int`): layers that the last accepted model lacks.
        rejected (`int`, *optional*): the smallest number of layers whose cut was judged and rejected.
        num_accepted (`int`): accepted rounds.
        num_rejected (`int`): rounds that were judged and rejected.
        refused (`tuple`): what would have been kept by the cuts of the last accepted model that could not be proved right;
            for each stack, in the original numbering.
    """

    removed: int = 0
    rejected: int | None = None
    num_accepted: int = 0
    num_rejected: int = 0
    refused: tuple[Mapping[str, Sequence[int]], ...] = ()

    @property
    def num_recoveries(self) -> int:
        """Candidates that were trained and judged."""
        return self.num_accepted + self.num_rejected


@dataclass(frozen=True)
class SearchBounds:
    """What a search can cost at most, known before its first cut.

    Args:
        numbers (`tuple` of `int`): the numbers of layers, over all stacks, that may go together; ascending.
        most_recoveries (`int`): candidates that are trained and judged at most.
        num_branches (`int`): one more than the number of rejections after which a further candidate can follow: what
            `TestLevels` has to pay for.
    """

    numbers: tuple[int, ...]
    most_recoveries: int
    num_branches: int

    @classmethod
    def of(cls, numbers: Sequence[int], max_rounds: int | None = None, spent: int = 0) -> SearchBounds:
        """The bounds of a search through some numbers of layers.

        Args:
            numbers (sequence of `int`): ascending, without 0.
            max_rounds (`int`, *optional*): rounds after which the run stops anyway.
            spent (`int`): candidates that were trained and judged before it.

        Example:
            >>> SearchBounds.of(range(1, 12))
            SearchBounds(numbers=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), most_recoveries=6, num_branches=3)
        """
        recoveries, rejections = _worst(len(numbers), 0)
        most = spent + recoveries
        return cls(tuple(numbers), most if max_rounds is None else min(most, max_rounds), rejections + 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "numbers": list(self.numbers)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SearchBounds:
        """Build from `to_dict()`'s result."""
        return cls(**{**values, "numbers": tuple(values["numbers"])})


class LayerSearch:
    """Plans the rounds of a search.

    Each candidate is cut from the last accepted model, so that what it recovered is not lost. Which of its layers go for a
    number, the criterion says, of the model as it is.

    Args:
        quota (`Quota`): how many layers may go.
        bounds (`SearchBounds`): what the search can cost.
    """

    def __init__(self, quota: Quota, bounds: SearchBounds) -> None:
        """Nothing is planned yet."""
        self.bounds, self._quota = bounds, quota

    @classmethod
    def begin(
        cls,
        quota: Quota,
        stacks: Sequence[BlockStack],
        held: Mapping[str, set[int]],
        max_rounds: int | None = None,
        record: PruningRecord | None = None,
    ) -> LayerSearch:
        """The search of a run that begins, or whose limits have changed.

        Args:
            quota (`Quota`): how many layers may go.
            stacks (`Sequence[BlockStack]`): of the model as it is.
            held (`Mapping[str, set[int]]`): for each of them the layers that stay, besides pinned ones.
            max_rounds (`int`, *optional*): rounds after which the run stops anyway.
            record (`PruningRecord`, *optional*): the run so far; by default nothing was cut.
        """
        standing = Standing() if record is None else stand(record)
        numbers = [standing.removed + number for number in possible_totals(quota.possible(stacks, held))]
        return cls(quota, SearchBounds.of(numbers, max_rounds, standing.num_recoveries))

    @classmethod
    def resume(cls, quota: Quota, record: PruningRecord) -> LayerSearch:
        """The search of a run that is gone on with; of one that searched for nothing before, as if every layer could go."""
        layers = sum(record.depths.values()) - len(record.depths)
        known = record.search or SearchBounds.of(range(1, layers + 1)).to_dict()
        return cls(quota, SearchBounds.from_dict(known))

    def plan(
        self,
        criterion: Criterion,
        stacks: Sequence[BlockStack],
        protected: Mapping[str, list[int]],
        record: PruningRecord,
        score: ScoreOnce,
    ) -> RoundPlan | str:
        """The round for the number of layers that is tried next, or in words why there is none.

        Args:
            criterion (`Criterion`): says which layers go.
            stacks (`Sequence[BlockStack]`): of the model as it is.
            protected (`Mapping[str, list[int]]`): for each of them the layers that the user wants to stay.
            record (`PruningRecord`): the run so far.
            score (callable): lets the criterion score stacks, once for a model.
        """
        standing, held = stand(record), hold_protected(stacks, protected)
        possible = self._quota.possible(stacks, protected)
        gone = {path: depth - len(record.kept[path]) for path, depth in record.depths.items()}
        entries = [f"{path}:{layer}" for path, layers in protected.items() for layer in layers]
        numbers = [standing.removed + number for number in possible_totals(possible)]
        # Refusals may leave more to try than was paid for.
        is_left = standing.num_recoveries < self.bounds.most_recoveries
        while is_left and (number := next_number(numbers, standing)) is not None:
            total = number - standing.removed
            scored, seconds = score(held, {path: min(max(fitting), total) for path, fitting in possible.items()})
            for by_scores in (True, False):
                try:
                    shares = share_by(criterion, scored, held, protected, possible, gone, total, by_scores=by_scores)
                    plan = plan_layers(criterion, scored, stacks, shares, entries)
                except ValueError:  # so many cannot go together by this criterion
                    continue
                if _kept_by(plan, record) not in standing.refused:
                    return RoundPlan(plan, record.granularity, *find_alike(scored, plan), seconds, scored)
            numbers.remove(number)
        return why_over(record, standing)

    def over(self, record: PruningRecord) -> str | None:
        """Why no further number is tried, in words, as far as that is known without a look at the model."""
        standing = stand(record)
        return why_over(record, standing) if next_number(self.bounds.numbers, standing) is None else None


def stand(record: PruningRecord) -> Standing:
    """Where the search of a run stands; what a run that is gone on with needs to know is all here.

    A round that was refused, or whose cut was taken back without an evaluation, was not tested.
    """
    before = sum(record.depths.values())
    removed = before - sum(map(len, record.kept.values()))
    accepted, rejected, refused = 0, list[int](), list[Mapping[str, Sequence[int]]]()
    for round_ in record.rounds:
        number = before - sum(map(len, round_.kept.values()))
        if round_.verdict in ("accepted", "unjudged"):
            accepted += 1
            refused.clear()
        elif round_.refused:
            refused.append(round_.kept)
        elif round_.was_tested:
            rejected.append(number)
    return Standing(removed, min(rejected, default=None), accepted, len(rejected), tuple(refused))


def next_number(possible: Sequence[int], standing: Standing) -> int | None:
    """The number of layers to try next, all that are gone already included; `None` once the search is over.

    Until something is rejected 1, 2, 4, ... more of the possible numbers are skipped to than were accepted last, and the
    largest one where that is beyond it. Then the middle one of those between the accepted and the rejected number. Both
    assume that more layers lose more; where that is wrong, a larger number that would pass may be missed.

    Args:
        possible (sequence of `int`): ascending, what the last accepted model can be cut to.
        standing (`Standing`): so far.

    Example:
        >>> next_number(range(1, 12), Standing())
        1
        >>> next_number(range(1, 12), Standing(removed=3, num_accepted=2))
        7
        >>> next_number(range(1, 12), Standing(removed=3, rejected=7, num_accepted=2, num_rejected=1))
        5
    """
    end = standing.rejected
    left = [number for number in possible if number > standing.removed and (end is None or number < end)]
    return left[_place(len(left), standing.num_accepted if end is None else None)] if left else None


def most_recoveries(num_numbers: int) -> int:
    """The most candidates that a search through so many numbers of layers trains and judges: about 2 log2 of it.

    Example:
        >>> [most_recoveries(number) for number in (1, 2, 3, 5, 11, 23, 47)]
        [1, 2, 3, 4, 6, 8, 10]
    """
    return _worst(num_numbers, 0)[0]


def num_branches(num_numbers: int) -> int:
    """One more than the number of rejections after which a search through so many numbers can try another.

    Example:
        >>> [num_branches(number) for number in (1, 2, 3, 11, 47)]
        [1, 1, 2, 3, 5]
    """
    return _worst(num_numbers, 0)[1] + 1


def why_over(record: PruningRecord, standing: Standing) -> str:
    """Why no further number is tried, in words."""
    if standing.rejected is None:
        reason = "no further layer can go" if standing.removed else "no layer can go"
    else:
        found = f"{standing.removed} of {sum(record.depths.values())} layers go"
        reason = f"the search is over: {found}, a cut of {standing.rejected} was rejected"
    refused = {sum(record.depths.values()) - sum(map(len, kept.values())) for kept in standing.refused}
    below = sorted(number for number in refused if standing.rejected is None or number < standing.rejected)
    return f"{reason}; cuts to lose {', '.join(map(str, below))} were refused" if below else reason


def _kept_by(plan: PruningPlan, record: PruningRecord) -> dict[str, list[int]]:
    """The layers that a plan would keep of the last accepted model, in the original numbering."""
    before = record.kept
    return {**before, **{path: [before[path][layer] for layer in stack.kept] for path, stack in plan.stacks.items()}}


def _place(num_left: int, num_accepted: int | None) -> int:
    """Which of the numbers that are left is next; `num_accepted` is `None` once something was rejected."""
    return (num_left - 1) // 2 if num_accepted is None else min(2**num_accepted, num_left) - 1


@cache
def _worst(num_left: int, num_accepted: int | None) -> tuple[int, int]:
    """Most candidates from here on, and most rejections after which one more candidate follows."""
    if not num_left:
        return 0, 0
    place = _place(num_left, num_accepted)
    tests_below, rejections_below = _worst(place, None)
    tests_above, rejections_above = _worst(num_left - place - 1, None if num_accepted is None else num_accepted + 1)
    rejected_here = 1 + rejections_below if place else 0
    return 1 + max(tests_below, tests_above), max(rejected_here, rejections_above)
