"""Prove a cut before it happens, and read off the two builds what has to be written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import PlanMismatchError, UnsupportedArchitectureError
from .adapters import without_adapters
from .blueprint import Blueprint
from .compare import compare_builds, renumber
from .edits import ModuleMove, TensorSlice, ValueEdit
from .find import Examination
from .generation import find_cache_problem
from .position import Build, find_position_fault
from .reference import ABSENT, config_nodes, describe_modules
from .rewrite import diff_configs, rewritten_values, shorten_config
from .rules import GENERATION_PAIRS
from .stack import BlockStack, StackCut, cuts_of


@dataclass(frozen=True)
class ConfigEdit:
    """A config attribute that follows the cut.

    Args:
        path (`str`): path of a module that holds the config, in the numbering before the cut.
        holder (`str`): the attribute of that module, nearly always `"config"`, else `"generation_config"`.
        node (`str`): dotted path from there to the config node.
        name (`str`): raw attribute name.
        old: value before the cut, as a saved and reloaded config has it.
        new: value after the cut; `ABSENT` if the attribute goes.
    """

    path: str
    holder: str
    node: str
    name: str
    old: Any
    new: Any


@dataclass(frozen=True)
class CutProof:
    """A cut that was proved right, as data: nothing in it points into the live model.

    Args:
        cuts (`dict[str, StackCut]`): by path of a list of modules, what stays: the stacks, and the lists that follow.
        values (`tuple[ValueEdit, ...]`): layer positions and copies of the count to write.
        configs (`tuple[ConfigEdit, ...]`): config attributes to write, for every distinct config object.
        swaps (`dict[str, nn.Module]`): modules without tensors, by path before the cut, that the new config builds
            otherwise (stochastic depth).
        moves (`tuple[ModuleMove, ...]`): modules that go from a removed first block to the new one.
        slices (`tuple[TensorSlice, ...]`): parameters that lose the room of the removed layers.
        warning (`str`, *optional*): something that transformers cannot do with the cut model.
    """

    cuts: dict[str, StackCut]
    values: tuple[ValueEdit, ...]
    configs: tuple[ConfigEdit, ...]
    swaps: dict[str, nn.Module] = field(default_factory=dict)
    moves: tuple[ModuleMove, ...] = ()
    slices: tuple[TensorSlice, ...] = ()
    warning: str | None = None


def prove_cut(model: PreTrainedModel, found: Examination, kept: Mapping[str, Sequence[int]]) -> CutProof:
    """Prove that a cut leaves the model that its new config builds, and list every edit it needs.

    Args:
        model (`PreTrainedModel`): read, not changed.
        found (`Examination`): of this model.
        kept (`Mapping[str, Sequence[int]]`): by stack path, the layers that stay; other stacks stay whole.

    Returns:
        `CutProof`: the edits.

    Raises:
        PlanMismatchError: `kept` names an unknown stack, or no valid selection of its layers.
        UnsupportedArchitectureError: the cut cannot be proved right, with the stack, the layer and the attribute.
    """
    with without_adapters(model):
        return _prove_cut(model, found, kept)


def _prove_cut(model: PreTrainedModel, found: Examination, kept: Mapping[str, Sequence[int]]) -> CutProof:
    stack_cuts = check_kept(found.stacks, kept)
    cuts = cuts_of(found.stacks, kept)
    blueprint = found.blueprint
    config = shorten_config(blueprint.config, found.stacks, kept)
    shortened = blueprint.rebuild(config)
    rewritten = rewritten_values(blueprint.config, config)
    modules = describe_modules(shortened)
    compared = compare_builds(blueprint.modules, modules, cuts, rewritten, blueprint.rules.positions)
    if compared.differences:
        stacks = " and ".join(f"{path!r} to layers {list(cut.kept)}" for path, cut in stack_cuts.items())
        more = len(compared.differences) - 1
        raise UnsupportedArchitectureError(
            f"{blueprint.name}: cutting {stacks} cannot be proved right: {compared.differences[0]}"
            + (f" (and {more} more differences)" if more else "")
            + ". The model was not changed. find_block_stacks(model) says which layers are pinned, and why."
        )
    for stack in found.stacks:
        if stack.path in kept:
            before = Build(blueprint.modules, config_nodes(blueprint.config)[stack.count.node])
            after = Build(modules, config_nodes(config)[stack.count.node])
            fault = find_position_fault(stack.code, kept[stack.path], stack.depth, before, after)
            if fault:
                raise UnsupportedArchitectureError(
                    f"{blueprint.name}: cutting {stack.path!r} to layers {list(kept[stack.path])}: {fault}"
                )
    _check_sharing(model, blueprint, shortened, cuts, compared.moves)
    configs = (*config_edits(model, blueprint, shortened, cuts), *_generation_edits(model, found.stacks, cuts))
    return CutProof(
        cuts,
        (
            *(_with_raw_values(edit, blueprint, shortened, cuts) for edit in compared.values),
            *_stray_positions(model, blueprint, cuts),
        ),
        configs,
        {path: shortened.get_submodule(renumber(path, cuts) or "") for path in compared.swaps},
        tuple(compared.moves),
        tuple(compared.slices),
        find_cache_problem(blueprint.reference, shortened),
    )


def check_kept(stacks: Sequence[BlockStack], kept: Mapping[str, Sequence[int]]) -> dict[str, StackCut]:
    """Check a selection of layers against the stacks of a model.

    Args:
        stacks (`Sequence[BlockStack]`): of the model.
        kept (`Mapping[str, Sequence[int]]`): by stack path, the layers that stay.

    Returns:
        `dict[str, StackCut]`: the same, with depths.

    Raises:
        PlanMismatchError: an unknown stack; or layers that are none, repeated, unsorted or out of range.

    Example:
        >>> from hf_mpruner.architectures import ConfigField
        >>> check_kept([BlockStack("h", "GPT2Block", 3, ConfigField("n_layer"))], {"h": [0, 2]})
        {'h': StackCut(depth=3, kept=(0, 2))}
    """
    depths = {stack.path: stack.depth for stack in stacks}
    for path, layers in kept.items():
        if path not in depths:
            known = ", ".join(f"{known!r} ({depth} layers)" for known, depth in depths.items()) or "none"
            raise PlanMismatchError(f"The model has no block stack {path!r}. Its stacks are: {known}.")
        if not layers:
            raise PlanMismatchError(
                f"No layer of {path!r} would be left. A stack keeps at least one of its {depths[path]} layers."
            )
        if list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < depths[path]:
            raise PlanMismatchError(
                f"Kept layers {list(layers)} of {path!r} are not valid: expected ascending layer numbers from 0 to "
                f"{depths[path] - 1}, each once."
            )
    return {path: StackCut(depths[path], tuple(layers)) for path, layers in kept.items()}


def _check_sharing(
    model: PreTrainedModel,
    blueprint: Blueprint,
    shortened: PreTrainedModel,
    cuts: Mapping[str, StackCut],
    moves: Sequence[ModuleMove],
) -> None:
    """Refuse a cut after which other names stand for one parameter than in the model built from the new config."""
    moved = {move.source: move.target for move in moves}

    def after(name: str) -> str | None:
        source = next((source for source in moved if name.startswith(f"{source}.")), None)
        return renumber(name.replace(source, moved[source], 1) if source else name, cuts)

    promised = tied_groups(shortened)
    left = {
        frozenset(new for name in names if (new := after(name)) is not None)
        for names in tied_groups(blueprint.reference)
    }
    wrong = [names for names in left - {frozenset()} if names not in promised]
    torn = [  # tied by hand: neither config knows of it
        names
        for names in tied_groups(model) - tied_groups(blueprint.reference)
        if 0 < sum(after(name) is None for name in names) < len(names)
    ]
    if wrong or torn:
        names = ", ".join(map(repr, min(map(sorted, wrong or torn))[:3]))
        raise UnsupportedArchitectureError(
            f"{blueprint.name}: {names} share a parameter or do not, unlike in a model built from the shortened config."
        )


def tied_groups(model: PreTrainedModel) -> set[frozenset[str]]:
    """The names of each parameter: more than one where it is tied."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {frozenset(group) for group in names.values()}


def _with_raw_values(
    edit: ValueEdit, blueprint: Blueprint, shortened: PreTrainedModel, cuts: Mapping[str, StackCut]
) -> ValueEdit:
    """The edit with the attribute as the shortened build has it: descriptions turn lists into tuples."""
    after = vars(shortened.get_submodule(renumber(edit.path, cuts) or ""))
    before = vars(blueprint.reference.get_submodule(edit.path))
    return replace(edit, old=before.get(edit.name, edit.old), new=after.get(edit.name, edit.new))


def _stray_positions(
    model: PreTrainedModel, blueprint: Blueprint, cuts: Mapping[str, StackCut]
) -> Iterator[ValueEdit]:
    """Layer numbers in modules that the model changed for others since it was built (big_bird, for short inputs)."""
    for stack, cut in cuts.items():
        for new, old in enumerate(cut.kept):
            block = model.get_submodule(stack)._modules[str(old)]
            for inner, module in block.named_modules() if block is not None else ():
                path = f"{stack}.{old}.{inner}".rstrip(".")
                known = blueprint.modules[path].values if path in blueprint.modules else {}
                for name in blueprint.rules.positions.keys() & vars(module).keys() - known.keys():
                    if vars(module)[name] == old != new:
                        yield ValueEdit(path, name, old, new)


def config_edits(
    model: PreTrainedModel, blueprint: Blueprint, shortened: PreTrainedModel, cuts: Mapping[str, StackCut]
) -> Iterator[ConfigEdit]:
    """What changes in every config object that the live model holds, read off the configs of the two builds."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        after = renumber(path, cuts)
        if after is None or path not in blueprint.modules:
            continue
        for holder, config in vars(module).items():
            if not isinstance(config, PreTrainedConfig) or id(config) in seen:
                continue
            seen |= {id(node) for node in config_nodes(config).values()}
            before = vars(blueprint.reference.get_submodule(path))[holder]
            for change in diff_configs(before, vars(shortened.get_submodule(after))[holder]):
                yield ConfigEdit(path, holder, change.node, change.name, change.old, change.new)


def _generation_edits(
    model: PreTrainedModel, stacks: Sequence[BlockStack], cuts: Mapping[str, StackCut]
) -> Iterator[ConfigEdit]:
    """Renumber what the generation config says about single layers; entries of removed layers go."""
    generation = vars(model.generation_config) if getattr(model, "generation_config", None) else {}
    for name, (count, _) in GENERATION_PAIRS.items():
        for stack in stacks:
            cut = cuts.get(stack.path)
            if cut is None or stack.count.name != count or not generation.get(name):
                continue
            left = [[cut.kept.index(layer), *rest] for layer, *rest in generation[name] if layer in cut.kept]
            if left != generation[name]:
                yield ConfigEdit("", "generation_config", "", name, generation[name], left or ABSENT)
