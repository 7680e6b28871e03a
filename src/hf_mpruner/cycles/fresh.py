"""A fresh Trainer: what it must be, what its model must be, and how it is trained, evaluated and let go of."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback

from hf_mpruner.callback import LayerPruningCallback
from hf_mpruner.config import PruningConfig
from hf_mpruner.errors import MPrunerError, UnsupportedBackendError
from hf_mpruner.preflight import check_judge
from hf_mpruner.record import PruningRecord
from hf_mpruner.recovery import freeze_untouched_, touched_layers
from hf_mpruner.runtime import check_wrapped
from hf_mpruner.runtime.processes import weight_sums
from hf_mpruner.subject import trained_model
from hf_mpruner.tracking import log_figures
from hf_mpruner.watching import uncut_outcomes
from hf_mpruner.workbench import Workbench

if TYPE_CHECKING:
    from torch import nn

    from hf_mpruner.guarantee import Outcomes

logger = logging.getLogger(__name__)

HOW = (
    "It gets a folder and must load its model from there:\n"
    "    def make_trainer(path):\n"
    "        model = AutoModelForSequenceClassification.from_pretrained(path)\n"
    "        return Trainer(model, TrainingArguments(...), train_dataset=..., eval_dataset=..., compute_metrics=...)"
)


class _LeaveError(Exception):
    """Not a failure: the training was entered for its wrappers only."""


class _Begin(TrainerCallback):
    """Looks at a Trainer whose model is wrapped; may end the training before its first step."""

    def __init__(self, trainer: Trainer, *, leave: bool) -> None:
        self.trainer, self.leave = trainer, leave

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        check_wrapped(self.trainer)
        if self.leave:
            raise _LeaveError


def check_arguments(make_trainer: object, model: object, config: PruningConfig) -> None:
    """Refuse what no run can begin with.

    Raises:
        TypeError: if `make_trainer` is no function, or `model` no folder or Hub id.
        ValueError: for settings that only a callback can carry out.
    """
    if not callable(make_trainer):
        raise TypeError(f"make_trainer is a {type(make_trainer).__name__}, not a function. {HOW}")
    if not isinstance(model, str | os.PathLike):
        raise TypeError(
            f"model is a {type(model).__name__}, but each round loads its model anew: pass the folder or the Hub id that it "
            "is loaded from. Save it with model.save_pretrained(folder) if it is nowhere."
        )
    check_recovery(config)


def check_fresh(trainer: Any, config: PruningConfig) -> None:
    """Refuse what `make_trainer` returned if a round cannot be trained, judged or saved with it.

    Args:
        trainer: whatever was returned.
        config (`PruningConfig`): what the user asked for.

    Raises:
        TypeError: if it is no Trainer, or its model no `PreTrainedModel`.
        ValueError: without an evaluation set or anything to judge by; with `model_init`, `push_to_hub` or a
            `LayerPruningCallback`.
        MPrunerError: if it has trained before.
        UnsupportedBackendError: if its engine would not save whole weights.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(f"make_trainer returned {type(trainer).__name__}, not a Trainer. {HOW}")
    if not isinstance(trainer.model, PreTrainedModel):
        raise TypeError(
            f"make_trainer returned a Trainer of a {type(trainer.model).__name__}, but prune_in_cycles saves and loads the "
            f"model as a PreTrainedModel of transformers. {HOW}"
        )
    if getattr(trainer, "model_init", None) is not None:
        raise ValueError(f"make_trainer returned a Trainer with model_init, which would replace its model. {HOW}")
    if trainer.state.global_step:
        raise MPrunerError(
            f"make_trainer returned a Trainer that has trained already: make a new one each time. {HOW}"
        )
    if trainer.args.push_to_hub:
        raise ValueError(
            "TrainingArguments(push_to_hub=True) would upload candidates that may be rejected. Leave it out, and push what "
            "is in the folder 'model' of output_dir once the run has ended."
        )
    if any(isinstance(one, LayerPruningCallback) for one in trainer.callback_handler.callbacks):
        raise ValueError(
            "make_trainer returned a Trainer with a LayerPruningCallback, but prune_in_cycles cuts the model itself, "
            "between trainings. Leave the callback out, or call trainer.train() alone instead of prune_in_cycles."
        )
    check_judge(trainer, config)
    _check_saves(trainer)


def _check_saves(trainer: Trainer) -> None:
    """An engine that partitions the weights must gather them to save them."""
    state: Any = trainer.accelerator.state
    zero = getattr(state, "deepspeed_plugin", None)
    if zero is not None and zero.zero_stage == 3:
        gathers = zero.deepspeed_config["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save", False)
        if gathers is not True:
            raise UnsupportedBackendError(
                "Under ZeRO-3 the model is saved whole only with 'stage3_gather_16bit_weights_on_model_save': true in the "
                "'zero_optimization' part of the DeepSpeed config. Add it. Nothing was changed."
            )
    sharded = getattr(state, "fsdp_plugin", None)
    if sharded is not None and "FULL_STATE_DICT" not in str(sharded.state_dict_type):
        raise UnsupportedBackendError(
            "Under FSDP the model is saved whole only with fsdp_config={'state_dict_type': 'FULL_STATE_DICT'}, but it is "
            f"{sharded.state_dict_type}. Change it. Nothing was changed."
        )


def is_partitioned(trainer: Trainer) -> bool:
    """Whether each process holds a part of the weights only, so that they may not fit on one device."""
    state: Any = trainer.accelerator.state
    zero = getattr(state, "deepspeed_plugin", None)
    return getattr(state, "fsdp_plugin", None) is not None or (zero is not None and zero.zero_stage == 3)


def find_difference(model: nn.Module, expected: nn.Module, ignored: Collection[str] = ()) -> str:
    """How a model is not the expected one, in words; empty if it is.

    Args:
        model (`nn.Module`): values of parameters that ZeRO-3 has partitioned are not looked at.
        expected (`nn.Module`): whole; may be of a wider data type.
        ignored: names whose values may differ.
    """
    live, wanted = dict(model.named_parameters()), dict(expected.named_parameters())
    if type(model) is not type(expected):
        return f"it is a {type(model).__name__}, not a {type(expected).__name__}"
    if missing := [name for name in wanted if name not in live]:
        return f"it lacks {len(missing)} of {len(wanted)} parameters, first '{missing[0]}'"
    if extra := [name for name in live if name not in wanted]:
        return f"it has {len(extra)} parameters more, first '{extra[0]}'"
    for name, param in live.items():
        shape, other = tuple(getattr(param, "ds_shape", param.shape)), wanted[name].detach()
        if shape != tuple(other.shape):
            return f"its '{name}' has shape {shape}, not {tuple(other.shape)}"
        if hasattr(param, "ds_id") or name in ignored:
            continue
        if not torch.equal(param.detach().cpu(), other.to(param.dtype).cpu()):
            return f"its '{name}' has other values"
    return ""


def check_model(trainer: Trainer, expected: nn.Module, path: str, ignored: Collection[str] = ()) -> None:
    """Refuse a Trainer whose model is not the one that it was to load.

    Args:
        trainer (`Trainer`): that `make_trainer` returned.
        expected (`nn.Module`): what lies in the folder.
        path (`str`): the folder that `make_trainer` was given.
        ignored: names whose values may differ.

    Raises:
        MPrunerError: naming the first difference.
    """
    if fault := find_difference(trained_model(trainer), expected, ignored):
        raise MPrunerError(
            f"make_trainer('{path}') returned a Trainer whose model is not the one of that folder: {fault}. {HOW}\n"
            "Adapters (peft) and quantised weights are not supported here."
        )


def digest(model: nn.Module, ignored: Collection[str] = ()) -> str:
    """SHA-256 of all names, shapes and weights of a model on any device, but those that are ignored."""
    total = hashlib.sha256()
    for (name, param), sums in zip(model.named_parameters(), weight_sums(model).tolist(), strict=True):
        if name not in ignored:
            total.update(f"{name} {param.dtype} {tuple(param.shape)} {sums}\n".encode())
    return total.hexdigest()


def freeze_beside_cut(model: nn.Module, record: PruningRecord) -> None:
    """Let only the layers beside the pending cut train, and the head; what `make_trainer` froze stays frozen.

    Args:
        model (`nn.Module`): the candidate.
        record (`PruningRecord`): its last round is the candidate's.

    Raises:
        ValueError: if nothing would be left to train.
    """
    *earlier, round_ = record.rounds
    before = dataclasses.replace(record, rounds=earlier).kept
    kept = {path: [layers.index(layer) for layer in round_.kept[path]] for path, layers in before.items()}
    freeze_untouched_(model, {path: touched_layers(len(before[path]), layers) for path, layers in kept.items()})


def check_recovery(config: PruningConfig) -> None:
    """Refuse what only a callback inside the training can do.

    Raises:
        ValueError: naming the setting and what to do instead.
    """
    refused = {
        f"recovery={config.recovery!r}": config.recovery != "full",
        "distillation": config.distils,
        f"learning_rate_policy={config.learning_rate_policy!r}": config.learning_rate_policy != "run",
        "recovery_learning_rate": config.recovery_learning_rate is not None,
    }
    if named := [name for name, found in refused.items() if found]:
        raise ValueError(
            f"prune_in_cycles does not support {', '.join(named)}: each round is a training of its own, with the rate and "
            "schedule of the TrainingArguments that make_trainer makes. Leave it out, or use LayerPruningCallback."
        )


def train(trainer: Trainer, epochs: int) -> None:
    """Train a fresh Trainer for some epochs, or for its own `max_steps`; with 0 epochs only wrap its model.

    That is what an evaluation needs before any training, too: without it accelerate and DeepSpeed take another path,
    which ZeRO-1 and 2 refuse.

    Args:
        trainer (`Trainer`): gets its own arguments back.
        epochs (`int`): instead of its `num_train_epochs`.

    Raises:
        UnsupportedBackendError: if there are several processes and nothing wraps the model.
    """
    asked = trainer.args.num_train_epochs
    trainer.args.num_train_epochs = epochs or asked
    begin = _Begin(trainer, leave=epochs == 0)
    trainer.callback_handler.callbacks.insert(0, begin)  # before the callbacks that open bars and logs
    try:
        trainer.train()
    except _LeaveError:
        trainer.is_in_train = False
    finally:
        trainer.callback_handler.callbacks.remove(begin)
        trainer.args.num_train_epochs = asked


def evaluate(bench: Workbench) -> dict[str, float]:
    """The evaluation of a Trainer beside its training, unseen by its other callbacks; keys without prefix."""
    # outside of a training bf16_full_eval would cast the weights, which are saved afterwards
    bench.trainer.is_in_train = True
    try:
        with bench.aside():
            return bench.evaluate()
    finally:
        bench.trainer.is_in_train = False


def outcomes(bench: Workbench | None, metric: str, record: PruningRecord) -> Outcomes:
    """What the last evaluation's metric is made of, of the same kind as that of the uncut model.

    Args:
        bench (`Workbench`, *optional*): that evaluated.
        metric (`str`): its name.
        record (`PruningRecord`): of the run.

    Raises:
        MPrunerError: if the metric has no outcomes, or nothing was evaluated.
    """
    if bench is None:
        raise MPrunerError("No Trainer is there whose evaluation could be looked at.")
    return bench.outcomes(metric, uncut_outcomes(record))


def announce(trainer: Trainer, record: PruningRecord) -> None:
    """Say what became of the last round, in the log and where the Trainer's integrations keep figures."""
    if trainer.is_world_process_zero():
        round_ = record.rounds[-1]
        logger.info("Round %d %s: %s", round_.number, round_.verdict, round_.reason)
        log_figures(trainer, record)


def release(trainer: Trainer) -> None:
    """Let go of a Trainer's engine, so that the next one has the memory; the caller drops the Trainer itself."""
    trainer.accelerator.free_memory()
    trainer.model_wrapped = cast("nn.Module", trainer.model)
    trainer.optimizer = trainer.lr_scheduler = None
