"""What of a model's width can go: neurons and attention heads, the weights that are theirs, and the values that count them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .blueprint import Blueprint
from .stack import ConfigField

What = Literal["neurons", "heads"]


@dataclass(frozen=True)
class WidthSlice:
    """A parameter in which every neuron (or group of heads) of a layer has its own entries along one axis.

    The axis has `parts * size * each` entries: `parts` halves of a fused projection one behind the other, in each of them
    the neurons in order, each with `each` entries.

    Args:
        path (`str`): the module that owns it.
        name (`str`): its name there.
        axis (`int`): along which the neurons lie.
        parts (`int`): 2 for gate and up in one parameter, else 1.
        each (`int`): entries of one neuron in one part; of a head its size.
    """

    path: str
    name: str
    axis: int
    parts: int = 1
    each: int = 1


@dataclass(frozen=True)
class WidthUnit:
    """The neurons of one feed-forward, or the heads of one attention.

    Args:
        path (`str`): the module that reads them: the projection back to the width of the residual stream.
        size (`int`): how many there are; with grouped queries, how many groups of a key-value head and its query heads.
        each (`int`): inputs of that module that one of them has.
        slices (`tuple[WidthSlice, ...]`): the parameters that hold them, the reading one included.
        block (`str`): the block of layers that it is in.
        layer (`int`, *optional*): number of the layer in `per_layer_config`, where the model honours that.
    """

    path: str
    size: int
    each: int
    slices: tuple[WidthSlice, ...]
    block: str
    layer: int | None = None


@dataclass(frozen=True)
class WidthGroup:
    """All units whose size one setting of the config decides.

    Args:
        what (`"neurons"` or `"heads"`): what they consist of.
        fields (`dict[ConfigField, int]`): the config values that count them: how much each holds for one neuron or group.
        size (`int`): how many each unit has.
        units (`tuple[WidthUnit, ...]`): in module order.
        tied (`tuple[frozenset[str], ...]`): units, by path, that must keep the same ones.
        added (`dict[ConfigField, Any]`): values that must stand in the config so that nothing else follows the count.
        per_layer (`bool`): whether the model honours a size for each layer, in `per_layer_config`.
    """

    what: What
    fields: Mapping[ConfigField, int]
    size: int
    units: tuple[WidthUnit, ...]
    tied: tuple[frozenset[str], ...] = ()
    added: Mapping[ConfigField, Any] = field(default_factory=dict)
    per_layer: bool = False

    @property
    def title(self) -> str:
        """The values that count them, e.g. `config.intermediate_size`."""
        return " and ".join(f"config.{one}" for one in self.fields)


@dataclass(frozen=True)
class Widths:
    """What of a model's width its config can express, and what it cannot.

    Args:
        blueprint (`Blueprint`): the model rebuilt from its config.
        groups (`tuple[WidthGroup, ...]`): what can be narrowed.
        refusals (`tuple[str, ...]`): why something that looked like neurons or heads cannot, one sentence each.
    """

    blueprint: Blueprint
    groups: tuple[WidthGroup, ...]
    refusals: tuple[str, ...] = ()

    @property
    def units(self) -> dict[str, WidthUnit]:
        """All units, by path."""
        return {unit.path: unit for group in self.groups for unit in group.units}

    def group_of(self, path: str) -> WidthGroup:
        """The group of a unit."""
        return next(group for group in self.groups if any(unit.path == path for unit in group.units))
