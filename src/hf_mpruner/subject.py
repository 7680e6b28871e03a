"""What a Trainer trains, and the transformers model inside of it that is cut: one and the same, or not.

A sentence-transformers model holds its transformers model beside modules of its own, and its loss may hold weights,
too. What trains is snapshotted, checked and compared as a whole; only the transformers model can be cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .architectures.adapters import unwrap_adapters
from .errors import UnsupportedArchitectureError

if TYPE_CHECKING:
    from transformers import Trainer


def trained_model(trainer: Trainer) -> PreTrainedModel:
    """The transformers model that a Trainer trains, without what is around it.

    Raises:
        UnsupportedArchitectureError: if there is none, or more than one.
    """
    return find_pretrained(cast(nn.Module, trainer.model))


def trained_whole(trainer: Trainer) -> nn.Module:
    """All that a Trainer trains: its model, and beside it a loss with weights of its own (sentence-transformers)."""
    model = cast(nn.Module, trainer.model)
    found: Any = getattr(trainer, "loss", None)
    losses = [loss for loss in (found.values() if isinstance(found, dict) else [found]) if isinstance(loss, nn.Module)]
    known = {id(param) for param in model.parameters()}
    if any(param.requires_grad and id(param) not in known for loss in losses for param in loss.parameters()):
        return nn.ModuleDict({"model": model, "loss": nn.ModuleList(losses)})
    return model


def find_pretrained(whole: nn.Module) -> PreTrainedModel:
    """The one transformers model inside a module; the module itself, if it is one.

    Only a module that saves what it holds (`save_pretrained`) is looked into. Others are handed on as they are and
    refused by who examines the model.

    Args:
        whole (`nn.Module`): what trains, e.g. a `SentenceTransformer` or a `PeftModel`.

    Raises:
        UnsupportedArchitectureError: if there is none inside, or more than one, or adapters under which no layer can be
            cut.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, vocab_size=9))
        >>> find_pretrained(model) is model
        True
    """
    whole = unwrap_adapters(whole)
    if isinstance(whole, PreTrainedModel) or not hasattr(whole, "save_pretrained"):
        return cast(PreTrainedModel, whole)
    found = dict(_outermost(whole, ""))
    if len(found) == 1:
        return next(iter(found.values()))
    kind, named = type(whole).__name__, ", ".join(f"'{name}' ({type(one).__name__})" for name, one in found.items())
    if not found:
        raise UnsupportedArchitectureError(
            f"{kind} holds no transformers model, so there are no layers to prune. Pass a model around a PreTrainedModel."
        )
    raise UnsupportedArchitectureError(
        f"{kind} holds {len(found)} transformers models: {named}. A run prunes one of them. Train a model around one "
        "PreTrainedModel, or prune each before training with hf_mpruner.prune_."
    )


def check_surroundings(whole: nn.Module, model: PreTrainedModel) -> None:
    """Refuse what stands around the transformers model and counts its layers, since a cut would make it wrong.

    Args:
        whole (`nn.Module`): what trains.
        model (`PreTrainedModel`): inside of it.

    Raises:
        UnsupportedArchitectureError: naming the module, what it keeps, and what to use instead.
    """
    inside = {id(module) for module in model.modules()}
    own = {id(value) for value in vars(model.config).values()} | {id(model.config)}
    for name, module in whole.named_modules():
        if id(module) in inside:
            continue
        for fault in _counts_layers(module, own):
            raise UnsupportedArchitectureError(
                f"'{name}' ({type(module).__name__}) {fault}, which a cut of {type(model).__name__} would make wrong. "
                "Take the last layer's output instead (in sentence-transformers: Pooling right after Transformer)."
            )


def _outermost(module: nn.Module, name: str) -> Iterator[tuple[str, PreTrainedModel]]:
    module = unwrap_adapters(module)
    if isinstance(module, PreTrainedModel):
        yield name, module
        return
    for key, child in module.named_children():
        yield from _outermost(child, f"{name}.{key}" if name else key)


def _counts_layers(module: nn.Module, own: set[int]) -> Iterator[str]:
    """What a module keeps that belongs to the number of layers of another one, in words."""
    for key, value in vars(module).items():
        if key in ("num_hidden_layers", "layer_start"):
            yield f"keeps {key}={value}"
        if isinstance(value, PreTrainedConfig) and id(value) not in own:
            yield f"keeps a config of its own ({key})"
    # sentence-transformers' Transformer: which of the model's outputs it takes, by kind of input
    modalities = getattr(module, "modality_config", None)
    for kind, how in modalities.items() if isinstance(modalities, dict) else ():
        path = how.get("method_output_name") if isinstance(how, dict) else None
        if isinstance(path, list | tuple) and "hidden_states" in path and path[-1] != -1:
            yield f"takes {'.'.join(map(str, path))} of the model's output for {kind}"
