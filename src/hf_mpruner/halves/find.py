"""The halves of a block, found by experiment.

The values inside a block are searched for residual sums: a stream x and the output b of a module such that x + c b is
another value. What runs from the block's input to its output by such sums are its halves; a norm may follow each sum
(post-norm). Which half is which is tried out, too: only attention changes at other positions than its input did. That the
sums are all there is to the block is checked: without them its input, or the norms alone, must come out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hf_mpruner.halves.bench import Bench, Pass, each_leaf

Kind = Literal["attention", "cross_attention", "feed_forward"]
Scale = float | Tensor
KINDS: tuple[Kind, ...] = ("attention", "cross_attention", "feed_forward")
TOLERANCE = 1e-5
"""Largest error of a residual sum, relative to its norm: 32-bit sums in another order stay far below."""
_MOST_SUMS = 4
_MOST_STEPS = 500
_FEWEST_ROWS = 8  # to tell a factor for each feature from chance


class UnclearHalvesError(ValueError):
    """The halves of a block cannot be told apart; the text says why."""


@dataclass(frozen=True)
class Half:
    """One residual branch of a block.

    Args:
        kind (`str`): `"attention"` is what mixes positions, `"cross_attention"` what reads other hidden states,
            `"feed_forward"` the rest.
        module (`str`): whose output is added to the residual stream, by its name in the block.
        scale (`float` or `Tensor`): the factor that it is added with; of shape (features,) if each has its own.
        norm (`str`, *optional*): applied to the sum (post-norm).
        parallel (`bool`): added together with the half before, both computed from the same stream.
    """

    kind: Kind
    module: str
    scale: Scale = 1.0
    norm: str | None = None
    parallel: bool = False


class _Sum(NamedTuple):
    """Branches that are added to the stream at once, and what is applied to the sum."""

    modules: tuple[str, ...]
    scales: tuple[Scale, ...]
    norm: str | None = None


def find_halves(bench: Bench) -> tuple[Half, ...]:
    """The halves of a block, in the order in which they are added.

    Args:
        bench (`Bench`): the block, with at least two positions.

    Raises:
        UnclearHalvesError: if the block is not the sum of its input, attention and a feed-forward half, or if that
            cannot be seen.
    """
    if bench.given.shape[1] < 2:
        raise UnclearHalvesError("its input has one position, so attention cannot be told from feed-forward")
    seen = bench.run()
    if not bool(seen.output.isfinite().all()):
        raise UnclearHalvesError("it puts out values that are not finite")
    paths = _Search(bench, seen).paths()
    if not paths:
        raise UnclearHalvesError("its output is not its input plus outputs of its modules")
    longest = max(len(path) for path in paths)
    chosen = {tuple(sum_.modules for sum_ in path): path for path in paths if len(path) == longest}
    if len(chosen) > 1:
        raise UnclearHalvesError(f"it can be read in several ways: {', '.join(map(str, chosen))}")
    (sums,) = chosen.values()
    modules = [name for sum_ in sums for name in sum_.modules]
    _check_complete(bench, sums, modules)
    halves = [
        Half(_kind(bench, name, modules), name, scale, sum_.norm, parallel=place > 0)
        for sum_ in sums
        for place, (name, scale) in enumerate(zip(sum_.modules, sum_.scales, strict=True))
    ]
    kinds = sorted(half.kind for half in halves)
    if kinds not in (["attention", "feed_forward"], ["attention", "cross_attention", "feed_forward"]):
        raise UnclearHalvesError(f"its residual branches are {', '.join(f'{h.module} ({h.kind})' for h in halves)}")
    return tuple(halves)


class _Search:
    """Residual sums among the values inside a block."""

    def __init__(self, bench: Bench, seen: Pass) -> None:
        self._seen = seen
        shape = seen.given.shape
        once = {
            name: value.view(shape)  # experts put out (all positions, features)
            for name, value in seen.outputs.items()
            if seen.calls[name] == 1 and value.numel() == seen.given.numel() and value.shape[-1] == shape[-1]
        }
        self._per_feature = False
        self._known: dict[tuple[int, bool], list[tuple[int, Scale, int]]] = {}
        self._steps = 0
        self._values: list[Tensor] = []
        self._made_by: dict[int, str] = {}  # the last module that put out a value: the nearest to the sum
        self._start, self._end = self._place(seen.given), self._place(seen.output)
        for name, value in once.items():
            self._made_by[self._place(value)] = name
        for value in (*seen.inputs.values(), *seen.outputs.values()):
            if value.shape == shape:
                self._place(value)
        self._made_by.pop(self._start, None)  # dropout of the input, and the like
        self._norms = [name for name in each_leaf(bench.block) if name in once and seen.outputs[name].shape == shape]

    def _place(self, value: Tensor) -> int:
        """Number of a value; equal ones have one."""
        for place, other in enumerate(self._values):
            if _same(value, other):
                return place
        self._values.append(value)
        return len(self._values) - 1

    def paths(self) -> list[list[_Sum]]:
        """All ways from the block's input to its output.

        With one factor for each branch; else in parallel blocks both branches at once; else a factor for each feature.
        """
        found = list(self._walk(self._start, [], {self._start})) or [[sum_] for sum_ in self._pairs()]
        if not found and self._values[self._start].shape[:2].numel() >= _FEWEST_ROWS:
            self._per_feature = True
            found = list(self._walk(self._start, [], {self._start}))
        return found

    def _walk(self, place: int, taken: list[_Sum], visited: set[int]) -> Iterator[list[_Sum]]:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise UnclearHalvesError("too many of the values inside it are sums of others")
        if place == self._end and taken:
            yield taken
            return
        if len(taken) == _MOST_SUMS:
            return
        key = (place, self._per_feature)
        if key not in self._known:
            self._known[key] = list(self._additions(place))
        for branch, scale, reached in self._known[key]:
            if reached in visited:
                continue
            module = self._made_by[branch]
            yield from self._walk(reached, [*taken, _Sum((module,), (scale,))], visited | {reached})
            for norm in self._norms:
                after = self._place(self._seen.outputs[norm])
                if self._place(self._seen.inputs[norm]) == reached and after not in visited | {reached}:
                    sum_ = _Sum((module,), (scale,), norm)
                    yield from self._walk(after, [*taken, sum_], visited | {reached, after})

    def _additions(self, place: int) -> Iterator[tuple[int, Scale, int]]:
        """Branches that lead from one value to another, as (branch, scale, value)."""
        for reached, value in enumerate(self._values):
            difference = value - self._values[place]
            if reached == place:
                continue
            for branch in self._made_by:
                other = self._values[branch]
                if branch in (place, reached) or not float(other.norm()):
                    continue
                if self._per_feature and not _varies(other):  # equal rows fit anything
                    continue
                over = (0, 1) if self._per_feature else (0, 1, 2)
                scale = (difference * other).sum(over) / other.square().sum(over).clamp(
                    min=torch.finfo(other.dtype).tiny
                )
                if float(scale.abs().max()) > TOLERANCE and _same(self._values[place] + scale * other, value):
                    yield branch, scale if self._per_feature else float(scale), reached

    def _pairs(self) -> Iterator[_Sum]:
        """Two branches that are added to the input at once."""
        start, end = self._values[self._start], self._values[self._end]
        branches = [branch for branch in self._made_by if branch != self._end and float(self._values[branch].norm())]
        for pair in combinations(branches, 2):
            columns = torch.stack([self._values[branch].flatten() for branch in pair], 1)
            scales = torch.linalg.lstsq(columns, (end - start).flatten()[:, None]).solution[:, 0]
            total = start + (columns @ scales).view_as(start)
            if bool((scales.abs() > TOLERANCE).all()) and _same(total, end):
                yield _Sum(tuple(self._made_by[branch] for branch in pair), tuple(scales.tolist()))


def _check_complete(bench: Bench, sums: Sequence[_Sum], modules: Sequence[str]) -> None:
    """Without its branches a block must do nothing but apply its norms."""
    with torch.no_grad():
        wanted = bench.given
        for sum_ in sums:
            if sum_.norm is not None:
                wanted = bench.block.get_submodule(sum_.norm)(wanted)
    if not _same(bench.run(silent=modules).output, wanted):
        raise UnclearHalvesError(f"it does more than add up {', '.join(modules)}")


def _kind(bench: Bench, module: str, modules: Sequence[str]) -> Kind:
    """What a branch is, tried out with the others silent."""
    silent = [other for other in modules if other != module]
    whole = bench.run(silent=silent).outputs[module]
    place = torch.arange(bench.given.shape[1], device=bench.given.device)
    for first, size in product((0, 1), (1.0, 10.0)):  # attention that is sure of itself moves only when it must
        changed = place % 2 == first
        hidden = bench.given + size * _noise(bench.given) * changed[:, None]
        change = bench.run({None: hidden}, silent).outputs[module] - whole
        change = change.view(bench.given.shape).abs().amax(-1)
        if float(change[:, ~changed].max()) > TOLERANCE * float(change.max()):
            return "attention"
    for key in bench.others:
        other = bench.argument(key)
        changed = bench.run({key: other + _noise(other)}, silent).outputs[module]
        if not _same(changed, whole):
            return "cross_attention"
    return "feed_forward"


def _noise(like: Tensor) -> Tensor:
    """As large as what it is added to, always the same."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(like.shape, generator=draw).to(like.device)
    return noise * like.std().clamp(min=TOLERANCE)


def _varies(value: Tensor) -> bool:
    rows = value.flatten(0, 1)
    return float(rows.std(0).norm()) > 0.1 * float(rows.norm()) / len(rows) ** 0.5


def _same(one: Tensor, other: Tensor) -> bool:
    return float((one - other).norm()) <= TOLERANCE * float(other.norm())
