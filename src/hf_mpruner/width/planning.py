"""From a criterion and a fraction to a `WidthPlan`: measure, order, and how many can go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from hf_mpruner.architectures import WidthGroup, Widths, WidthUnit, check_found
from hf_mpruner.architectures.width import What
from hf_mpruner.architectures.width_proof import narrow_config
from hf_mpruner.errors import PlanMismatchError, UnsupportedArchitectureError
from hf_mpruner.plan import UnitPlan, WidthPlan
from hf_mpruner.width.base import NeuronCriterion, NeuronOrder, check_survivors, number_of
from hf_mpruner.width.measure import measure_units
from hf_mpruner.width.registry import find_neuron_criterion

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def plan_width(
    model: PreTrainedModel,
    found: Widths,
    fraction: float | None,
    *,
    batches: Iterable[Mapping[str, Any]] | None,
    criterion: str | NeuronCriterion = "cka",
    what: What = "neurons",
    fields: Sequence[str] | None = None,
    multiple_of: int = 1,
    seed: int = 0,
    show_progress: bool | None = None,
) -> WidthPlan:
    """Which neurons or heads of each layer go: the same share everywhere, which ones by a criterion.

    Args:
        model (`PreTrainedModel`): run on the data, and left as it was.
        found (`Widths`): of this model.
        fraction (`float`, *optional*): how many of each layer go, above 0 and below 1. `None`: as the criterion decides, if it
            does; since one size holds for all layers, as many stay in each as in the one that keeps most.
        batches (`Iterable[Mapping]`, *optional*): calibration data, without which only `l1` and `random` can judge.
        criterion (`str` or `NeuronCriterion`): in which order they go.
        what (`"neurons"` or `"heads"`): of the feed-forwards, or of the attentions.
        fields (sequence of `str`, *optional*): the config values whose layers are narrowed, e.g. `["encoder_ffn_dim"]`.
            Default: all that count such.
        multiple_of (`int`): what stays of each layer is a multiple of this, at least as much as asked.
        seed (`int`): for criteria that draw.
        show_progress (`bool`, *optional*): progress bar; by default only on a terminal.

    Raises:
        UnsupportedArchitectureError: the config cannot express fewer; says why and what to do instead.
        ValueError: for a fraction outside 0 to 1, or one that leaves a layer empty or changes nothing.
        CalibrationError: the criterion needs data, or the data gives nothing to measure.
    """
    groups = choose_groups(found, what, fields)
    criterion = find_neuron_criterion(criterion)
    numbers = numbers_kept(found, groups, fraction, multiple_of, criterion)
    together = [(group, units) for group in groups for units in units_together(group)]
    measured = measure_units(
        model, batches, [units for _, units in together], needs=criterion.needs, seed=seed, show_progress=show_progress
    )
    orders: list[NeuronOrder] = []
    for (group, _), inputs in zip(together, measured, strict=True):
        number = numbers.get(group.title)
        orders.append(criterion.order(inputs, None if number is None else group.size - number))
    chosen: dict[str, UnitPlan] = {}
    for (group, units), order in zip(together, orders, strict=True):
        number = numbers.get(group.title)
        if number is None:
            own = (
                [order]
                if group.per_layer
                else [o for (other, _), o in zip(together, orders, strict=True) if other is group]
            )
            number = _as_decided(found, group, own, multiple_of)
        kept = tuple(order.kept(group.size - number).tolist())
        chosen |= {unit.path: UnitPlan(unit.size, kept, group.what) for unit in units}
    if not any(unit.removed for unit in chosen.values()):
        raise ValueError(
            f"The criterion '{criterion.name}' keeps all {what} of some layer, and one size holds for all: pass a fraction, or "
            "more calibration data."
        )
    source = model.config._name_or_path or None
    return WidthPlan(
        {unit.path: chosen[unit.path] for group in groups for unit in group.units},
        model_type=model.config.model_type,
        source_model=None if source is None or _is_local(source) else source,
        source_revision=getattr(model.config, "_commit_hash", None),
        evidence={"criterion": criterion.name, "fraction": fraction, "multiple_of": multiple_of, "seed": seed},
    )


def _is_local(name: str) -> bool:
    from pathlib import Path

    return Path(name).exists()


def choose_groups(found: Widths, what: What, fields: Sequence[str] | None = None) -> list[WidthGroup]:
    """The groups that a user asked for.

    Raises:
        UnsupportedArchitectureError: there is none of that kind.
        ValueError: for a kind or a config value that is not known; says which are.
    """
    if what not in get_args(What):
        raise ValueError(f"what={what!r} is not known: pass one of {', '.join(map(repr, get_args(What)))}.")
    check_found(found, what)
    groups = [group for group in found.groups if group.what == what]
    if fields is None:
        return groups
    known = {str(field): group for group in groups for field in group.fields}
    for name in fields:
        if name not in known:
            raise ValueError(
                f"fields={list(fields)!r}: '{name}' counts no {what} of this model that can go. Those that do: "
                f"{', '.join(map(repr, known))}."
            )
    return [group for group in groups if any(str(field) in fields for field in group.fields)]


def units_together(group: WidthGroup) -> list[tuple[WidthUnit, ...]]:
    """The units of a group: those that must lose the same ones in one entry, in module order."""
    done: set[str] = set()
    found = []
    for unit in group.units:
        if unit.path in done:
            continue
        tied = next((paths for paths in group.tied if unit.path in paths), {unit.path})
        done |= set(tied)
        found.append(tuple(other for other in group.units if other.path in tied))
    return found


def numbers_kept(
    found: Widths,
    groups: Sequence[WidthGroup],
    fraction: float | None,
    multiple_of: int,
    criterion: NeuronCriterion,
) -> dict[str, int]:
    """How many of each layer stay, by the title of the group; empty where the criterion decides.

    Raises:
        TypeError, ValueError: see `number_kept`; or for no fraction with a criterion that does not decide.
    """
    if fraction is not None:
        return {group.title: number_kept(found, group, fraction, multiple_of) for group in groups}
    if not criterion.decides:
        raise ValueError(
            f"The criterion '{criterion.name}' does not say how many go: pass a fraction such as 0.25, or a criterion that "
            "decides, e.g. mipp."
        )
    _check_multiple(multiple_of)
    return {}


def _as_decided(found: Widths, group: WidthGroup, orders: Sequence[NeuronOrder], multiple_of: int) -> int:
    """As many as the layer that keeps most wants; all of them if the config or the multiple takes no fewer."""
    least = group.size - min(len(order.order) for order in orders)
    least = -(-least // multiple_of) * multiple_of
    return next(
        (left for left in range(least, group.size, multiple_of) if _is_buildable(found, group, left)), group.size
    )


def number_kept(found: Widths, group: WidthGroup, fraction: float, multiple_of: int = 1) -> int:
    """How many of each layer stay: the fraction rounded, then up to a multiple, then up to what the config takes.

    Raises:
        TypeError: for a fraction that is no number with a point, or a multiple that is no whole one.
        ValueError: for a fraction outside 0 to 1, or if a layer would be left empty, or nothing would go.
    """
    layer, size = group.units[0].path, group.size
    if isinstance(fraction, int) and not isinstance(fraction, bool) and fraction not in (0, 1):
        raise ValueError(f"fraction={fraction} is no fraction from 0 to 1: for a fifth of the {group.what} pass 0.2.")
    gone = number_of(float(fraction) if fraction in (0, 1) else fraction, size, layer)
    _check_multiple(multiple_of)
    check_survivors(gone, size, layer)
    least = -(-(size - gone) // multiple_of) * multiple_of
    for left in range(least, size, multiple_of):
        if _is_buildable(found, group, left):
            return left
    possible = [number for number in range(1, size) if _is_buildable(found, group, number)] if size <= 256 else []
    also = f" This model's config takes {possible}." if 0 < len(possible) < size - 1 else ""
    raise ValueError(
        f"fraction={fraction} with multiple_of={multiple_of} takes none of the {size} {group.what} of '{layer}': pass a larger "
        f"fraction, or a smaller multiple_of.{also}"
    )


def _check_multiple(multiple_of: Any) -> None:
    if isinstance(multiple_of, bool) or not isinstance(multiple_of, int) or multiple_of < 1:
        raise ValueError(f"multiple_of={multiple_of!r} is no whole number from 1: pass e.g. 8, or 1 for any number.")


def _is_buildable(found: Widths, group: WidthGroup, left: int) -> bool:
    """Whether a config takes this number: some want their width to be a multiple of the heads."""
    if group.what == "neurons":
        return True
    try:
        found.blueprint.rebuild(narrow_config(found, {unit.path: range(left) for unit in group.units}))
    except (UnsupportedArchitectureError, PlanMismatchError):
        return False
    return True
