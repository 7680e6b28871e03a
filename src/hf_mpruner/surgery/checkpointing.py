"""Activation checkpointing of every n-th layer: the marks that transformers has set lie evenly after a cut, too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from hf_mpruner.surgery.steps import Write

_MARK, _FUNCTION = "gradient_checkpointing", "_gradient_checkpointing_func"


def checkpointed_every(model: nn.Module) -> int:
    """How the layers are marked: 1 if all of them are, n for every n-th from the first, 0 for none or otherwise.

    One mark on the first layer alone is every n-th for any n that is not smaller than the number of layers; that is
    given then.
    """
    marks = [bool(getattr(layer, _MARK)) for layer in _layers(model)]
    every = next((n for n, mark in enumerate(marks) if n and mark), len(marks))
    return every if every and marks == [n % every == 0 for n in range(len(marks))] else 0


def prepare_marks(model: nn.Module, removed: Iterable[nn.Module]) -> list[Write]:
    """The marks of the layers that stay, as transformers would set them in the model that a cut leaves.

    Args:
        model (`nn.Module`): not yet cut.
        removed (`Iterable[nn.Module]`): the blocks that go.
    """
    every = checkpointed_every(model)
    if every < 2:  # all or none stay so; marks of the user's own are the user's
        return []
    gone = {id(module) for block in removed for module in block.modules()}
    staying = [layer for layer in _layers(model) if id(layer) not in gone]
    return [
        Write.prepare(vars(layer), _MARK, n % every == 0, f"'{_MARK}' of layer {n}")
        for n, layer in enumerate(staying)
        if bool(getattr(layer, _MARK)) != (n % every == 0)
    ]


def mark_returned(model: nn.Module, every: int) -> None:
    """Mark blocks that came back into a model after its checkpointing was switched on, if it was.

    Args:
        model (`nn.Module`): whole again; its first layer has stayed or another one has, with what transformers set.
        every (`int`): what `checkpointed_every` gave before the cut; 0 counts as 1.
    """
    layers = _layers(model)
    functions: list[Any] = [vars(layer)[_FUNCTION] for layer in layers if _FUNCTION in vars(layer)]
    if not functions or not any(getattr(layer, _MARK) for layer in layers):
        return
    for module in model.modules():
        if hasattr(module, _MARK) and _FUNCTION not in vars(module):
            setattr(module, _FUNCTION, functions[0])
            setattr(module, _MARK, True)
    for n, layer in enumerate(layers):
        setattr(layer, _MARK, n % (every or 1) == 0)


def _layers(model: nn.Module) -> list[nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
