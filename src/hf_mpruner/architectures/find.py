"""Find the block stacks of a model by experiment: lower one config value by one and see which list gets shorter."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from ..errors import UnsupportedArchitectureError
from .blueprint import Blueprint, make_blueprint
from .pins import pin_stack
from .reference import ModuleDescription, config_nodes, describe_modules
from .rewrite import read_field, write_field_
from .rules import INDEX_LISTS, PER_LAYER_LISTS, TAPS, UNRELATED_LISTS
from .source import find_position_code
from .stack import BlockStack, ConfigField


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
        model (`nn.Module`): a `PreTrainedModel`.

    Returns:
        `list[BlockStack]`: in module order, at least one.

    Raises:
        UnsupportedArchitectureError: there is no stack that can be cut, with all reasons; or the model and its config
            disagree.

    Example:
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> config = T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=3, num_decoder_layers=4, num_heads=2, vocab_size=16)
        >>> for stack in find_block_stacks(T5ForConditionalGeneration(config)):
        ...     print(stack.path, stack.depth, stack.count, stack.prunable)
        encoder.block 3 num_layers (1, 2)
        decoder.block 4 num_decoder_layers (1, 2, 3)
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
        model (`nn.Module`): a `PreTrainedModel`.

    Returns:
        `Examination`: stacks may be empty.

    Raises:
        UnsupportedArchitectureError: the model is no `PreTrainedModel`, cannot be rebuilt from its config, or
            disagrees with it.
    """
    blueprint = make_blueprint(model)
    lengths = container_lengths(blueprint.reference)
    stacks: dict[str, BlockStack] = {}
    refusals: list[str] = []
    for field, depth in _candidate_fields(blueprint.config, lengths):
        try:
            trial = _experiment(blueprint, lengths, field, depth)
            if trial is not None and trial[0].path not in stacks:
                stack, without_last = trial
                _check_config_lists(blueprint.config, stack)
                shorter = describe_modules(without_last)
                stacks[stack.path] = _check_code(blueprint, pin_stack(blueprint, stack, shorter), shorter)
        except UnsupportedArchitectureError as error:
            refusals.append(str(error))
    outermost = [path for path in lengths if path in stacks and not any(path.startswith(f"{p}.") for p in stacks)]
    refusals += [f"{path!r} lies inside a block of another stack" for path in stacks.keys() - set(outermost)]
    refusals += _counts_without_list(blueprint.config, lengths)
    return Examination(blueprint, tuple(stacks[path] for path in outermost), tuple(dict.fromkeys(refusals)))


def container_lengths(model: nn.Module) -> dict[str, int]:
    """Every list of modules in a model, with its length.

    Args:
        model (`nn.Module`): any.

    Returns:
        `dict[str, int]`: by path in module order: `ModuleList` and `Sequential` whose entries are numbered.
    """
    return {
        path: len(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and list(module._modules) == [str(number) for number in range(len(module))]
    }


def _candidate_fields(config: PreTrainedConfig, lengths: Mapping[str, int]) -> Iterator[tuple[ConfigField, int]]:
    """Config integers that equal the length of some list: equality only narrows, the experiment decides."""
    wanted = {length for length in lengths.values() if length >= 2}
    for path, node in config_nodes(config).items():
        for name, value in vars(node).items():
            if type(value) is int and value in wanted:
                yield ConfigField(name, path), value
            elif isinstance(value, list | tuple):
                for index, item in enumerate(value):
                    if type(item) is int and item in wanted:
                        yield ConfigField(name, path, index), item


def _experiment(
    blueprint: Blueprint, lengths: Mapping[str, int], field: ConfigField, depth: int
) -> tuple[BlockStack, nn.Module] | None:
    """Build with one block fewer: the stack that got shorter, and the build without its last block.

    `None`: the field decides no list. Raises if it decides one that cannot be cut.
    """
    lists = _per_layer_lists(blueprint.config, field, depth)
    edited = copy.deepcopy(blueprint.config)
    for name in lists:
        write_field_(edited, name, read_field(edited, name)[:-1])
    only_lists = _build(blueprint, edited) if lists else None
    write_field_(edited, field, depth - 1)
    built = _build(blueprint, edited)
    if isinstance(built, str):  # an experiment may well ask for the impossible, e.g. 11 heads of a width of 768
        if any(word in field.name for word in ("layer", "depth", "block")):
            raise UnsupportedArchitectureError(f"config.{field} = {depth} cannot be lowered by one: {built}")
        return None
    moved = _moved(lengths, built)
    if not moved:
        return None
    if isinstance(only_lists, nn.Module) and _moved(lengths, only_lists):
        raise UnsupportedArchitectureError(
            f"{', '.join(map(repr, moved))}: the length follows that of config.{lists[0]}, no number in the config"
        )
    if len(moved) > 1:
        raise UnsupportedArchitectureError(
            f"config.{field} = {depth} shortens several lists together: {', '.join(map(repr, moved))}"
        )
    path, after = next(iter(moved.items()))
    if lengths[path] != depth or after != depth - 1:
        raise UnsupportedArchitectureError(
            f"{path!r} goes from {lengths[path]} to {after} entries when config.{field} goes from {depth} to {depth - 1}"
        )
    block = blueprint.reference.get_submodule(f"{path}.0")
    if type(block).__module__.startswith("torch."):  # embeddings or heads side by side, not blocks in a row
        raise UnsupportedArchitectureError(
            f"{path!r} is a list of plain {type(block).__name__} modules, not of blocks"
        )
    return BlockStack(path, type(block).__name__, depth, field, tuple(lists)), built


def _build(blueprint: Blueprint, config: PreTrainedConfig) -> nn.Module | str:
    """The model of an edited config, or why there is none."""
    try:
        return blueprint.rebuild(config)
    except UnsupportedArchitectureError as error:
        return " ".join(str(error.__cause__ or error).split())[:300]


def _per_layer_lists(config: PreTrainedConfig, field: ConfigField, depth: int) -> list[ConfigField]:
    if field.index is not None:
        return []
    raw = vars(config_nodes(config)[field.node])
    return [
        ConfigField(name, field.node)
        for name in raw
        if name in PER_LAYER_LISTS and isinstance(raw[name], list | tuple) and len(raw[name]) == depth
    ]


def _moved(lengths: Mapping[str, int], built: nn.Module) -> dict[str, int]:
    """Outermost lists whose length is another in an edited build, with that length."""
    after = container_lengths(built)
    changed = [path for path, length in lengths.items() if after.get(path, 0) != length]
    return {
        path: after.get(path, 0)
        for path in changed
        if not any(path.startswith(f"{outer}.") for outer in changed if outer != path)
    }


def _check_config_lists(config: PreTrainedConfig, stack: BlockStack) -> None:
    """Refuse what the proof cannot see: values that are read by layer number while the model runs."""
    nodes = config_nodes(config)
    if stack.count.index is not None:
        return  # the lists beside `depths` are about stages, and stages stay
    sliced = {field.name for field in stack.per_layer}
    where = f"config.{stack.count.node}".rstrip(".")
    for name, value in vars(nodes[stack.count.node]).items():
        if name == "_heterogeneity_spec":
            raise UnsupportedArchitectureError(
                f"{stack.path!r}: {where}.per_layer_config has settings for single layers"
            )
        if value and name in INDEX_LISTS:
            raise UnsupportedArchitectureError(
                f"{stack.path!r}: {where}.{name.lstrip('_')} = {value} holds {INDEX_LISTS[name]}"
            )
        per_layer = isinstance(value, list | tuple) and len(value) == stack.depth
        if per_layer and name not in sliced and name not in UNRELATED_LISTS:
            raise UnsupportedArchitectureError(
                f"{stack.path!r}: {where}.{name} has one entry for each of the {stack.depth} layers, or happens to be as "
                "long; hf_mpruner does not know which"
            )
    for path, node in nodes.items():
        for name, (tower, reason) in TAPS.items():
            if getattr(node, name, None) is not None and tower in stack.count.node and path != stack.count.node:
                value = getattr(node, name)
                raise UnsupportedArchitectureError(f"{stack.path!r}: {name} = {value} names {reason} by layer number")


def _check_code(blueprint: Blueprint, stack: BlockStack, without_last: Mapping[str, ModuleDescription]) -> BlockStack:
    """Refuse a stack around which code computes with the numbers of layers; no build shows that."""
    find = find_position_code(blueprint, stack, without_last)
    if find is not None:
        raise UnsupportedArchitectureError(
            f"{stack.path!r}: the model computes with a layer's number, or with how many there are, as it runs: {find}"
        )
    return stack


def _counts_without_list(config: PreTrainedConfig, lengths: Mapping[str, int]) -> Iterator[str]:
    """Sentences about config values that are called a number of layers but are the length of no list."""
    for path, node in config_nodes(config).items():
        for name, value in vars(node).items():
            if name.endswith("layers") and type(value) is int and value >= 2 and value not in lengths.values():
                field = ConfigField(name, path)
                yield f"config.{field} = {value}, but no list has {value} entries (one block may run several times)"
