"""What a peft config says about single layers, said again for the layers that are left.

peft finds the modules that it adapts by their names. Each setting that names modules is read with peft's own rules, on
the names before the cut; where the same setting would find other modules among the names after it, it is written anew.
"""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_mpruner.architectures import StackCut
from hf_mpruner.architectures.compare import renumber


@dataclass(frozen=True)
class Names:
    """The names of modules and parameters in the base model before and after a cut.

    Args:
        before (`list[str]`): module paths before.
        after (`list[str]`): module paths after.
        parameters_before (`list[str]`): parameter names before.
        parameters_after (`list[str]`): parameter names after.
        cuts (`Mapping[str, StackCut]`): by path of a list of modules, what stays.
    """

    before: list[str]
    after: list[str]
    parameters_before: list[str]
    parameters_after: list[str]
    cuts: Mapping[str, StackCut]

    def moved(self, names: Iterable[str]) -> dict[str, str]:
        """Of some names before the cut, those that stay: the name after it, with the one before."""
        pairs = ((renumber(name, self.cuts), name) for name in names)
        return {new: old for new, old in pairs if new is not None}


def rewrite_config(config: Any, names: Names) -> dict[str, Any]:
    """The settings of a peft config that must change with a cut.

    Args:
        config (`PeftConfig`): of one adapter of a model before the cut; left as it is.
        names (`Names`): of the base model.

    Returns:
        `dict[str, Any]`: new values by setting; empty for a config that fits the cut model as it is. Whether they do is
        for a build with peft to show.
    """
    edited = copy.copy(config)
    _rewrite_saved(edited, names)
    targets = _rewrite_targets(edited, config, names)
    _rewrite_parameters(edited, config, names)
    _rewrite_feedforward(edited, config, names, targets)
    _rewrite_tokens(edited, names)
    found = getattr(config, "target_parameters", None) or ()
    parameters = names.moved(name for name in names.parameters_before if _ends_with(name, found))
    for setting in ("rank_pattern", "alpha_pattern"):
        _rewrite_pattern(edited, setting, {**targets, **parameters})
    if isinstance(getattr(config, "init_lora_weights", None), str) and config.init_lora_weights != "gaussian":
        # some ways to begin change the base weights, which would happen once more to those that are saved now
        edited.init_lora_weights = True
    return {
        name: value for name, value in vars(edited).items() if name not in vars(config) or value != vars(config)[name]
    }


def _rewrite_saved(edited: Any, names: Names) -> None:
    """`modules_to_save`: peft compares ends of names, without regard to dots."""
    endings = getattr(edited, "modules_to_save", None)
    if not endings:
        return

    def find(among: Iterable[str]) -> list[str]:
        return [name for name in among if any(name.endswith(ending) for ending in endings)]

    wanted = list(names.moved(find(names.before)))
    if find(names.after) != wanted:
        edited.modules_to_save = wanted or None


def _rewrite_targets(edited: Any, config: Any, names: Names) -> dict[str, str]:
    """`target_modules` and what narrows it; returns the modules that must be found, with their names before the cut."""
    exists: Callable[[Any, str], Any] = importlib.import_module("peft.tuners.tuners_utils").check_target_module_exists

    def find(settings: Any, among: Iterable[str]) -> set[str]:
        if settings.target_modules is None:
            return set()
        return {name for name in among if exists(settings, name)}

    adapted = find(config, names.before)
    wanted = names.moved(name for name in names.before if name in adapted)
    for layers in _renumbered(config, names.cuts):
        trial = copy.copy(edited)
        trial.layers_to_transform = layers
        if find(trial, names.after) == wanted.keys():
            edited.layers_to_transform = layers
            return wanted
    if find(edited, names.after) == wanted.keys():
        return wanted
    edited.target_modules = set(wanted)  # a full name is found whatever the other settings say
    for narrower in ("layers_to_transform", "layers_pattern", "exclude_modules"):
        if getattr(edited, narrower, None) is not None:
            setattr(edited, narrower, None)
    return wanted


def _renumbered(config: Any, cuts: Mapping[str, StackCut]) -> Iterable[int | list[int]]:
    """Guesses at `layers_to_transform` after a cut: the layers of one of the stacks, in its new numbers."""
    layers = getattr(config, "layers_to_transform", None)
    if layers is None:
        return
    chosen = [layers] if isinstance(layers, int) else list(layers)
    for cut in cuts.values():
        left = [cut.kept.index(layer) for layer in chosen if layer in cut.kept]
        if left:
            yield left[0] if isinstance(layers, int) else left


def _rewrite_parameters(edited: Any, config: Any, names: Names) -> None:
    endings = getattr(config, "target_parameters", None)
    if not endings:
        return
    wanted = names.moved(name for name in names.parameters_before if _ends_with(name, endings))
    if {name for name in names.parameters_after if _ends_with(name, endings)} != wanted.keys():
        edited.target_parameters = list(wanted)


def _rewrite_feedforward(edited: Any, config: Any, names: Names, targets: Mapping[str, str]) -> None:
    """IA3's `feedforward_modules`, a part of the targets."""
    chosen = getattr(config, "feedforward_modules", None)
    if not chosen:
        return

    def is_one(settings: Any, name: str) -> bool:
        if isinstance(settings, str):
            return re.fullmatch(settings, name) is not None
        return any(name.endswith(ending) for ending in settings)

    wanted = {new for new, old in targets.items() if is_one(chosen, old)}
    # peft wants them named as the targets are
    if edited.target_modules != config.target_modules or {new for new in targets if is_one(chosen, new)} != wanted:
        edited.feedforward_modules = wanted


def _rewrite_tokens(edited: Any, names: Names) -> None:
    """`trainable_token_indices` by the name of an embedding."""
    tokens = getattr(edited, "trainable_token_indices", None)
    if not isinstance(tokens, dict):
        return
    found = {ending: list(names.moved(name for name in names.before if name.endswith(ending))) for ending in tokens}
    if any([n for n in names.after if n.endswith(ending)] != moved for ending, moved in found.items()):
        edited.trainable_token_indices = {name: tokens[ending] for ending, moved in found.items() for name in moved}


def _rewrite_pattern(edited: Any, setting: str, found: Mapping[str, str]) -> None:
    """`rank_pattern` and `alpha_pattern`: a value for the first expression that fits a name."""
    patterns = getattr(edited, setting, None)
    if not patterns:
        return
    values = {new: _value(patterns, old) for new, old in found.items()}
    used = {pattern for pattern in patterns if any(_fits(pattern, name) for name in found)}
    if any(_value(patterns, new) != value for new, value in values.items()):
        setattr(edited, setting, {name: value for name, value in values.items() if value is not None})
    elif len(used) < len(patterns):  # peft warns of expressions that fit nothing
        setattr(edited, setting, {pattern: value for pattern, value in patterns.items() if pattern in used})


def _value(patterns: Mapping[str, Any], name: str) -> Any:
    return next((value for pattern, value in patterns.items() if _fits(pattern, name)), None)


def _fits(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def _ends_with(name: str, endings: Iterable[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)
