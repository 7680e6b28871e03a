"""What a right cut is: the checks of one cut of one model.

Each check is made on the uncut model first. Where that fails already, the check says nothing about the cut: it is not
applicable, with the reason, and never a pass.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from hf_mpruner import PruningPlan
from hf_mpruner.architectures import Examination, count_parameters, parameters_after
from hf_mpruner.errors import MPrunerError
from hf_mpruner.surgery import ModelEdit, apply_plan_
from zoo import probe
from zoo.probe import Kept, NoReferenceError, find_difference, one_line
from zoo.skip import find_between, skipped

if TYPE_CHECKING:
    from zoo.checks import Verdict
    from zoo.tiny import Specimen

ROUNDING = 1e-5
Generated = tuple[probe.Outputs, probe.Outputs] | Exception


class Bench:
    """A model under test: what it did uncut, which checks apply to it, and the count of what passed."""

    def __init__(self, specimen: Specimen, verdict: Verdict) -> None:
        self.specimen, self.verdict = specimen, verdict
        self.model, self.inputs = specimen.model, specimen.inputs
        self.passed: Counter[str] = Counter()
        self.not_applicable: Counter[str] = Counter()
        self.exempt: dict[str, str] = {}
        self.used: dict[str, dict[str, bool]] = {}
        self.whole = probe.run(self.model, self.inputs)
        main = next(iter(self.whole.values()))
        if main.isfinite().float().mean() < 0.5:
            raise NoReferenceError("most of its outputs are not finite")
        if not all(tensor.isfinite().all() for tensor in self.whole.values()):
            verdict.notes.append("some outputs of the uncut model are not finite")
        if fault := find_difference(probe.run(self.model, self.inputs), self.whole):
            raise NoReferenceError(f"two passes differ: {fault}")
        self.reached: set[int] = set()
        self.generate: Any = None
        self._try_uncut()
        probe.run(self.model, self.inputs)  # some modules keep a number from the last pass
        self.weights = probe.weights_of(self.model)

    def _try_uncut(self) -> None:
        """Find out which checks the uncut model itself passes. Saving it also settles what saving writes to it."""

        def prepare(check: str, call: Callable[[], Any]) -> Any:
            try:
                return call()
            except Exception as error:  # whatever the model's own code raises
                reason = str(error) if isinstance(error, NoReferenceError) else one_line(error, 160)
                self.exempt[check] = f"the uncut model fails it ({reason})"

        def same(model: Any) -> None:
            if fault := find_difference(probe.run(model, self.inputs), self.whole):
                raise NoReferenceError(fault)

        prepare("rebuild", lambda: same(probe.rebuild(self.model)))
        prepare("reload", lambda: [same(loaded) for loaded in probe.save_and_load(self.model, None)])
        if auto := self.specimen.auto_class:
            prepare("auto", lambda: [same(loaded) for loaded in probe.save_and_load(self.model, auto)])
        else:
            self.exempt["auto"] = "no Auto class loads it"
        self.reached = prepare("train", lambda: probe.find_reached(self.model, self.inputs)) or set()
        self.generate = prepare("generate", lambda: probe.find_generator(self.model, self.inputs))
        if "generate" in self.exempt and not self.model.can_generate():
            self.exempt["generate"] = "the class does not generate"
        prepare("replay", lambda: same(copy.deepcopy(self.model)))

    def record(self, check: str, cut: str, call: Callable[[], str | None]) -> bool:
        """Make one check; `call` returns what is wrong. True if nothing is."""
        try:
            fault = NoReferenceError(self.exempt[check]) if check in self.exempt else call()
        except NoReferenceError as error:
            fault = error
        except Exception as error:  # a cut model may fail anywhere
            fault = one_line(error)
        fault = fault[:300] if isinstance(fault, str) else fault
        if fault is None:
            self.passed[check] += 1
        elif isinstance(fault, NoReferenceError):
            self.not_applicable[f"{check}: {fault}"] += 1
        else:
            self.verdict.failures.append({"check": check, "cut": cut, "message": fault})
        return fault is None

    def try_cut(self, found: Examination, kept: Kept, cut: str, *, thorough: bool) -> None:
        """Make one cut, check it, take it back. `cut` names it; `thorough`: also over the disk and as a saved plan."""
        model = self.model
        state, size = probe.state_of(model), count_parameters(model)
        try:
            edit = ModelEdit(model, kept, found=found)
        except MPrunerError as error:
            self.verdict.refused_cuts.append({"cut": cut, "reason": str(error)})
            self.record("undo", f"{cut} (refused)", lambda: self._undo_fault(state))
            return
        fresh = copy.deepcopy(model) if thorough and "replay" not in self.exempt else None
        left, promised = size - edit.num_removed_parameters, parameters_after(model, kept, found=found)[0]
        edit.apply()
        self.verdict.cuts += 1
        outputs: probe.Outputs = {}
        lost: set[int] = set()
        generated: Generated = NoReferenceError("the forward fails")
        try:
            runs = self.record("forward", cut, lambda: self._forward_fault(outputs))
            self.record("parameters", cut, lambda: _count_fault(model, left, "num_removed_parameters"))
            self.record("preview", cut, lambda: _count_fault(model, promised, "parameters_after"))
            if runs:
                self._check_copies(cut, outputs, thorough)
                generated = self._generate(edit)
                lost = self._lost_gradients(cut)
                if fresh is not None:
                    plan = PruningPlan.from_kept(kept, found.stacks)
                    self.record("replay", cut, lambda: self._replay_fault(fresh, plan, outputs))
        finally:
            edit.undo()
        self.record("undo", cut, lambda: self._undo_fault(state))
        if not runs:
            return
        self.record("skip", cut, lambda: self._skip_fault(kept, _with_followers(found, kept), outputs))
        self.record("generate", cut, lambda: self._generation_fault(kept, generated))
        if "train" not in self.exempt:
            self.record("train", cut, lambda: self._train_fault(kept, lost))
        for path in kept if len(kept) == 1 else ():
            self.used.setdefault(path, {})[cut] = find_difference(outputs, self.whole) is not None

    def _forward_fault(self, outputs: probe.Outputs) -> str | None:
        outputs.update(probe.run(self.model, self.inputs))
        for name, tensor in outputs.items():
            if not tensor.isfinite().all() and (name not in self.whole or self.whole[name].isfinite().all()):
                return f"{name} is not finite"
        return None

    def _check_copies(self, cut: str, outputs: probe.Outputs, thorough: bool) -> None:
        """Models that know nothing of the surgery, made of the config and weights that it left."""

        def fault_of(loaded: Any) -> str | None:
            return find_difference(probe.run(loaded, self.inputs), outputs)

        self.record("rebuild", cut, lambda: fault_of(probe.rebuild(self.model)))
        if thorough:
            auto = self.specimen.auto_class
            loads = probe.save_and_load(self.model, auto)
            if self.record("reload", cut, lambda: fault_of(next(loads))):
                self.record("auto", cut, lambda: fault_of(next(loads)))
            loads.close()

    def _generate(self, edit: ModelEdit) -> Generated:
        if "generate" in self.exempt:
            return NoReferenceError(self.exempt["generate"])
        if edit.proof.warning:
            return NoReferenceError("hf_mpruner warns that it will not work")
        try:
            return probe.generate_twice(self.model, self.inputs, self.generate)
        except Exception as error:  # a cut model may fail anywhere
            return error

    def _generation_fault(self, kept: Kept, generated: Generated) -> str | None:
        """With sparse attention the cache may change what is attended to: then in the skip reference in the same way."""
        if isinstance(generated, Exception):
            raise generated
        fault = probe.find_generation_fault(*generated)
        if fault is None:
            return None
        try:
            with skipped(self.model, kept):
                wanted = probe.generate_twice(self.model, self.inputs, self.generate)
        except Exception:  # the reference has no say then
            return fault
        if any(probe.find_generation_fault(one, other) for one, other in zip(generated, wanted, strict=True)):
            return fault
        raise NoReferenceError("the uncut model with these blocks skipped differs with a cache in the same way")

    def _lost_gradients(self, cut: str) -> set[int]:
        """Parameters that a training step no longer reaches."""
        if "train" in self.exempt:
            self.record("train", cut, lambda: None)
            return set()
        try:
            reached = probe.find_reached(self.model, self.inputs)
        except NoReferenceError:
            reached = set()
        return {id(parameter) for parameter in self.model.parameters()} & self.reached - reached

    def _train_fault(self, kept: Kept, lost: set[int]) -> str | None:
        """A parameter may be out of reach because only removed blocks led there; the skip reference says so as well."""
        if not lost:
            return None
        try:
            with skipped(self.model, kept):
                reached = probe.find_reached(self.model, self.inputs)
        except Exception as error:  # what the skip check reports, says why
            raise NoReferenceError(f"no skip reference ({one_line(error, 80)})") from error
        names = [name for name, parameter in self.model.named_parameters() if id(parameter) in lost & reached]
        return f"not reached any more: {', '.join(names[:3])} ({len(names)} in all)" if names else None

    def _replay_fault(self, fresh: Any, plan: PruningPlan, outputs: probe.Outputs) -> str | None:
        apply_plan_(fresh, PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict()))))
        if fresh.config.to_dict() != self.model.config.to_dict():
            return "the configs differ"
        return find_difference(dict(fresh.state_dict()), dict(self.model.state_dict())) or find_difference(
            probe.run(fresh, self.inputs), outputs
        )

    def _undo_fault(self, state: dict[str, Any]) -> str | None:
        outputs = probe.run(self.model, self.inputs)
        now = probe.state_of(self.model)
        changed = [part for part in state if state[part] != now[part]]
        if changed:
            return (
                f"{' and '.join(changed)} of the model are not what they were: {_name_change(state, now, changed[0])}"
            )
        return find_difference(outputs, self.whole)

    def _skip_fault(self, kept: Kept, wider: Kept, outputs: probe.Outputs) -> str | None:
        """Compare with the skip reference, in the first of several styles that fits; none fits: wrong, if one is sure."""
        ways = ("first", "streams", "alone", "nothing")
        styles: list[dict[str, Any]] = [{"kept": kept, "style": way} for way in ways]
        styles += [{"kept": wider, "style": way} for way in ways] if wider != kept else []
        faults, failed, doubts = [], [], []
        for style in styles:
            try:
                with skipped(self.model, **style) as bypassed:
                    expected = probe.run(self.model, self.inputs)
            except Exception as error:  # code around the blocks may need what a skipped block does not give
                failed.append(str(error) if isinstance(error, NoReferenceError) else one_line(error, 160))
                continue
            if find_difference(outputs, expected, other_depth=True) is None:
                return None
            fault = find_difference(outputs, expected, other_depth=True, tolerance=ROUNDING)
            if fault is None:
                self._note("equals the skip reference up to rounding, not to the bit")
                return None
            faults.append(fault)
            doubts += ["an output has one entry for each layer"] * _has_layer_axis(
                outputs, expected, self._removed(kept)
            )
            doubts += ["the model reaches into its blocks instead of calling them"] * bool(bypassed)
            if not any("between" in style for style in styles):
                between = {path: find_between(self.model, self.inputs, path) for path in kept}
                names = sorted({name for names in between.values() for name in names})
                subsets = [between, *({path: found & {n} for path, found in between.items()} for n in names[:6])]
                styles += [{"kept": kept, "between": subset} for subset in subsets if names]
                doubts += [f"the model runs {names[0]} between its blocks"] if names else []
        doubts += [fault for fault in failed if fault.startswith("a block turns")]  # then no other style is sure
        if doubts or not faults:
            raise NoReferenceError((doubts or failed)[0])
        return f"not the original with the blocks skipped: {faults[0]}"

    def _removed(self, kept: Kept) -> int:
        return sum(len(list(self.model.get_submodule(path).children())) - len(layers) for path, layers in kept.items())

    def finish(self) -> bool:
        """Note what the forward leaves out, where a cut shows nothing. False if that is all there is."""
        for path, cuts in self.used.items():
            idle = [cut for cut, used in cuts.items() if not used]
            if len(idle) == len(cuts):
                self._note(f"this forward does not use {path}")
            elif idle:
                self._note(f"this forward is the same with {' and with '.join(idle)}")
        return any(used for cuts in self.used.values() for used in cuts.values())

    def _note(self, text: str) -> None:
        if text not in self.verdict.notes:
            self.verdict.notes.append(text)


def _with_followers(found: Examination, kept: Kept) -> Kept:
    """A list that follows may be a row of blocks as well: one number for the blocks of three towers."""
    wider = dict(kept)
    for stack in found.stacks:
        for follower in stack.followers if stack.path in kept else ():
            extra = range(stack.depth, stack.depth + follower.extra)
            wider[follower.path] = [*kept[stack.path], *extra]
    return wider


def _has_layer_axis(outputs: probe.Outputs, expected: probe.Outputs, removed: int) -> bool:
    """Whether some output of the skip reference is longer by the removed layers, along one axis."""
    for name, tensor in outputs.items():
        other = expected.get(name)
        if other is not None and other.ndim == tensor.ndim and other.shape != tensor.shape:
            differences = [a - b for a, b in zip(other.shape, tensor.shape, strict=True) if a != b]
            if differences == [removed]:
                return True
    return False


def _count_fault(model: nn.Module, promised: int, source: str) -> str | None:
    count = count_parameters(model)
    return None if count == promised else f"{count} parameters, but {promised} by {source}"


def _name_change(old: dict[str, Any], new: dict[str, Any], part: str) -> str:
    before, after = old[part], new[part]
    if isinstance(before, dict):
        name = next(name for name in (*before, *after) if before.get(name) != after.get(name))
        return f"{name}: {_name_values(before.get(name, {}), after.get(name, {}))}"
    return next((f"{one} became {other}" for one, other in zip(before, after, strict=False) if one != other), "length")


def _name_values(before: dict[str, Any], after: dict[str, Any]) -> str:
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {before.get(name, 'absent')} -> {after.get(name, 'absent')}" for name in names[:2])
