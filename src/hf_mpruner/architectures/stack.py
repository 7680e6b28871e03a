"""`BlockStack`: a run of blocks in a model that can be shortened, and what else follows its length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .position import PositionCode


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
class FollowingField:
    """A config value that is rewritten when layers go.

    Args:
        field (`ConfigField`): which value.
        kind (`str`): how it follows, a name of `rewrite.REWRITES`, e.g. `"entries"` or `"indices"`.
        reason (`str`): what the value says about the layers.
    """

    field: ConfigField
    kind: str
    reason: str = ""


@dataclass(frozen=True)
class Follower:
    """A list of modules outside the stack that loses the same entries.

    Args:
        path (`str`): dotted module path of the list.
        extra (`int`): entries behind those of the layers, which stay: two-stage detectors have one head more than
            decoder layers.
    """

    path: str
    extra: int = 0


@dataclass(frozen=True)
class StackCut:
    """What stays of one stack.

    Args:
        depth (`int`): number of blocks before the cut.
        kept (`tuple[int, ...]`): the blocks that stay, ascending, in the numbering before the cut.
    """

    depth: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class BlockStack:
    """A sequential stack of blocks that hf_mpruner can cut.

    Args:
        path (`str`): dotted module path of the list, e.g. `"bert.encoder.layer"`.
        block_class (`str`): class name of the blocks.
        depth (`int`): number of blocks in the model as it is.
        count (`ConfigField`): the config value that decides the depth (found by experiment); a list whose length is
            the depth in a few models.
        follows (`tuple[FollowingField, ...]`): config values that are rewritten with the cut.
        followers (`tuple[Follower, ...]`): lists of modules that the same config value decides, cut alike.
        pinned (`dict[int, str]`): layers that must stay, each with the reason.
        unprovable (`tuple[int, ...]`): pinned layers that must stay for a reason that no comparison of builds shows.
        code (`tuple[PositionCode, ...]`): expressions in the model's code that compute with layer numbers.
        period (`int`): layers go in runs of a multiple of this length, or from the end. 1 for nearly all models; 2
            where blocks alternate (shifted windows); the depth itself where only the end can go.
        period_reason (`str`): why the period is not 1.
    """

    path: str
    block_class: str
    depth: int
    count: ConfigField
    follows: tuple[FollowingField, ...] = ()
    followers: tuple[Follower, ...] = ()
    pinned: dict[int, str] = field(default_factory=dict, hash=False)
    unprovable: tuple[int, ...] = ()
    code: tuple[PositionCode, ...] = field(default=(), repr=False, compare=False)
    period: int = 1
    period_reason: str = ""

    @property
    def prunable(self) -> tuple[int, ...]:
        """Layers that are not pinned."""
        return tuple(i for i in range(self.depth) if i not in self.pinned)

    @property
    def per_layer(self) -> tuple[ConfigField, ...]:
        """Config lists with one entry a layer."""
        return tuple(follow.field for follow in self.follows if follow.kind == "entries")

    def removable(self, layers: Iterable[int]) -> tuple[int, ...]:
        """The part of some layers that can go together: without pinned ones, in runs that fit the period.

        Args:
            layers (`Iterable[int]`): layers that one would like to remove.

        Returns:
            `tuple[int, ...]`: ascending; of each run that is too long the first layers, and none of one too short.

        Example:
            >>> stack = BlockStack("blocks", "SwinLayer", 8, ConfigField("depths", index=2), period=2, pinned={0: ""})
            >>> stack.removable([0, 1, 2, 3, 5]), stack.removable([5, 7])
            ((1, 2), (7,))
        """
        wanted = sorted(set(layers) - self.pinned.keys())
        runs: list[list[int]] = []
        for layer in wanted:
            if runs and layer == runs[-1][-1] + 1:
                runs[-1].append(layer)
            else:
                runs.append([layer])
        going: list[int] = []
        for run in runs:
            whole = run[-1] == self.depth - 1
            going += run if whole else run[: len(run) // self.period * self.period]
        return tuple(going[: self.depth - 1])


def cuts_of(stacks: Sequence[BlockStack], kept: Mapping[str, Sequence[int]]) -> dict[str, StackCut]:
    """What stays of every list that a selection of layers touches: the stacks, and the lists that follow them.

    Args:
        stacks (`Sequence[BlockStack]`): of a model.
        kept (`Mapping[str, Sequence[int]]`): by stack path, the layers that stay; a valid selection.

    Returns:
        `dict[str, StackCut]`: by path of the list.

    Example:
        >>> count = ConfigField("decoder_layers")
        >>> stack = BlockStack("decoder.layers", "DetrDecoderLayer", 3, count, followers=(Follower("class_embed", 1),))
        >>> cuts_of([stack], {"decoder.layers": [0, 2]})["class_embed"]
        StackCut(depth=4, kept=(0, 2, 3))
    """
    cuts: dict[str, StackCut] = {}
    for stack in stacks:
        if stack.path in kept:
            layers = tuple(kept[stack.path])
            cuts[stack.path] = StackCut(stack.depth, layers)
            for follower in stack.followers:
                extra = range(stack.depth, stack.depth + follower.extra)
                cuts[follower.path] = StackCut(stack.depth + follower.extra, (*layers, *extra))
    return cuts
