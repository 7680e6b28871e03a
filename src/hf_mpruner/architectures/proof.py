"""Prove a cut before it happens, and read off the two builds what has to be written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import PlanMismatchError, UnsupportedArchitectureError
from .blueprint import Blueprint
from .compare import StackCut, ValueEdit, compare_builds, renumber
from .find import Examination
from .generation import find_cache_problem
from .reference import ABSENT, config_nodes, describe_modules
from .rewrite import diff_configs, shorten_config
from .rules import GENERATION_PAIRS
from .stack import BlockStack


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
        cuts (`dict[str, StackCut]`): by stack path, what stays.
        values (`tuple[ValueEdit, ...]`): layer positions and copies of the count to write.
        configs (`tuple[ConfigEdit, ...]`): config attributes to write, for every distinct config object.
        warning (`str`, *optional*): something that transformers cannot do with the cut model.
    """

    cuts: dict[str, StackCut]
    values: tuple[ValueEdit, ...]
    configs: tuple[ConfigEdit, ...]
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
    cuts = check_kept(found.stacks, kept)
    blueprint = found.blueprint
    shortened = blueprint.rebuild(shorten_config(blueprint.config, found.stacks, kept))
    values, differences = compare_builds(blueprint.modules, describe_modules(shortened), cuts)
    if differences:
        stacks = " and ".join(f"{path!r} to layers {list(cut.kept)}" for path, cut in cuts.items())
        raise UnsupportedArchitectureError(
            f"{blueprint.name}: cutting {stacks} cannot be proved right: {differences[0]}"
            + (f" (and {len(differences) - 1} more differences)" if len(differences) > 1 else "")
            + ". The model was not changed. find_block_stacks(model) says which layers are pinned, and why."
        )
    _check_sharing(model, blueprint, cuts)
    configs = (*_config_edits(model, blueprint, shortened, cuts), *_generation_edits(model, found.stacks, cuts))
    edits = tuple(_with_raw_values(edit, blueprint, shortened, cuts) for edit in values)
    return CutProof(cuts, edits, configs, find_cache_problem(blueprint.reference, shortened))


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


def _check_sharing(model: PreTrainedModel, blueprint: Blueprint, cuts: Mapping[str, StackCut]) -> None:
    """Refuse to remove a parameter that a remaining module uses as well."""
    removed = tuple(
        f"{path}.{layer}." for path, cut in cuts.items() for layer in range(cut.depth) if layer not in cut.kept
    )
    if not removed:
        return
    leaving: dict[int, str] = {}
    staying: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        (leaving if name.startswith(removed) else staying)[id(parameter)] = name
    for identity in leaving.keys() & staying.keys():
        raise UnsupportedArchitectureError(
            f"{blueprint.name}: {leaving[identity]!r} would be removed, but {staying[identity]!r} is the same parameter."
        )


def _with_raw_values(
    edit: ValueEdit, blueprint: Blueprint, shortened: PreTrainedModel, cuts: Mapping[str, StackCut]
) -> ValueEdit:
    """The edit with the attribute as the shortened build has it: descriptions turn lists into tuples."""
    after = vars(shortened.get_submodule(renumber(edit.path, cuts) or ""))
    before = vars(blueprint.reference.get_submodule(edit.path))
    return replace(edit, old=before.get(edit.name, edit.old), new=after.get(edit.name, edit.new))


def _config_edits(
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
