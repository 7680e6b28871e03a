"""The Trainer's loss with the uncut model in it, while a cut recovers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .architectures.adapters import adapted_modules
from .config import PruningConfig
from .errors import MPrunerError, UnsupportedBackendError
from .features.rows import padding_mask
from .recovery import divergence, hidden_difference, kind_of, recorded
from .recovery.teacher import as_inputs
from .runtime import Runtime
from .subject import trained_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer


class DistilledLoss:
    """`(1 - w) * loss + w * T^2 KL(teacher || student) + v * hidden difference`, for training steps only.

    Args:
        trainer (`Trainer`): training; its own loss is asked for first, so subclasses and `compute_loss_func` count.
        config (`PruningConfig`): with w, T and v.
        teacher (`PreTrainedModel`): the model before the first cut, on the Trainer's device.
        kept (`Mapping[str, list[int]]`): by path of a stack, which of the teacher's layers the student still has.
    """

    def __init__(
        self, trainer: Trainer, config: PruningConfig, teacher: PreTrainedModel, kept: Mapping[str, list[int]]
    ) -> None:
        """Pair the layers."""
        self._asked: bool | None = None
        self._apart = _trl_class(trainer) == "SFTTrainer"
        self.trainer, self.config, self.teacher = trainer, config, teacher
        student = trained_model(trainer)
        self._student: dict[str, nn.Module] = {}
        self._teacher: dict[str, nn.Module] = {}
        for path, layers in kept.items() if config.distillation_hidden_weight > 0 else ():
            mine, its = (model.get_submodule(path)._modules for model in (student, teacher))
            for (_, block), layer in zip(mine.items(), layers, strict=True):
                name = f"{path}.{layer}"
                self._student[name], self._teacher[name] = block, list(its.values())[layer]  # type: ignore[assignment]

    def __call__(
        self,
        original: Callable[..., Any],
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """What `Trainer.compute_loss` returns; `original` is that method."""
        if not model.training:  # an evaluation judges by the task's own loss
            return original(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch, **kwargs)
        batch = dict(inputs)  # the Trainer takes labels out of its own
        if self._apart:
            batch["use_cache"] = False  # as trl does: with a cache, sequences packed into one row would see each other
        with ExitStack() as stack:
            mine = stack.enter_context(recorded(self._student))
            answer = original(model, inputs, not self._apart, num_items_in_batch=num_items_in_batch, **kwargs)
        loss, outputs = (answer, None) if self._apart else answer
        with ExitStack() as stack, torch.no_grad():
            its = stack.enter_context(recorded(self._teacher))
            lesson = self.teacher(**as_inputs(self._without_labels(batch), self.teacher))
        config, total = self.config, loss
        if config.distillation_weight > 0:
            if self._apart:
                outputs = model(**self._without_labels(batch))
            term = self._from_logits(outputs, lesson, batch, num_items_in_batch)
            total = (1 - config.distillation_weight) * loss + config.distillation_weight * term
        if config.distillation_hidden_weight > 0:
            masks = {name: padding_mask(self.teacher, name.rpartition(".")[0], batch) for name in mine}
            term = hidden_difference(mine, its, masks) * self._weight_of_mean(batch, num_items_in_batch)
            total = total + config.distillation_hidden_weight * term
        return (total, outputs) if return_outputs else total

    def _without_labels(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The teacher needs no loss; an encoder-decoder model makes its decoder's inputs of the labels."""
        needs = getattr(self.teacher.config, "is_encoder_decoder", False) and not {
            "decoder_input_ids",
            "decoder_inputs_embeds",
        } & set(batch)
        names = () if needs else tuple(self.trainer.label_names)
        return {name: value for name, value in batch.items() if name not in names}

    def _from_logits(self, outputs: Any, lesson: Any, batch: dict[str, Any], num_items: Tensor | int | None) -> Tensor:
        names = [name for name in _logits(lesson) if isinstance(_logits(outputs).get(name), Tensor)]
        if not names:
            given = ", ".join(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
            raise MPrunerError(
                f"Distillation compares logits, but the outputs of {type(trained_model(self.trainer)).__name__} hold none "
                f"(they hold {given}). Pass distillation_weight=0, and distillation_hidden_weight to learn from hidden states."
            )
        terms = [self._one(_logits(outputs)[name], _logits(lesson)[name], batch, num_items) for name in names]
        return torch.stack(terms).mean()

    def _one(self, mine: Tensor, its: Tensor, batch: dict[str, Any], num_items: Tensor | int | None) -> Tensor:
        trainer, shifted = self.trainer, "shift_labels" in batch
        labels = batch.get("shift_labels" if shifted else "labels")
        name = type(trained_model(trainer)).__name__
        about: dict[str, Any] = {
            "temperature": self.config.distillation_temperature,
            "causal": name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() and not shifted,
            "kind": kind_of(getattr(self.teacher.config, "problem_type", None), mine, labels),
        }
        counted = isinstance(labels, Tensor) and labels.shape == mine.shape[:-1]
        if counted and self._counts_items(batch, num_items):
            return divergence(mine, its, labels, num_items_in_batch=num_items, **about) * self._trainers_factor(
                num_items
            )
        labels = labels if counted else None
        return divergence(mine, its, labels, **about) * self._weight_of_mean(batch, num_items)

    def _weight_of_mean(self, batch: dict[str, Any], num_items: Tensor | int | None) -> float:
        """What a mean over one batch of one process counts for, beside the task's loss."""
        if self._counts_items(batch, num_items):  # over all processes and accumulated batches, so a mean is a share
            return 1.0 / self.trainer.current_gradient_accumulation_steps
        return self._trainers_factor(num_items)

    def _trainers_factor(self, num_items: Tensor | int | None) -> float:
        """What `Trainer.compute_loss` multiplies the task's loss by."""
        trainer = self.trainer
        passes = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
        across = trainer.args.average_tokens_across_devices and passes and num_items is not None
        return float(trainer.accelerator.num_processes) if across else 1.0

    def _counts_items(self, batch: dict[str, Any], num_items: Tensor | int | None) -> bool:
        """Whether the task's loss is a sum divided by `num_items_in_batch`.

        The Trainer passes that number to every model whose forward takes keywords, but many (BERT's classifier) return
        the mean over one batch all the same. So the model is asked, once.
        """
        trainer = self.trainer
        if num_items is None or not (trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None):
            return False
        if trainer.compute_loss_func is not None:
            return True
        if trainer.label_smoother is not None:
            return "num_items_in_batch" in signature(type(trainer.label_smoother).__call__).parameters
        if self._asked is None:
            inputs = as_inputs(batch, self.teacher)
            with torch.no_grad():
                once, twice = (self.teacher(**inputs, num_items_in_batch=number * num_items) for number in (1, 2))
            if once.get("loss") is None:  # a Trainer that computes the loss itself says it, or takes a mean
                self._asked = bool(getattr(trainer, "loss_is_scaled_for_ga", False))
            else:
                self._asked = not torch.equal(once["loss"], twice["loss"])
        return self._asked


def check_distillation(trainer: Trainer, config: PruningConfig, runtime: Runtime) -> None:
    """Refuse a training in which no teacher can teach, before any work is done.

    Raises:
        UnsupportedBackendError: naming the setting and what to use instead.
    """
    args, whole = trainer.args, trainer.model
    hidden = config.distillation_hidden_weight > 0
    kwargs = getattr(args, "activation_checkpointing_kwargs", None) or getattr(
        args, "gradient_checkpointing_kwargs", None
    )
    for wrong, text in (
        (
            bool(adapted_modules(cast(nn.Module, whole))),
            "adapters of PEFT, since the teacher is saved as a plain model: leave the distillation weights at 0",
        ),
        (runtime.name == "FSDP2", "FSDP2, where no process holds the model that would teach: train with DDP"),
        (
            trained_model(trainer) is not whole,
            f"{type(whole).__name__}, whose outputs are not those of a transformers model alone: leave the distillation "
            "weights at 0",
        ),
        (
            _trl_class(trainer) not in ("", "SFTTrainer"),
            f"{type(trainer).__name__} of trl, whose loss is not one of logits: leave the distillation weights at 0",
        ),
        (hidden and args.torch_compile, "torch_compile and distillation_hidden_weight: pass one of the two"),
        (
            hidden and bool((kwargs or {}).get("use_reentrant")),
            "reentrant activation checkpoints, which hide hidden states from the loss: pass use_reentrant=False, or "
            "distillation_hidden_weight=0",
        ),
    ):
        if wrong:
            raise UnsupportedBackendError(f"Distillation does not go with {text}. Nothing was changed.")


def _trl_class(trainer: Trainer) -> str:
    """The trainer of trl whose loss this is, by name; empty for any other.

    `SFTTrainer` computes its loss without logits. Those that it returns beside it carry no gradient.
    """
    kinds = [kind for kind in type(trainer).__mro__ if kind.__module__.partition(".")[0] == "trl"]
    return next((kind.__name__ for kind in kinds if "compute_loss" in vars(kind)), "")


def _logits(outputs: Any) -> dict[str, Tensor]:
    if not isinstance(outputs, Mapping):
        return {}
    return {name: value for name, value in outputs.items() if name.endswith("logits") and isinstance(value, Tensor)}
