"""From limits on parameters, bytes and time to how many layers of each stack are to be left.

What a limit needs is found before anything is measured or trained: parameters and bytes follow from the cut as it is
proved, a time is that of the model cut for a moment and put back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .architectures import BlockStack, Examination, Remains, count_remaining, examine, prove_cut, remains_of
from .architectures.adapters import adapter_configs, unwrap_adapters
from .config import PruningConfig, resolve_targets
from .criteria import LayerScores, Quota, pick_lowest
from .criteria.rounds import Protected
from .criteria.shares import possible_totals, proportional, share_out
from .cut import check_usable
from .errors import MPrunerError, UnsupportedArchitectureError
from .footprint import saved_bytes
from .record import Measurement, PruningRecord
from .report.limits import amount
from .runtime import Runtime, SingleProcess
from .surgery import ModelEdit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TimeForward = Callable[[PruningRecord, Measurement], None]
Removed = Mapping[str, int]


@dataclass(frozen=True)
class Target:
    """What the limits of a config come to for one model.

    Args:
        num_layers (`dict[str, int]`): layers that are to be left in each stack that shrinks.
        asked (`dict[str, str]`): all targets as they were given, by field of the config.
        limits (`dict[str, float]`): those of parameters, bytes and time, in parameters, bytes and seconds.
        uncut (`dict[str, float]`): what the uncut model has of each.
        expected (`dict[str, float]`): what a model of so many layers has of each, before it is cut.
    """

    num_layers: dict[str, int]
    asked: dict[str, str]
    limits: dict[str, float]
    uncut: dict[str, float]
    expected: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def asked_of(config: PruningConfig) -> dict[str, str]:
    """The targets of a config as they were given, by field."""
    named = {} if config.target_num_layers is None else {"target_num_layers": ",".join(config.target_num_layers)}
    return {**named, **{name: str(getattr(config, name)) for name in config.limits}}


def choose_stacks(stacks: Sequence[BlockStack], paths: Sequence[str] | None) -> list[BlockStack]:
    """The stacks of a model that may shrink.

    Args:
        stacks (`Sequence[BlockStack]`): of the model.
        paths (`Sequence[str]`, *optional*): of `PruningConfig.stacks`; all without it.

    Raises:
        ValueError: for a path that is none of them.
    """
    known = [stack.path for stack in stacks]
    unknown = [path for path in paths or [] if path not in known]
    if unknown:
        raise ValueError(
            f"stacks={unknown} are no block stacks of this model. Its stacks are: {', '.join(known)}; pass some of these."
        )
    return [stack for stack in stacks if paths is None or stack.path in paths]


def settle_target(
    model: PreTrainedModel,
    config: PruningConfig,
    stacks: Sequence[BlockStack],
    record: PruningRecord,
    protected: Protected,
    time_forward: TimeForward | None = None,
    runtime: Runtime | None = None,
) -> Target:
    """How many layers of each stack are to be left, so that a model is within every limit.

    A stack that `target_num_layers` names has that number; the others lose as few layers as are needed, each the same share
    of what it can lose (`proportional`). Numbers that a round would refuse to cut to are passed over. Of a number of layers
    those of the fewest parameters are counted as gone, so that no criterion leaves more.

    Args:
        model (`PreTrainedModel`): as it is now; uncut, or what the accepted rounds of `record` left.
        config (`PruningConfig`): with limits.
        stacks (`Sequence[BlockStack]`): of the model, that may shrink.
        record (`PruningRecord`): of the run. `latency` and `baseline` are what times and percentages refer to.
        protected (`Mapping[str, Collection[int]]`): for each stack layers that stay, in the numbering of now.
        time_forward (callable, *optional*): gets a record and a measurement of the model as it is, writes its latency
            into them; needed for `target_latency`.
        runtime (`Runtime`, *optional*): the processes, which all call this at the same moment.

    Raises:
        ValueError: if nothing has to go; if no plan is within a limit, with the closest; if `target_num_layers` and a
            limit contradict each other, with both numbers.
        MPrunerError: if something cannot be measured that a limit is about.
    """
    found = _Sizes(model, config, stacks, record, protected, time_forward, runtime or SingleProcess())
    named = resolve_targets(config.target_num_layers or [], record.depths)
    live = {stack.path: stack.depth for stack in stacks}
    first = {path: max(0, live[path] - number) for path, number in named.items() if path in live}
    free = [stack for stack in stacks if stack.path not in named]
    possible = Quota(config, record.depths).possible(free, protected)
    gone = {path: record.depths[path] - depth for path, depth in live.items()}
    steps = [first]
    for total in possible_totals(possible):
        steps.append({**first, **(share_out(total, proportional(possible, gone, total)) or {})})
    limits = {name: limit.of(found.uncut(name)) for name, limit in config.limits.items()}
    nothing = dict.fromkeys(live, 0)
    if not any(first.values()) and not record.rounds and all(found(n, nothing) <= limits[n] for n in limits):
        has = " and ".join(f"{name}={getattr(config, name)!r} allows {amount(name, limits[name])}" for name in limits)
        raise ValueError(
            f"Nothing has to go: the model has {_listed(found, nothing, limits)}, and {has}. Name a smaller limit, or leave "
            "it out."
        )
    steps = [step for step in steps if found.can_be_cut(step)] or steps[:1]
    place = 0
    for name, limit in limits.items():
        place = _first_within(lambda at, name=name: found(name, steps[at]), limit, place, len(steps))  # type: ignore[misc]
        if place == len(steps):
            raise ValueError(_out_of_reach(found, config, name, limit, steps[-1], free, named))
    left = {path: depth - steps[place].get(path, 0) for path, depth in live.items()}
    return Target(
        {path: number for path, number in left.items() if path in named or number < record.depths[path]},
        asked_of(config),
        limits,
        {name: found.uncut(name) for name in limits},
        {name: found(name, steps[place]) for name in limits},
    )


def _first_within(measure: Callable[[int], float], limit: float, low: int, end: int) -> int:
    """The first step of `low..end - 1` that is within a limit, by bisection; `end` if the last is not."""
    if measure(low) <= limit:
        return low
    if measure(end - 1) > limit:
        return end
    high = end - 1
    while high - low > 1:  # `low` is not within, `high` is
        middle = (low + high) // 2
        low, high = (low, middle) if measure(middle) <= limit else (middle, high)
    return high


class _Sizes:
    """What a model has with some layers gone; every value is found once."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: PruningConfig,
        stacks: Sequence[BlockStack],
        record: PruningRecord,
        protected: Protected,
        time_forward: TimeForward | None,
        runtime: Runtime,
    ) -> None:
        self._model: Any = unwrap_adapters(model)
        self.stacks, self._record, self._protected = {stack.path: stack for stack in stacks}, record, protected
        self._time_forward, self._runtime = time_forward, runtime
        self._known: dict[tuple[str, tuple[int, ...]], float] = {}
        self._proofs: dict[tuple[int, ...], Remains | None] = {}
        if "target_size" in config.limits and adapter_configs(model):
            raise ValueError(
                f"target_size={config.target_size!r}: adapters are saved apart from their base, so there is no one size. Pass "
                "target_parameters, or merge the adapters first (merge_and_unload)."
            )
        if "target_latency" in config.limits and time_forward is None:
            raise MPrunerError(f"target_latency={config.target_latency!r} needs data to time the model on.")

    @cached_property
    def _found(self) -> Examination:
        return examine(self._model)

    def __call__(self, name: str, removed: Removed) -> float:
        """A limit's value with so many layers of each stack gone; the smallest layers, which leaves most."""
        key = (name, self._key(removed))
        if key not in self._known:
            self._known[key] = self._measure(name, removed)
        return self._known[key]

    def can_be_cut(self, removed: Removed) -> bool:
        """Whether a cut to so many layers can be proved right, and used afterwards; if not, a round would refuse it."""
        return self._remains(removed) is not None

    def _key(self, removed: Removed) -> tuple[int, ...]:
        return tuple(removed.get(path, 0) for path in self.stacks)

    def _remains(self, removed: Removed) -> Remains | None:
        key = self._key(removed)
        if key not in self._proofs:
            kept, remains = self.kept(removed), Remains({})
            try:
                if kept:
                    proof = prove_cut(self._model, self._found, kept)
                    check_usable(self._model, proof)
                    remains = Remains(proof.cuts, proof.moves, proof.slices)
            except UnsupportedArchitectureError:
                self._proofs[key] = None
            else:
                self._proofs[key] = remains
        return self._proofs[key]

    def uncut(self, name: str) -> float:
        """A limit's value of the model that the run began with."""
        before = self._record.baseline
        if before is None or not self._record.rounds:
            return self(name, {})
        found = {
            "target_parameters": before.parameters,
            "target_size": before.saved_bytes,
            "target_latency": before.latency_seconds,
        }[name]
        if found is None:
            raise MPrunerError(f"{name}: the record of this run does not say what the uncut model has.")
        return float(found)

    def kept(self, removed: Removed) -> dict[str, list[int]]:
        """The layers that stay of the stacks that lose any."""
        found = {}
        for path, stack in self.stacks.items():
            if number := removed.get(path, 0):
                sizes = [sum(weight.numel() for weight in block.parameters()) for block in self._blocks(path)]
                scores = LayerScores(path, tuple(map(float, sizes)))
                gone = pick_lowest(scores, stack, number, self._protected.get(path, ()))
                found[path] = [layer for layer in range(stack.depth) if layer not in gone]
        return found

    def _blocks(self, path: str) -> Any:
        return self._model.get_submodule(path)

    def _measure(self, name: str, removed: Removed) -> float:
        kept = self.kept(removed)
        if name in ("target_parameters", "target_size"):
            # where the proof failed it fails again here, and says why
            remains = self._remains(removed) or remains_of(self._model, kept, found=self._found)
            size = saved_bytes(self._model, remains) if name == "target_size" else None
            return float(count_remaining(self._model, remains)[0] if size is None else size)
        return self._time_cut(kept) if kept else self._time()

    def _time(self) -> float:
        """Seconds of a pass of the model as it is: the smaller of two medians, since other work can only add to one."""
        found = []
        for _ in range(2):
            measured = Measurement(0, 0)
            if self._time_forward is not None:
                self._time_forward(self._record, measured)
            if measured.latency_seconds is None:
                raise MPrunerError(
                    "target_latency: the time of a forward pass could not be measured; the warning above says why. Name "
                    "target_parameters or target_size instead."
                )
            found.append(measured.latency_seconds)
        return min(found)

    def _time_cut(self, kept: Mapping[str, list[int]]) -> float:
        """Time the model without layers; afterwards it is as it was.

        It is cut, not run with the layers skipped: blocks that put out several tensors, or fill a cache, are computed all
        the same when they are skipped.
        """
        self._runtime.before_edit()
        edit = ModelEdit(self._model, kept, found=self._found)
        edit.apply()
        try:
            return self._time()
        finally:
            self._runtime.before_edit()
            edit.undo()


def _listed(found: _Sizes, removed: Removed, limits: Mapping[str, float]) -> str:
    return " and ".join(amount(name, found(name, removed)) for name in limits)


def _out_of_reach(
    found: _Sizes,
    config: PruningConfig,
    name: str,
    limit: float,
    removed: Removed,
    free: Sequence[BlockStack],
    named: Mapping[str, int],
) -> str:
    """Why no plan is within a limit, with the closest."""
    left = ", ".join(f"{stack.depth - removed.get(path, 0)} of '{path}'" for path, stack in found.stacks.items())
    given, has = f"{name}={getattr(config, name)!r}", amount(name, found(name, removed))
    if named and not free:
        entries = ", ".join(config.target_num_layers or ())
        return (
            f"target_num_layers={entries} contradicts {given}: with {left} left the model has {has}, and {given} allows "
            f"{amount(name, limit)}. Ask for fewer layers, allow more, or leave one of the two out."
        )
    fewest = "target_num_layers and the fewest layers" if named else "the fewest layers"
    return (
        f"{given} cannot be reached: with {fewest} that can be left ({left}) the model has {has}, and "
        f"{amount(name, limit)} were asked for. Allow {amount(name, found(name, removed))} or more"
        + (", or protect fewer layers." if config.protect else ".")
    )
