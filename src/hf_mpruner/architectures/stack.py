"""`BlockStack`: a run of blocks in a model that can be shortened, and where its length is written."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ConfigField:
    """One value of a (nested) configuration.

    Args:
        name (`str`): attribute name on its config node, e.g. `"num_hidden_layers"` or `"depths"`.
        node (`str`): dotted path from the model's config to the node that holds it, `""` for the config itself,
            e.g. `"text_config"`.
        index (`int`, *optional*): position inside a list-valued attribute, e.g. `2` for `depths[2]`.
    """

    name: str
    node: str = ""
    index: int | None = None

    def __str__(self) -> str:
        """Dotted form, e.g. `text_config.num_hidden_layers` or `depths[2]`."""
        prefix = f"{self.node}." if self.node else ""
        suffix = "" if self.index is None else f"[{self.index}]"
        return f"{prefix}{self.name}{suffix}"


@dataclass(frozen=True)
class BlockStack:
    """A sequential stack of blocks that hf_mpruner can cut.

    Args:
        path (`str`): dotted module path of the list, e.g. `"bert.encoder.layer"`.
        block_class (`str`): class name of the blocks.
        depth (`int`): number of blocks in the model as it is.
        count (`ConfigField`): the config value that decides the depth (found by experiment).
        per_layer (`tuple[ConfigField, ...]`): config lists with one entry a layer that are sliced with the blocks.
        pinned (`dict[int, str]`): layers that must stay, each with the reason.
    """

    path: str
    block_class: str
    depth: int
    count: ConfigField
    per_layer: tuple[ConfigField, ...] = ()
    pinned: dict[int, str] = field(default_factory=dict, hash=False)

    @property
    def prunable(self) -> tuple[int, ...]:
        """Layers that are not pinned."""
        return tuple(i for i in range(self.depth) if i not in self.pinned)
