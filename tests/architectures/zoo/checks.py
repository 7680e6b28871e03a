"""One model, every kind of cut, every check (`bench.py`): what comes out is a `Verdict`."""

from __future__ import annotations

import json
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from hf_mpruner.architectures import BlockStack, examine
from hf_mpruner.errors import MPrunerError
from zoo.bench import Bench
from zoo.probe import Kept, find_difference, one_line, weights_of

if TYPE_CHECKING:
    from zoo.tiny import Specimen

STATUSES = {
    "right": "a stack can be cut, and every check of every cut passes",
    "refused": "has lists that look like stacks; none can be cut",
    "none": "has no list of blocks",
    "not built": "no tiny model of it could be made and run",
    "wrong": "hf_mpruner said yes, and a check failed",
    "crash": "an error that is no refusal",
    "timeout": "took too long",
}
MOST_FAILURES = 12


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, log lines and progress bars of transformers: 800 configs have much to say that is nobody's fault."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


@dataclass
class Verdict:
    """What came out for one model type. JSON-able: `asdict` and back.

    Args:
        stacks: what was found, one dict a stack: path, block, depth, count, pinned, period, followers.
        left_whole: lists of blocks that are in no stack.
        refusals: why something that looked like a stack is none.
        cuts: how many cuts were tried and done.
        refused_cuts: cuts refused although each stack can be cut, one dict each: cut, reason.
        failures: one dict each: check, cut, message.
        passed: check -> how many cuts passed it.
        not_applicable: "check: reason" -> for how many cuts.
        notes: what a reader should know: towers that this forward does not run, and the like.
    """

    model_type: str
    model_class: str = ""
    status: str = ""
    reason: str = ""
    stacks: list[dict[str, Any]] = field(default_factory=list)
    left_whole: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    cuts: int = 0
    refused_cuts: list[dict[str, str]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    passed: dict[str, int] = field(default_factory=dict)
    not_applicable: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)


def check_type(model_type: str, seed: int = 0) -> Verdict:
    """Build a tiny model of a type and check it."""
    from zoo.tiny import NotBuildable, build_specimen

    try:
        torch.set_num_threads(1)  # tiny tensors are slower on several, and another split has other last bits
        with quiet():
            specimen = build_specimen(model_type, seed)
    except NotBuildable as error:
        return Verdict(model_type, status="not built", reason=str(error))
    except Exception as error:  # the builder runs the code of the type
        return Verdict(model_type, status="not built", reason=one_line(error))
    return check_specimen(specimen)


def check_specimen(specimen: Specimen) -> Verdict:
    """Try every kind of cut on every stack of a model, and check each."""
    verdict = Verdict(specimen.model_type, type(specimen.model).__name__)
    if getattr(specimen, "notes", ""):
        verdict.notes.append(specimen.notes)
    with quiet():
        try:
            bench = Bench(specimen, verdict)
        except Exception as error:  # whatever the model's own code raises
            verdict.status, verdict.reason = "not built", f"the uncut model does not run: {one_line(error)}"
            return verdict
        try:
            _judge(bench, verdict)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            verdict.status = "crash"
            verdict.reason = f"{one_line(error)} ({place.filename.rpartition('/')[2]}:{place.lineno})"
    verdict.passed = dict(sorted(bench.passed.items()))
    verdict.not_applicable = dict(sorted(bench.not_applicable.items()))
    return verdict


def _judge(bench: Bench, verdict: Verdict) -> None:
    try:
        found = examine(bench.model)
    except MPrunerError as error:
        verdict.refusals = [str(error)]
        verdict.status = "refused"
        return
    verdict.refusals = list(found.refusals)
    verdict.stacks = [_describe(stack) for stack in found.stacks]
    verdict.left_whole = find_left_whole(bench.model, found.stacks)
    if not found.stacks:
        verdict.status = "refused" if verdict.left_whole else "none"
        if not verdict.refusals and verdict.left_whole:
            verdict.refusals = [f"no config value alone decides how many entries {verdict.left_whole[0]!r} has"]
        return
    cuts = list(find_cuts(found.stacks))
    for number, kept in enumerate(cuts):
        if len(verdict.failures) < MOST_FAILURES:
            bench.try_cut(found, kept, name_cut(found.stacks, kept), thorough=number in (1, len(cuts) - 1))
    bench.record("undo", "all cuts", lambda: find_difference(weights_of(bench.model), bench.weights))
    shown = bench.finish()
    verdict.status = "wrong" if verdict.failures else "right" if verdict.cuts else "refused"
    if verdict.status == "right" and not shown:
        verdict.status, verdict.reason = "not built", "the forward uses none of its stacks, so that no cut shows"


def _describe(stack: BlockStack) -> dict[str, Any]:
    return {
        "path": stack.path,
        "block": stack.block_class,
        "depth": stack.depth,
        "count": str(stack.count),
        "pinned": {str(layer): reason for layer, reason in stack.pinned.items()},
        "period": stack.period,
        "followers": [follower.path for follower in stack.followers],
    }


def find_left_whole(model: nn.Module, stacks: Sequence[BlockStack]) -> list[str]:
    """Outermost lists of two or more modules of one class, not torch's own, that no stack covers.

    Found by looks alone, so that a stack which hf_mpruner passes over in silence is seen as well.
    """
    taken = [path for stack in stacks for path in (stack.path, *(follower.path for follower in stack.followers))]
    found: list[str] = []
    for path, module in model.named_modules():
        kinds = {type(child) for child in module} if isinstance(module, nn.ModuleList) and len(module) > 1 else set()
        related = any(f"{path}.".startswith(f"{other}.") or other.startswith(f"{path}.") for other in taken + found)
        if len(kinds) == 1 and not related and not next(iter(kinds)).__module__.startswith("torch."):
            found.append(path)
    return found


def find_removals(stack: BlockStack) -> list[tuple[int, ...]]:
    """First, middle, last prunable run of blocks, two adjacent and two separate runs. A run is one block, or a period.

    Example:
        >>> from hf_mpruner.architectures import ConfigField
        >>> find_removals(BlockStack("h", "Block", 5, ConfigField("n_layer"), pinned={0: "opens the stack"}))
        [(1,), (3,), (4,), (1, 2), (1, 4)]
    """
    period, layers = stack.period, set(stack.prunable)
    runs = [tuple(range(start, start + period)) for start in range(stack.depth - period + 1)]
    runs = [run for run in runs if layers.issuperset(run)]
    removals = [runs[0], runs[len(runs) // 2], runs[-1]] if runs else []
    if period > 1:  # from the end, any number may go
        ends = [tuple(range(stack.depth - number, stack.depth)) for number in (1, 2)]
        removals += [end for end in ends if layers.issuperset(end)]
    removals += [one + other for one in runs for other in runs if other[0] == one[-1] + 1][:1]
    if runs and runs[-1][0] > runs[0][-1] + 1:
        removals.append(runs[0] + runs[-1])
    return [removed for removed in dict.fromkeys(removals) if len(removed) < stack.depth]


def find_cuts(stacks: Sequence[BlockStack]) -> Iterator[dict[str, list[int]]]:
    """The kept layers of every cut to try: each stack by itself, then the middle of all stacks at once.

    The first two stacks get every removal, the next two (towers, stages) the middle and the last one, others one.
    """
    middles = {}
    for number, stack in enumerate(stacks):
        removals = find_removals(stack)
        if number >= 2:
            removals = list(dict.fromkeys((*removals[1:2], *removals[-1:])))[: 2 if number < 4 else 1]
        for removed in removals:
            yield {stack.path: [layer for layer in range(stack.depth) if layer not in removed]}
        if removals:
            middle = removals[min(1, len(removals) - 1)] if number < 2 else removals[0]
            middles[stack.path] = [layer for layer in range(stack.depth) if layer not in middle]
    if len(middles) > 1:
        yield middles


def name_cut(stacks: Sequence[BlockStack], kept: Kept) -> str:
    """E.g. `encoder.layer without 1, 3`."""
    depths = {stack.path: stack.depth for stack in stacks}
    gone = {p: ", ".join(str(n) for n in range(depths[p]) if n not in layers) for p, layers in kept.items()}
    return "; ".join(f"{path} without {layers}" for path, layers in gone.items())[:200]
