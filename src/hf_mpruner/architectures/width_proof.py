"""Prove a narrower width before it happens, and read off the two builds what has to be written."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import PlanMismatchError, UnsupportedArchitectureError
from .adapters import adapter_configs, unwrap_adapters
from .blueprint import Blueprint, make_blueprint
from .edits import ValueEdit
from .proof import ConfigEdit, config_edits, tied_groups
from .reference import ABSENT, config_nodes, describe_modules
from .width import What, WidthGroup, Widths, WidthSlice
from .width_heads import find_head_groups
from .width_neurons import find_neuron_groups
from .width_trial import edit_config

_MASKS = (
    "What the config cannot express can be masked instead: mask_neurons of hf_mpruner.width.masks sets rows of a projection to "
    "zero ({rows}). That changes what the model computes, not its size or speed."
)
_ROWS = {
    "neurons": "those of the neurons in the first projection of the feed-forward",
    "heads": "those of the heads in the value projection of the attention",
}


@dataclass(frozen=True)
class WidthProof:
    """A narrower width that was proved right, as data: nothing in it points into the live model.

    Args:
        slices (`tuple[tuple[WidthSlice, int, tuple[int, ...]], ...]`): parameters that lose entries, with how many
            neurons or groups there are, and which stay.
        values (`tuple[ValueEdit, ...]`): plain attributes of modules to write.
        configs (`tuple[ConfigEdit, ...]`): config attributes to write, for every distinct config object.
    """

    slices: tuple[tuple[WidthSlice, int, tuple[int, ...]], ...]
    values: tuple[ValueEdit, ...]
    configs: tuple[ConfigEdit, ...]


def find_widths(model: nn.Module, what: What | None = None) -> Widths:
    """What of a model's width can go: feed-forward neurons and attention heads that its config counts.

    Found by experiment on the meta device: one config value is lowered, the model rebuilt, and what got narrower is read
    off the difference. The model is not run and not changed.

    Args:
        model (`PreTrainedModel`): without adapters.
        what (`"neurons"` or `"heads"`, *optional*): look for these only.

    Raises:
        UnsupportedArchitectureError: the model is none, disagrees with its config, or carries adapters.

    Example:
        >>> from transformers import LlamaConfig, LlamaModel
        >>> config = LlamaConfig(hidden_size=8, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        ...     num_key_value_heads=2, vocab_size=9)
        >>> for group in find_widths(LlamaModel(config)).groups:
        ...     print(group.what, group.title, group.size, [unit.path for unit in group.units][0])
        neurons config.intermediate_size 24 layers.0.mlp.down_proj
        heads config.num_attention_heads and config.num_key_value_heads 2 layers.0.self_attn.o_proj
    """
    model = unwrap_adapters(model)
    if adapter_configs(model):
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} carries adapters, whose shapes are those of the layers that would get narrower. Merge "
            "them first (model = peft_model.merge_and_unload()), narrow the model, and train new ones."
        )
    blueprint = make_blueprint(model)
    groups: list[WidthGroup] = []
    refusals: list[str] = []
    for kind, find in (("neurons", find_neuron_groups), ("heads", find_head_groups)):
        if what in (None, kind):
            found, reasons = find(blueprint)
            groups += (_with_shared(blueprint, group) for group in found)
            refusals += reasons
    return Widths(blueprint, tuple(groups), tuple(refusals))


def _with_shared(blueprint: Blueprint, group: WidthGroup) -> WidthGroup:
    """The group with units tied that are one under several names, or share a weight (zamba)."""
    holders: dict[int, list[str]] = {}
    for unit in group.units:
        for part in unit.slices:
            tensor = getattr(blueprint.reference.get_submodule(part.path), part.name)
            paths = holders.setdefault(id(tensor), [])
            paths += [] if unit.path in paths else [unit.path]
    ties = list(group.tied)
    for paths in holders.values():
        if len(paths) > 1:
            touched = [tied for tied in ties if tied & set(paths)]
            ties = [tied for tied in ties if tied not in touched] + [frozenset(paths).union(*touched)]
    return replace(group, tied=tuple(ties))


def check_found(found: Widths, what: What) -> None:
    """Refuse a model of whose width nothing can go.

    Raises:
        UnsupportedArchitectureError: with all reasons, and what to do instead.
    """
    if any(group.what == what for group in found.groups):
        return
    reasons = "".join(f"\n- {reason}" for reason in found.refusals) or f"\n- no config value counts {what}"
    raise UnsupportedArchitectureError(
        f"{found.blueprint.name}: its config cannot express fewer {what} in a model that plain from_pretrained loads. "
        f"Found:{reasons}\n{_MASKS.format(rows=_ROWS[what])}"
    )


def narrow_config(found: Widths, kept: Mapping[str, Sequence[int]]) -> PreTrainedConfig:
    """The config of the narrowed model.

    Args:
        found (`Widths`): of the model as it is.
        kept (`Mapping[str, Sequence[int]]`): by unit path what stays; units that are not named stay whole.

    Raises:
        PlanMismatchError: for units that do not exist, or what the config cannot express: other sizes in other layers, or
            others where one tensor serves several layers.
    """
    check_kept_units(found, kept)
    config = copy.deepcopy(found.blueprint.config)
    for group in found.groups:
        sizes = {unit.path: len(kept.get(unit.path, range(unit.size))) for unit in group.units}
        if set(sizes.values()) == {group.size}:
            continue
        if len(set(sizes.values())) > 1:
            config = _with_sizes(config, group, sizes)
            continue
        number = next(iter(sizes.values()))
        config = edit_config(config, {**group.added, **{field: one * number for field, one in group.fields.items()}})
    return config


def _with_sizes(config: PreTrainedConfig, group: WidthGroup, sizes: Mapping[str, int]) -> PreTrainedConfig:
    """A config with a size for each layer."""
    if not group.per_layer:
        small, large = min(sizes, key=lambda path: sizes[path]), max(sizes, key=lambda path: sizes[path])
        raise PlanMismatchError(
            f"'{small}' would keep {sizes[small]} {group.what} and '{large}' {sizes[large]}, but {group.title} is one number "
            "for all layers, and this model does not read per_layer_config: keep equally many in each layer."
        )
    (field,) = group.fields
    edited = copy.deepcopy(config)
    node = config_nodes(edited)[field.node]
    spec = vars(node).get("_heterogeneity_spec")
    layers = {layer: dict(values) for layer, values in (spec.per_layer_overrides if spec else {}).items()}
    for unit in group.units:
        if unit.layer is not None and sizes[unit.path] != group.size:
            layers.setdefault(unit.layer, {})[field.name] = sizes[unit.path]
    node.per_layer_config = layers
    return edited


def check_kept_units(found: Widths, kept: Mapping[str, Sequence[int]]) -> None:
    """Check what stays against the units of a model.

    Raises:
        PlanMismatchError: an unknown unit; nothing left, or what does not exist; different ones where they are tied.
    """
    units = found.units
    for path, stays in kept.items():
        if path not in units:
            raise PlanMismatchError(
                f"'{path}' reads no neurons or heads that can go in {found.blueprint.name}. Those that do: "
                f"{', '.join(map(repr, list(units)[:6])) or 'none'}{' ...' if len(units) > 6 else ''}."
            )
        size, what = units[path].size, found.group_of(path).what
        if not stays:
            raise PlanMismatchError(f"'{path}' would lose all of its {size} {what}. Keep at least one.")
        if list(stays) != sorted(set(stays)) or not 0 <= stays[0] <= stays[-1] < size:
            raise PlanMismatchError(
                f"What stays of '{path}' is not valid: expected ascending numbers of {what} from 0 to {size - 1}, each once."
            )
    for group in found.groups:
        for tied in group.tied:
            different = {tuple(kept.get(path, range(group.size))) for path in tied}
            if len(different) > 1:
                one, other = sorted(tied)[:2]
                raise PlanMismatchError(
                    f"'{one}' and '{other}' share a tensor with entries for each of their {group.what}: the same must "
                    "stay in both."
                )


def prove_width(model: PreTrainedModel, found: Widths, kept: Mapping[str, Sequence[int]]) -> WidthProof:
    """Prove that the narrowed model is the one that its new config builds, and list every edit it needs.

    Args:
        model (`PreTrainedModel`): read, not changed.
        found (`Widths`): of this model.
        kept (`Mapping[str, Sequence[int]]`): by unit path what stays.

    Raises:
        PlanMismatchError: see `narrow_config`.
        UnsupportedArchitectureError: it cannot be proved right, with the parameter or the attribute.
    """
    blueprint = found.blueprint
    kept = (
        {path: tuple(stays) for path, stays in kept.items() if len(stays) < found.units[path].size}
        if (kept.keys() <= found.units.keys())
        else kept
    )
    narrowed = blueprint.rebuild(narrow_config(found, kept))
    slices = [
        (part, found.units[path].size, tuple(stays))
        for path, stays in kept.items()
        for part in found.units[path].slices
    ]
    fault = _find_shape_fault(blueprint.reference, narrowed, slices)
    values, other = _value_edits(blueprint.reference, narrowed)
    if fault or other:
        raise UnsupportedArchitectureError(
            f"{blueprint.name}: a narrower width cannot be proved right: {fault or other}. The model was not changed."
        )
    if tied_groups(narrowed) != tied_groups(blueprint.reference) or tied_groups(model) - tied_groups(narrowed):
        raise UnsupportedArchitectureError(
            f"{blueprint.name}: other names share a parameter than in a model built from the narrower config."
        )
    return WidthProof(tuple(slices), tuple(values), tuple(config_edits(model, blueprint, narrowed, {})))


def _find_shape_fault(
    old: PreTrainedModel, new: PreTrainedModel, slices: Sequence[tuple[WidthSlice, int, tuple[int, ...]]]
) -> str:
    """The first tensor that would not be what the new config builds, in words."""
    wanted: dict[str, tuple[int, ...]] = {}
    for part, size, stays in slices:
        full = f"{part.path}.{part.name}"
        shape = list(wanted.get(full) or old.get_submodule(part.path)._parameters[part.name].shape)  # type: ignore[union-attr]
        shape[part.axis] = shape[part.axis] // size * len(stays)
        wanted[full] = tuple(shape)
    before = {
        name: tuple(t.shape) for name, t in (*old.named_parameters(remove_duplicate=False), *old.named_buffers())
    }
    after = {name: tuple(t.shape) for name, t in (*new.named_parameters(remove_duplicate=False), *new.named_buffers())}
    if before.keys() != after.keys():
        return f"the narrower config builds other parameters ({', '.join(sorted(before.keys() ^ after.keys())[:3])})"
    for name, whole in before.items():
        if wanted.get(name, whole) != after[name]:
            return f"'{name}' would be {wanted.get(name, whole)} and is {after[name]} after reloading"
    return ""


def _value_edits(old: PreTrainedModel, new: PreTrainedModel) -> tuple[list[ValueEdit], str]:
    """Attributes that follow the width, as the new build has them; and the first difference that is none of them."""
    edits: list[ValueEdit] = []
    before, after = describe_modules(old), describe_modules(new)
    for path, one in before.items():
        other = after.get(path)
        if other is None or other.kind != one.kind:
            return [], f"module '{path}' is another"
        for name in {**one.values, **other.values}:
            a, b = one.values.get(name, ABSENT), other.values.get(name, ABSENT)
            if a == b:
                continue
            if not _counts(a) or not _counts(b):
                return [], f"'{path}.{name}' is {a!r} and would be {b!r} after reloading"
            raw = (vars(build.get_submodule(path))[name] for build in (old, new))
            edits.append(ValueEdit(path, name, *raw))
    return edits, ""


def _counts(value: Any) -> bool:
    """Whether an attribute is a number of things, or several: what else follows a width would change what is computed."""
    return type(value) is int or (isinstance(value, tuple) and all(type(item) is int for item in value))
