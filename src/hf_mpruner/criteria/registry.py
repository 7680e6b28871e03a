"""Criteria by name: ours, and the user's own."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TypeVar

from hf_mpruner.config import PruningConfig
from hf_mpruner.criteria.base import Criterion

# Name -> module and class, so that naming one loads no other.
_BUILT_IN: dict[str, tuple[str, str]] = {
    "cka": ("cka", "Cka"),
    "cka_segments": ("cka_segments", "CkaSegments"),
    "cka_evidence": ("cka_evidence", "CkaEvidence"),
    "block_influence": ("block_influence", "BlockInfluence"),
    "angular": ("angular", "Angular"),
    "relative_magnitude": ("relative_magnitude", "RelativeMagnitude"),
    "magnitude": ("magnitude", "Magnitude"),
    "taylor": ("taylor", "Taylor"),
    "loss": ("loss", "Loss"),
    "greedy_loss": ("greedy_loss", "GreedyLoss"),
    "output_change": ("output_change", "OutputChange"),
    "metric_drop": ("metric_drop", "MetricDrop"),
    "laco": ("laco", "Laco"),
    "mka": ("mka", "Mka"),
    "mixture": ("mixture", "Mixture"),
    "tail": ("positional", "Tail"),
    "alternate": ("positional", "Alternate"),
    "random": ("positional", "Random"),
}
_REGISTERED: dict[str, Criterion] = {}

# Those that look at nothing but the similarity of layers.
OF_SIMILARITY = frozenset({"cka", "cka_segments", "cka_evidence"})

Given = TypeVar("Given", bound="Criterion | type[Criterion]")


def register_criterion(criterion: Given) -> Given:
    """Make a criterion known by its name; also as a class decorator.

    Args:
        criterion (`Criterion`, or a class of one that needs no arguments): registered in place of one of that name.

    Returns:
        what was given.

    Raises:
        TypeError: for something that is no criterion, or has no name.

    Example:
        >>> @register_criterion
        ... class ByPosition(Criterion):
        ...     name = "by_position"
        ...     def score(self, inputs):
        ...         return {stack.path: range(stack.depth) for stack in inputs.stacks}
        >>> find_criterion("by_position").name
        'by_position'
    """
    made = criterion() if isinstance(criterion, type) and issubclass(criterion, Criterion) else criterion
    if not isinstance(made, Criterion) or not isinstance(getattr(made, "name", None), str):
        raise TypeError(
            f"{criterion!r} is no criterion: pass a subclass of hf_mpruner.Criterion with a name and a method score."
        )
    _REGISTERED[made.name] = made
    return criterion


def known_criteria() -> list[str]:
    """The names of all criteria."""
    return [*_BUILT_IN, *(name for name in _REGISTERED if name not in _BUILT_IN)]


def find_criterion(name: str | Criterion) -> Criterion:
    """The criterion of a name.

    Args:
        name (`str` or `Criterion`): a known name, `"module:Class"` for one of the user's that can be imported, or a
            criterion, which is handed back.

    Raises:
        ValueError: for an unknown name; lists those that are known.

    Example:
        >>> find_criterion("tail").cost
        '0'
    """
    if isinstance(name, Criterion):
        return name
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name in _BUILT_IN:
        module, kind = _BUILT_IN[name]
        made: Criterion = getattr(import_module(f"{__package__}.{module}"), kind)()
        return made
    module, _, kind = name.partition(":")
    if kind:
        return _imported(name, module, kind)
    close = difflib.get_close_matches(name, known_criteria(), 1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise ValueError(
        f"criterion='{name}' is not known.{hint} Known criteria: {', '.join(known_criteria())}. One of your own: "
        "register_criterion(MyCriterion), or 'my_module:MyCriterion'."
    )


def criterion_of(config: PruningConfig) -> Criterion:
    """The criterion that a config asks for.

    `cka` has clusters at a threshold; a search, which has no threshold, goes by what can be shown of the same similarities.

    Args:
        config (`PruningConfig`): that does not plan by a threshold.

    Raises:
        ValueError: for an unknown name.
    """
    return find_criterion("cka_evidence" if config.searches and config.criterion == "cka" else config.criterion)


def _imported(name: str, module: str, kind: str) -> Criterion:
    try:
        found = getattr(import_module(module), kind)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"criterion='{name}' cannot be imported: {error}. A module of the current folder is found with PYTHONPATH=. in "
            "front of the command."
        ) from error
    register_criterion(found)
    return _REGISTERED[found.name]
