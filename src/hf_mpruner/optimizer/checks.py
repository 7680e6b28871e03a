"""Whether an optimizer can lose parameters, and whether it fits the model that it trains."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hf_mpruner.errors import MPrunerError, UnsupportedBackendError
from hf_mpruner.optimizer.wrappers import unwrap_optimizer

# Optimizers whose own bookkeeping a cut would break: (package, class or "" for all of it, why). Those of torch and
# transformers are run by the tests. The others need not be installed, so they are known by name; looked at were
# bitsandbytes 0.50, galore_torch 1.0, apollo_torch 1.0, lomo_optim 0.1, grokadamw 0.1, torchao 0.18, deepspeed 0.19.
# A cut and its rollback were tried by hand, and exact, with schedulefree 1.4, optimi 0.3 and torchao's 4- and 8-bit.
REFUSED = (
    ("bitsandbytes", "", "it keeps settings by the position of a parameter in its group, which a cut shifts"),
    ("galore_torch", "", "it keeps a projector object for every parameter that cannot be saved and put back"),
    ("apollo_torch", "", "it keeps a projector object for every parameter that cannot be saved and put back"),
    ("lomo_optim", "", "it trains in hooks on the parameters during the backward pass, and its step() does nothing"),
    ("grokadamw", "", "it keeps its moments inside param_groups, where a rollback cannot tell them from settings"),
    ("deepspeed", "", "it trains flat copies of the parameters"),
    ("torchao", "CPUOffloadOptimizer", "it runs one hidden optimizer for every parameter"),
    ("transformers", "LayerWiseDummyOptimizer", "it trains in hooks on the parameters, and its step() does nothing"),
    ("torch", "LBFGS", "it keeps one flat history over all parameters"),
    ("torch", "ZeroRedundancyOptimizer", "it keeps a partition of the parameters over the processes"),
)
INSTEAD = 'Use an optimizer of torch, e.g. TrainingArguments(optim="adamw_torch"). Nothing was changed.'


def check_optimizer(model: nn.Module, optimizer: Any) -> None:
    """Refuse an optimizer that cannot lose parameters in place, before anything is changed.

    Args:
        model (`nn.Module`): holds every parameter that the optimizer trains.
        optimizer: the live one, or accelerate's wrapper of it.

    Raises:
        UnsupportedBackendError: naming the optimizer's class, the reason, and what to use.
    """
    inner = unwrap_optimizer(optimizer)
    name = type(inner).__name__
    if reason := _refusal(inner):
        raise UnsupportedBackendError(f"{name} cannot lose layers while it trains: {reason}. {INSTEAD}")
    dead, orphans = _strangers(model, inner)
    if dead:
        raise UnsupportedBackendError(
            f"{name} trains {len(dead)} tensors that are no parameters of {type(model).__name__} (the first: "
            f"{dead[0]}): flat or sharded copies, another model's weights, or layers that were removed before. "
            f"{INSTEAD}"
        )
    if orphans:
        raise UnsupportedBackendError(
            f"{name} cannot lose layers while it trains: it keeps state for {orphans[0]}, which is in none of its "
            f"groups. {INSTEAD}"
        )


def _refusal(optimizer: Any) -> str:
    """Why an optimizer cannot be edited, from its class; empty if it can."""
    if not isinstance(optimizer, Optimizer):
        return "it is not a torch.optim.Optimizer"
    for kind in type(optimizer).__mro__:
        for module, name, reason in REFUSED:
            if kind.__module__.partition(".")[0] == module and name in ("", kind.__name__):
                return reason
    if isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        return "it wraps another optimizer and keeps a state of its own"
    return ""


def find_missing_parameters(model: nn.Module, optimizer: Any) -> list[nn.Parameter]:
    """Trainable parameters of the model that are in no group of the optimizer.

    Args:
        model (`nn.Module`): the model that trains.
        optimizer: the live one, or accelerate's wrapper of it.

    Returns:
        `list[nn.Parameter]`: in the model's order; empty if all train.
    """
    held = {id(param) for param in _trained(unwrap_optimizer(optimizer))}
    return [param for param in model.parameters() if param.requires_grad and id(param) not in held]


def check_optimizer_matches(model: nn.Module, optimizer: Any, missing_before: Collection[nn.Parameter] = ()) -> None:
    """Hold model and optimizer against each other after an edit.

    Args:
        model (`nn.Module`): the model as it is now.
        optimizer: the live one, or accelerate's wrapper of it.
        missing_before (`Collection[nn.Parameter]`, *optional*): what `find_missing_parameters` said before the edit:
            parameters that the user does not train by this optimizer.

    Raises:
        MPrunerError: if the optimizer trains a parameter that is not in the model, keeps state for one that is in no
            group, or misses one that it should train. The message names them.
    """
    inner = unwrap_optimizer(optimizer)
    dead, orphans = _strangers(model, inner)
    lost = {id(param) for param in find_missing_parameters(model, inner)} - {id(param) for param in missing_before}
    missing = [name for name, param in model.named_parameters() if id(param) in lost]
    faults = [
        f"{len(found)} {text} (the first: {found[0]})"
        for found, text in (
            (dead, "parameters in its groups are not in the model"),
            (orphans, "entries of its state belong to no parameter of its groups"),
            (missing, "trainable parameters of the model are in none of its groups"),
        )
        if found
    ]
    if faults:
        raise MPrunerError(
            f"{type(inner).__name__} does not match {type(model).__name__} after an edit: {'; '.join(faults)}. "
            "Something else edits the model or the optimizer while it trains: run without it, or without pruning."
        )


def _strangers(model: nn.Module, optimizer: Any) -> tuple[list[str], list[str]]:
    """What the optimizer trains outside the model, and what it keeps state for outside its groups, as text."""
    known = {id(param) for param in model.parameters()}
    trained = _trained(optimizer)
    held = {id(param) for param in trained}
    dead = [param for param in trained if id(param) not in known]
    orphans = [key for key in optimizer.state if id(key) not in held]
    return [_shown(param) for param in dead], [_shown(key) for key in orphans]


def _shown(key: Any) -> str:
    return f"a tensor of shape {tuple(key.shape)}" if isinstance(key, torch.Tensor) else repr(key)


def _trained(optimizer: Any) -> list[nn.Parameter]:
    return [param for group in optimizer.param_groups for param in group["params"]]
