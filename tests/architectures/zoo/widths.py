"""Narrow a tiny model of a type, all that its config can express, and run it against the whole one with zeros.

`PYTHONPATH=src:tests/architectures python -m zoo.widths [TYPE ...]` prints a line for each type, by default for all.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hf_mpruner import UnsupportedArchitectureError, WidthPlan, apply_width_plan_
from hf_mpruner.architectures import WidthGroup, Widths, find_widths
from hf_mpruner.plan import UnitPlan
from hf_mpruner.verify.outputs import find_difference, run_still
from hf_mpruner.verify.saved import BadCopyError, load_copy
from hf_mpruner.width.planning import number_kept
from zoo.checks import quiet
from zoo.probe import one_line


@dataclass
class WidthVerdict:
    """What came of narrowing a type: groups that were right, faults of the others, and what was refused."""

    model_type: str
    right: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    reason: str = ""

    def __str__(self) -> str:
        found = "; ".join([*self.right, *(f"WRONG {fault}" for fault in self.faults)])
        return f"{self.model_type}: {found or self.reason or 'none: ' + '; '.join(self.refusals)}"


def check_widths(model_type: str, seed: int = 0) -> WidthVerdict:
    """Half of the neurons and half of the heads, drawn anew for each layer: proved, run, saved, loaded, undone."""
    from zoo.tiny import build_specimen

    verdict = WidthVerdict(model_type)
    torch.set_num_threads(1)
    with quiet():
        try:
            specimen = build_specimen(model_type, seed)
        except Exception as error:  # the builder runs the code of the type
            verdict.reason = f"not built: {one_line(error, 120)}"
            return verdict
        model = as_loaded(specimen.model.eval())
        try:
            found = find_widths(model)
        except UnsupportedArchitectureError as error:
            verdict.reason = f"refused: {one_line(error, 120)}"
            return verdict
        verdict.refusals = list(found.refusals)
        before = run_still(model, specimen.inputs)
        for group in found.groups:
            try:
                verdict.right.append(narrow_and_back(model, specimen.inputs, found, group, seed))
            except Exception as error:
                verdict.faults.append(f"{group.what} by {group.title}: {one_line(error)}")
            if fault := find_difference(run_still(model, specimen.inputs), before, 0.0):
                verdict.faults.append(f"undone, {fault}")
    return verdict


def as_loaded(model: Any) -> Any:
    """The model as users have it: `ChineseCLIPModel.from_pretrained` sets the embedding of padding to zero."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            load_copy(model, Path(folder))
        except BadCopyError:
            try:
                return type(model).from_pretrained(folder).eval()
            except Exception:  # the builder's model is right in memory, and what is wrong on the disk is found later
                return model
    return model


def narrow_and_back(model: Any, inputs: dict[str, Any], found: Widths, group: WidthGroup, seed: int) -> str:
    """What was narrowed, in words; raises if that is not right."""
    left = number_kept(found, group, 0.5)
    generator = torch.Generator().manual_seed(seed)
    units: dict[str, UnitPlan] = {}
    for unit in group.units:
        tied: Any = next((paths for paths in group.tied if unit.path in paths), ())
        drawn = torch.randperm(unit.size, generator=generator)[:left].sort().values.tolist()
        kept = next((units[path].kept for path in tied if path in units), tuple(drawn))
        units[unit.path] = UnitPlan(unit.size, kept, group.what)
    apply_width_plan_(model, WidthPlan(units), verify="full", inputs=inputs).undo()
    return f"{group.what} {group.size} -> {left} in {len(units)} layers ({group.title})"


def main(names: Sequence[str]) -> int:
    """Print the verdicts; 1 if one is wrong."""
    from zoo.tiny import model_types

    wrong = 0
    for name in names or model_types():
        verdict = check_widths(name)
        wrong += bool(verdict.faults)
        sys.stdout.write(f"{verdict}\n")
        sys.stdout.flush()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
