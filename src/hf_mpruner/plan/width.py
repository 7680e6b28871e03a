"""`WidthPlan`: which neurons and heads of which layer stay, in the numbering of the model the plan was made for."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from hf_mpruner.architectures import count_parameters, find_widths
from hf_mpruner.architectures.adapters import unwrap_adapters
from hf_mpruner.architectures.width import What
from hf_mpruner.errors import PlanMismatchError
from hf_mpruner.storage import write_json

from .stack import ranges

if TYPE_CHECKING:
    from torch import nn

    from hf_mpruner.architectures import Widths
    from hf_mpruner.hub import Pushed

WIDTH_PLAN_NAME = "width_plan.json"
WIDTH_PLAN_VERSION = 1


@dataclass(frozen=True)
class UnitPlan:
    """The neurons of one feed-forward, or the heads of one attention, that stay.

    Args:
        size (`int`): how many there are before; with grouped queries, how many groups of a key-value head and its queries.
        kept (`tuple[int, ...]`): those that stay, ascending, each in 0..size-1.
        what (`"neurons"` or `"heads"`): what they are.

    Raises:
        ValueError: if none stays, or one does not exist, is named twice or out of order.

    Example:
        >>> UnitPlan(6, (0, 1, 5)).removed
        (2, 3, 4)
    """

    size: int
    kept: tuple[int, ...]
    what: What = "neurons"

    def __post_init__(self) -> None:
        """Check what stays against the size."""
        object.__setattr__(self, "kept", tuple(int(number) for number in self.kept))
        if self.what not in get_args(What):
            raise ValueError(f"what={self.what!r} is not known: pass one of {', '.join(map(repr, get_args(What)))}.")
        if not self.kept:
            raise ValueError(f"None of {self.size} {self.what} would stay. Keep at least one.")
        if list(self.kept) != sorted(set(self.kept)) or not 0 <= self.kept[0] <= self.kept[-1] < self.size:
            raise ValueError(
                f"Kept {self.what} are not valid: expected ascending numbers from 0 to {self.size - 1}, each once."
            )

    @property
    def removed(self) -> tuple[int, ...]:
        """Those that go, ascending."""
        kept = set(self.kept)
        return tuple(number for number in range(self.size) if number not in kept)


@dataclass(frozen=True)
class WidthPreview:
    """What a width plan changes, counted on a model that is not touched.

    Args:
        parameters_before, parameters_after (`int`): unique parameters of the whole model.
        bytes_before, bytes_after (`int`): their size at the model's data types.
    """

    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        """Two aligned lines."""
        share = 1 - self.parameters_after / self.parameters_before
        return (
            f"parameters  {self.parameters_before:,} -> {self.parameters_after:,} ({share:.1%} fewer)\n"
            f"bytes       {self.bytes_before:,} -> {self.bytes_after:,}"
        )


@dataclass(frozen=True)
class WidthPlan:
    """Which neurons and heads stay, and why: data that can be printed, saved, replayed on a fresh model, byte for byte.

    Args:
        units (`dict[str, UnitPlan]`): by path of the module that reads them, e.g. `encoder.layer.0.output.dense` for the
            neurons of BERT's first feed-forward; those that are not named stay whole.
        model_type (`str`, *optional*): `config.model_type` of the model the plan was made for.
        source_model, source_revision (`str`, *optional*): where that model came from.
        evidence (`dict`): plain values that led to the plan (criterion, fraction, rounds).

    Example:
        >>> plan = WidthPlan({"encoder.layer.0.output.dense": UnitPlan(4, (0, 2, 3))})
        >>> print(plan)
        encoder.layer.0.output.dense  4 -> 3 neurons, without 1
    """

    units: dict[str, UnitPlan]
    model_type: str | None = None
    source_model: str | None = None
    source_revision: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """`{path: what stays}`."""
        return {path: unit.kept for path, unit in self.units.items()}

    @property
    def num_removed(self) -> int:
        """How many neurons and groups of heads the plan removes, over all layers."""
        return sum(len(unit.removed) for unit in self.units.values())

    def __str__(self) -> str:
        """A line for each unit."""
        width = max((len(path) for path in self.units), default=0)
        lines = []
        for path, unit in self.units.items():
            gone = ranges(unit.removed)
            gone = gone if len(gone) <= 60 else f"{gone[:57].rpartition(',')[0]}, ..."
            lines.append(f"{path:<{width}}  {unit.size} -> {len(unit.kept)} {unit.what}, without {gone}")
        return "\n".join(lines)

    def then(self, later: WidthPlan) -> WidthPlan:
        """The plan that does this one and then `later` (made for the narrowed model), in this plan's numbering.

        Raises:
            PlanMismatchError: if `later` was made for other sizes than this plan leaves.
        """
        units = dict(self.units)
        for path, second in later.units.items():
            first = units.get(path)
            if first is None:
                units[path] = second
                continue
            if len(first.kept) != second.size or first.what != second.what:
                raise PlanMismatchError(
                    f"The second plan expects {second.size} {second.what} of '{path}', the first leaves "
                    f"{len(first.kept)} {first.what}. Make the second plan for the model that the first one leaves."
                )
            units[path] = UnitPlan(first.size, tuple(first.kept[number] for number in second.kept), first.what)
        return replace(self, units=units)

    def check(self, model: nn.Module, found: Widths | None = None) -> Widths:
        """Check that the plan was made for this model, or a fresh copy of it.

        Args:
            model (`PreTrainedModel`): left as it is.
            found (`Widths`, *optional*): what `find_widths(model)` gave, if at hand.

        Returns:
            `Widths`: of the model.

        Raises:
            PlanMismatchError: it is another model, or the plan was applied already; says how they differ.
        """
        model = unwrap_adapters(model)
        own: Any = model.config
        source = (
            f"Load '{self.source_model}' (the plan's source_model) and apply it once."
            if self.source_model
            else "Load the model that the plan was made for and apply it once."
        )
        if self.model_type is not None and self.model_type != own.model_type:
            raise PlanMismatchError(
                f"This plan was made for model_type '{self.model_type}', but {type(model).__name__} has model_type "
                f"'{own.model_type}'. {source}"
            )
        found = found or find_widths(model)
        for path, unit in self.units.items():
            there = found.units.get(path)
            if there is None or found.group_of(path).what != unit.what:
                known = [name for name in found.units if found.group_of(name).what == unit.what]
                some = f"{', '.join(map(repr, known[:4])) or 'none'}{' ...' if len(known) > 4 else ''}"
                raise PlanMismatchError(
                    f"This plan removes {unit.what} that '{path}' reads, but {type(model).__name__} has none there that can "
                    f"go. Its own are read by: {some}. {source}"
                )
            if there.size != unit.size:
                applied = "Was it applied already? " if there.size == len(unit.kept) else ""
                raise PlanMismatchError(
                    f"This plan is for {unit.size} {unit.what} of '{path}', but the model has {there.size} there. "
                    f"{applied}{source}"
                )
        return found

    def preview(self, model: nn.Module) -> WidthPreview:
        """Count parameters and bytes before and after, on a model that the plan fits; nothing is changed.

        Raises:
            PlanMismatchError: the plan is for another model.
        """
        model = unwrap_adapters(model)
        found = self.check(model)
        number, size = count_parameters(model), sum(p.numel() * p.element_size() for p in model.parameters())
        shapes = {id(p): list(p.shape) for p in model.parameters()}
        seen: set[tuple[int, int]] = set()
        for path, unit in self.units.items():
            for part in found.units[path].slices:
                tensor = getattr(model.get_submodule(part.path), part.name)
                shape = shapes[id(tensor)]
                if (id(tensor), part.axis) in seen:  # shared by several layers
                    continue
                seen.add((id(tensor), part.axis))
                shape[part.axis] = shape[part.axis] // unit.size * len(unit.kept)
        left = {id(p): math.prod(shapes[id(p)]) for p in model.parameters()}
        bytes_left = sum(left[id(p)] * p.element_size() for p in model.parameters())
        return WidthPreview(number, sum(left.values()), size, bytes_left)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "width_plan_version": WIDTH_PLAN_VERSION,
            "model_type": self.model_type,
            "source_model": self.source_model,
            "source_revision": self.source_revision,
            "units": {
                path: {"what": unit.what, "size": unit.size, "kept": list(unit.kept)}
                for path, unit in self.units.items()
            },
            "evidence": self.evidence,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WidthPlan:
        """Build from `to_dict()`'s result.

        Raises:
            ValueError: if the values are no width plan, or one of a newer format.
        """
        if "units" not in values:
            known = ", ".join(map(repr, values)) or "nothing"
            raise ValueError(f"This is no width plan: it has no 'units', only {known}.")
        if values.get("width_plan_version", WIDTH_PLAN_VERSION) > WIDTH_PLAN_VERSION:
            raise ValueError(
                f"This width plan has format {values['width_plan_version']}, this hf_mpruner reads up to "
                f"{WIDTH_PLAN_VERSION}. Update it: pip install -U hf_mpruner."
            )
        units = {}
        for path, unit in values["units"].items():
            try:
                units[path] = UnitPlan(int(unit["size"]), tuple(unit["kept"]), unit.get("what", "neurons"))
            except ValueError as error:
                raise ValueError(f"'{path}': {error}") from None
        facts = {key: values.get(key) for key in ("model_type", "source_model", "source_revision")}
        return cls(units, **facts, evidence=dict(values.get("evidence") or {}))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> Path:
        """Write `width_plan.json` into a folder and return its path."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        return write_json(folder / WIDTH_PLAN_NAME, self.to_dict())

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
    ) -> WidthPlan:
        """Read a plan from a JSON file, from a folder that holds `width_plan.json`, or from a Hub model id.

        Args:
            path (path or `str`): the file, the folder, or the id.
            revision (`str`, *optional*): of the repository on the Hub.
            token (`str` or `bool`, *optional*): for a private one; by default that of `HF_TOKEN` or of `hf auth login`.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError: as `PruningPlan.from_pretrained`.
            ValueError: if what is there is no width plan.
        """
        from .hub import read_plan_file

        return cls.from_dict(read_plan_file(path, WIDTH_PLAN_NAME, "width plan", revision, token))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        token: str | bool | None = None,
    ) -> Pushed:
        """Put `width_plan.json` into a model repository on the Hub; arguments and errors as `PruningPlan.push_to_hub`."""
        from .hub import push_plan_file

        target = {"private": private, "revision": revision, "create_pr": create_pr, "token": token}
        return push_plan_file(repo_id, WIDTH_PLAN_NAME, self.to_dict(), **target)
