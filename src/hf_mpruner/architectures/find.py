"""Find the block stacks of a model by experiment: lower one config value by one and see which list gets shorter."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ..errors import UnsupportedArchitectureError
from .adapters import check_adapters, unwrap_adapters, without_adapters
from .blueprint import Blueprint, make_blueprint
from .buffers import find_numbered_buffer
from .follow import find_follows
from .order import find_side_by_side
from .pins import pin_stack
from .reference import config_nodes, describe_modules
from .rewrite import facts_of_layer, shorten_config
from .rules import LAYER_OUTPUTS, STAGE_LISTS
from .source import find_position_code
from .stack import BlockStack, ConfigField, Follower, FollowingField


@dataclass(frozen=True)
class Examination:
    """What can be cut in a model, and what cannot.

    Args:
        blueprint (`Blueprint`): the model rebuilt from its config.
        stacks (`tuple[BlockStack, ...]`): stacks that can be cut, in module order.
        refusals (`tuple[str, ...]`): why something that looked like a stack is none, one sentence each.
    """

    blueprint: Blueprint
    stacks: tuple[BlockStack, ...]
    refusals: tuple[str, ...]


def find_block_stacks(model: nn.Module) -> list[BlockStack]:
    """Find the stacks of blocks that can be cut, with what decides their length and which layers must stay.

    The model is not run and not changed, and its weights may be on any device, the meta device included.

    Args:
        model (`nn.Module`): a `PreTrainedModel`, or peft's wrapper around one.

    Returns:
        `list[BlockStack]`: in module order, at least one. Paths begin at the `PreTrainedModel`.

    Raises:
        UnsupportedArchitectureError: there is no stack that can be cut, with all reasons; or the model and its config
            disagree.

    Example:
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> config = T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=3, num_decoder_layers=4, num_heads=2, vocab_size=16)
        >>> for stack in find_block_stacks(T5ForConditionalGeneration(config)):
        ...     print(stack.path, stack.depth, stack.count, stack.prunable)
        encoder.block 3 num_layers (0, 1, 2)
        decoder.block 4 num_decoder_layers (0, 1, 2, 3)
    """
    found = examine(model)
    if not found.stacks:
        reasons = "".join(f"\n- {reason}" for reason in found.refusals) or "\n- it has no list of two or more blocks"
        raise UnsupportedArchitectureError(
            f"{found.blueprint.name} has no block stack that hf_mpruner can cut. Looked for a ModuleList or Sequential "
            f"that gets exactly one block shorter when one config value is lowered by one. Found:{reasons}"
        )
    return list(found.stacks)


def examine(model: nn.Module) -> Examination:
    """Look for block stacks, and remember what was refused and why.

    Args:
        model (`nn.Module`): a `PreTrainedModel`, or peft's wrapper around one.

    Returns:
        `Examination`: stacks may be empty. Paths are those of the transformers model, without adapters.

    Raises:
        UnsupportedArchitectureError: the model is no `PreTrainedModel`, cannot be rebuilt from its config, disagrees
            with it, or carries adapters under which no layer can be cut.
    """
    model = unwrap_adapters(model)
    check_adapters(model)
    with without_adapters(model):
        return _examine(model)


def _examine(model: nn.Module) -> Examination:
    blueprint = make_blueprint(model)
    lengths = container_lengths(blueprint.reference)
    stacks: dict[str, BlockStack] = {}
    refusals: list[str] = []
    for field, depth in _candidate_fields(blueprint, lengths):
        try:
            trial = _experiment(blueprint, lengths, field, depth)
            if trial is not None and trial[0].path not in stacks:
                stack, without_last = trial
                _check_config_lists(blueprint, lengths, stack)
                kinds = [f for f in stack.follows if f.kind in ("entries", "indices", "per_layer_config", "cycle")]
                facts = [facts_of_layer(blueprint.config, kinds, layer) for layer in range(stack.depth)]
                buffer = find_numbered_buffer(model, stack.path, facts)
                if buffer:
                    raise UnsupportedArchitectureError(
                        f"{stack.path!r}: {buffer} differs from layer to layer, and no checkpoint holds it"
                    )
                shorter = describe_modules(without_last)
                code, given = find_position_code(blueprint, stack, shorter)
                own = blueprint.rules.pinned.get(stack.count.name, ())
                given |= dict.fromkeys((n % stack.depth for n in own), "register_architecture says that it must stay")
                stacks[stack.path] = pin_stack(blueprint, replace(stack, code=code), shorter, given)
        except UnsupportedArchitectureError as error:
            refusals.append(str(error))
    taken = [*stacks, *(follower.path for stack in stacks.values() for follower in stack.followers)]
    outermost = [path for path in lengths if path in stacks and not any(path.startswith(f"{p}.") for p in taken)]
    refusals += [f"{path!r} lies inside a block of another stack" for path in stacks.keys() - set(outermost)]
    refusals += _counts_without_list(blueprint.config, lengths)
    return Examination(blueprint, tuple(stacks[path] for path in outermost), tuple(dict.fromkeys(refusals)))


def container_lengths(model: nn.Module) -> dict[str, int]:
    """Every list of modules in a model, with its length.

    Args:
        model (`nn.Module`): any.

    Returns:
        `dict[str, int]`: by path in module order: `ModuleList` and `Sequential` whose entries are numbered. A list
        that is reachable twice is there under both paths.
    """
    return {
        path: len(module)
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and list(module._modules) == [str(number) for number in range(len(module))]
    }


def _candidate_fields(blueprint: Blueprint, lengths: Mapping[str, int]) -> Iterator[tuple[ConfigField, int]]:
    """Config values that equal the length of some list: equality only narrows, the experiment decides.

    Integers first, then lists by layer, whose own length is the count in a few models.
    """
    wanted = {length for length in lengths.values() if length >= 2}
    nodes, follows = config_nodes(blueprint.config), blueprint.rules.follows
    for path, node in nodes.items():
        for name, value in vars(node).items():
            if type(value) is int and value in wanted:
                yield ConfigField(name, path), value
            elif isinstance(value, list | tuple):
                for index, item in enumerate(value):
                    if type(item) is int and item in wanted:
                        yield ConfigField(name, path, index), item
    for path, node in nodes.items():
        for name, value in vars(node).items():
            by_layer = name in follows and follows[name].kind == "entries"
            if by_layer and isinstance(value, list | tuple) and len(value) in wanted:
                yield ConfigField(name, path), len(value)


def _experiment(
    blueprint: Blueprint, lengths: Mapping[str, int], field: ConfigField, depth: int
) -> tuple[BlockStack, nn.Module] | None:
    """Build with one block fewer: the stack that got shorter, and the build without its last block.

    `None`: the field decides no list. Raises if it decides one that cannot be cut.
    """
    follows = find_follows(blueprint.config, field, depth, blueprint.rules)
    built = _build_shorter(blueprint, field, depth, follows)
    for follow in follows if isinstance(built, str) else ():
        if follow.kind in ("entries", "sources"):  # perhaps of that length by chance
            fewer = tuple(other for other in follows if other is not follow)
            retried = _build_shorter(blueprint, field, depth, fewer)
            if not isinstance(retried, str):
                follows, built = fewer, retried
                break
    if isinstance(built, str) and any(follow.field == field for follow in follows):
        return None  # a list by layer, but not one whose length is the count
    if isinstance(built, str):  # an experiment may well ask for the impossible, e.g. 11 heads of a width of 768
        if any(word in field.name for word in ("layer", "depth", "block")):
            raise UnsupportedArchitectureError(f"config.{field} = {depth} cannot be lowered by one: {built}")
        return None
    moved = _moved(lengths, built)
    if not moved:
        return None
    if all(follow.field != field for follow in follows) and _moves_alone(blueprint, lengths, follows, depth, moved):
        return None  # a list of this length is the count, and has its own turn
    for model_type, reason in blueprint.rules.refusals.items():
        raise UnsupportedArchitectureError(
            f"{', '.join(map(repr, moved))}: nothing is cut in {model_type!r}: {reason}"
        )
    if field.name in blueprint.rules.no_blocks:
        raise UnsupportedArchitectureError(
            f"{', '.join(map(repr, moved))}: config.{field} counts no blocks in a row: {blueprint.rules.no_blocks[field.name]}"
        )
    stages = [
        n for n, v in vars(config_nodes(blueprint.config)[field.node]).items() if n in STAGE_LISTS and _has(v, depth)
    ]
    if stages and field.index is None:
        raise UnsupportedArchitectureError(
            f"{', '.join(map(repr, moved))}: its {depth} entries are stages (config.{field}, {stages[0]}), not blocks"
        )
    path, followers = _split(blueprint, lengths, moved, field, depth)
    parent, _, name = path.rpartition(".")
    parallel = find_side_by_side(type(blueprint.reference.get_submodule(parent)), name)
    if parallel:
        raise UnsupportedArchitectureError(
            f"{path!r}: its entries run side by side, not one after the other: {parallel}"
        )
    block = type(blueprint.reference.get_submodule(f"{path}.0")).__name__
    return BlockStack(path, block, depth, field, follows, followers), built


def _has(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length


def _build_shorter(
    blueprint: Blueprint, field: ConfigField, depth: int, follows: tuple[FollowingField, ...]
) -> nn.Module | str:
    """The model with one block fewer, or why there is none: without the last one that no other value holds on to."""
    trial = BlockStack(f"config.{field}", "", depth, field, follows)
    why = ""
    for layer in reversed(range(depth)):
        kept = [other for other in range(depth) if other != layer]
        try:
            return blueprint.rebuild(shorten_config(blueprint.config, [trial], {trial.path: kept}))
        except UnsupportedArchitectureError as error:
            why = why or " ".join(str(error.__cause__ or error).split())[:300]
        if not follows:  # then every layer leaves the same config
            break
    return why


def _moves_alone(
    blueprint: Blueprint,
    lengths: Mapping[str, int],
    follows: tuple[FollowingField, ...],
    depth: int,
    moved: Mapping[str, int],
) -> bool:
    """Whether the blocks follow the lists by layer, and not the number that happens to equal their length."""
    lists = tuple(follow for follow in follows if follow.kind == "entries")
    if not lists:
        return False
    built = _build_shorter(blueprint, lists[0].field, depth, lists)
    return not isinstance(built, str) and bool(_moved(lengths, built).keys() & moved.keys())


def _split(
    blueprint: Blueprint, lengths: Mapping[str, int], moved: Mapping[str, int], field: ConfigField, depth: int
) -> tuple[str, tuple[Follower, ...]]:
    """Of the lists that got shorter, the one that holds the blocks, and those that follow it."""
    model = blueprint.reference
    for path, after in moved.items():
        if lengths[path] not in (depth, depth + 1) or after != lengths[path] - 1:
            raise UnsupportedArchitectureError(
                f"{path!r} goes from {lengths[path]} to {after} entries when config.{field} goes from {depth} to "
                f"{depth - 1}"
            )
    kinds = {path: type(model.get_submodule(f"{path}.0")) for path in moved}
    blocks = {
        path: sum(parameter.numel() for parameter in model.get_submodule(path).parameters())
        for path, kind in kinds.items()
        if lengths[path] == depth and not kind.__module__.startswith("torch.")  # no heads or embeddings side by side
    }
    if not blocks:
        path, kind = next(iter(kinds.items()))
        raise UnsupportedArchitectureError(f"{path!r} is a list of plain {kind.__name__} modules, not of blocks")
    ends = [path for path in moved if path.rpartition(".")[2] in LAYER_OUTPUTS and lengths[path] == depth]
    chosen = ends[0] if ends else max(blocks, key=lambda path: blocks[path])
    return chosen, tuple(Follower(path, lengths[path] - depth) for path in moved if path != chosen)


def _moved(lengths: Mapping[str, int], built: nn.Module) -> dict[str, int]:
    """Outermost lists whose length is another in an edited build, with that length."""
    after = container_lengths(built)
    changed = [path for path, length in lengths.items() if after.get(path, 0) != length]
    return {
        path: after.get(path, 0)
        for path in changed
        if not any(path.startswith(f"{outer}.") for outer in changed if outer != path)
    }


def _check_config_lists(blueprint: Blueprint, lengths: Mapping[str, int], stack: BlockStack) -> None:
    """Refuse lists that may be about single layers, in a way that nobody has told us."""
    config = blueprint.config
    if stack.count.index is not None:
        return  # the lists beside `depths` are about stages, and stages stay
    known = {follow.field.name for follow in stack.follows} | blueprint.rules.unrelated_lists.keys()
    where = f"config.{stack.count.node}".rstrip(".")
    for name, value in vars(config_nodes(config)[stack.count.node]).items():
        if isinstance(value, list | tuple) and len(value) == stack.depth and name not in known:
            if _decides_other_list(blueprint, lengths, ConfigField(name, stack.count.node), stack):
                continue
            raise UnsupportedArchitectureError(
                f"{stack.path!r}: {where}.{name} has one entry for each of the {stack.depth} layers, or happens to be as "
                "long; hf_mpruner does not know which. register_architecture says it"
            )


def _decides_other_list(
    blueprint: Blueprint, lengths: Mapping[str, int], field: ConfigField, stack: BlockStack
) -> bool:
    """Whether a config list is as long as the stack by chance: it is the length of another list, or cannot change."""
    if not any(re.search(rf"\b{field.name}\b", source) for source in _sources(blueprint.reference)):
        return True  # nothing in this model reads it
    alone = FollowingField(field, "entries")
    built = _build_shorter(blueprint, field, stack.depth, (alone,))
    if isinstance(built, str):
        # a layer missed its entry; or else the list goes with something that is not the stack, which was built without it
        return "index out of range" not in built
    moved = _moved(lengths, built)
    return bool(moved) and stack.path not in moved


def _sources(model: nn.Module) -> Iterator[str]:
    """Source of the classes that a model is made of."""
    for kind in {type(module) for module in model.modules()}:
        if not kind.__module__.startswith("torch."):
            try:
                yield inspect.getsource(kind)
            except (OSError, TypeError):
                continue


def _counts_without_list(config: PreTrainedConfig, lengths: Mapping[str, int]) -> Iterator[str]:
    """Sentences about config values that are called a number of layers but are the length of no list."""
    for path, node in config_nodes(config).items():
        for name, value in vars(node).items():
            if name.endswith("layers") and type(value) is int and value >= 2 and value not in lengths.values():
                field = ConfigField(name, path)
                yield f"config.{field} = {value}, but no list has {value} entries (one block may run several times)"
