"""Neuron criteria by name: ours, and the user's own."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any, TypeVar

from hf_mpruner.width.base import NeuronCriterion

# Name -> module, class and its arguments, so that naming one loads no other.
_BUILT_IN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "cka": ("cka", "GreedyCKA", {}),
    "cka_one_shot": ("cka", "OneShotCKA", {}),
    "l1": ("l1", "L1Norm", {}),
    "mipp": ("mutual_information", "GaussianMIPP", {}),
    "mipp_neural": ("neural", "NeuralMIPP", {}),
    "random": ("l1", "RandomNeurons", {}),
}
_REGISTERED: dict[str, NeuronCriterion] = {}

Given = TypeVar("Given", bound="NeuronCriterion | type[NeuronCriterion]")


def register_neuron_criterion(criterion: Given) -> Given:
    """Make a neuron criterion known by its name; also as a class decorator.

    Args:
        criterion (`NeuronCriterion`, or a class of one that needs no arguments): in place of one of that name.

    Raises:
        TypeError: for something that is no neuron criterion, or has no name.
    """
    made = criterion() if isinstance(criterion, type) and issubclass(criterion, NeuronCriterion) else criterion
    if not isinstance(made, NeuronCriterion) or not isinstance(getattr(made, "name", None), str):
        raise TypeError(
            f"{criterion!r} is no neuron criterion: pass a subclass of NeuronCriterion with a name and a method rank."
        )
    _REGISTERED[made.name] = made
    return criterion


def known_neuron_criteria() -> list[str]:
    """The names of all neuron criteria."""
    return [*_BUILT_IN, *(name for name in _REGISTERED if name not in _BUILT_IN)]


def find_neuron_criterion(name: str | NeuronCriterion) -> NeuronCriterion:
    """The neuron criterion of a name.

    Args:
        name (`str` or `NeuronCriterion`): a known name, or a criterion, which is handed back.

    Raises:
        ValueError: for an unknown name; lists those that are known.

    Example:
        >>> find_neuron_criterion("l1").needs
        frozenset({'weights'})
    """
    if isinstance(name, NeuronCriterion):
        return name
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name in _BUILT_IN:
        module, kind, arguments = _BUILT_IN[name]
        made: NeuronCriterion = getattr(import_module(f"{__package__}.{module}"), kind)(**arguments)
        return made
    close = difflib.get_close_matches(name, known_neuron_criteria(), 1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise ValueError(
        f"neuron criterion '{name}' is not known.{hint} Known neuron criteria: {', '.join(known_neuron_criteria())}. One "
        "of your own: register_neuron_criterion(MyCriterion)."
    )
