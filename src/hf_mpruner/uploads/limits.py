"""What cannot be pushed from a Trainer so that others could load it: said before training begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_mpruner.architectures.adapters import adapter_configs
from hf_mpruner.errors import PushError, UnsupportedBackendError
from hf_mpruner.subject import trained_model

if TYPE_CHECKING:
    from transformers import Trainer


def check_pushes(trainer: Trainer) -> None:
    """Refuse a Trainer that would push what nobody can load; one that does not push is fine.

    Raises:
        PushError: for a model with adapters.
        UnsupportedBackendError: if the weights are saved in parts under FSDP.
    """
    if not trainer.args.push_to_hub:
        return
    if adapter_configs(trained_model(trainer)):
        raise PushError(
            "TrainingArguments(push_to_hub=True) with a model that carries adapters: after a cut they belong to a base that is "
            "saved on this machine only, so nobody else could load what is pushed. Leave push_to_hub out, and push the merged "
            "model after the training: push_pruned_model(trainer.model.merge_and_unload(), repo_id, report=callback.report). "
            "Nothing was changed."
        )
    sharded = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    kind: Any = getattr(sharded, "state_dict_type", None)
    if sharded is not None and "FULL_STATE_DICT" not in str(kind):
        raise UnsupportedBackendError(
            f"TrainingArguments(push_to_hub=True) under FSDP with {kind}: its pushes would have no weights that "
            "from_pretrained reads. Pass fsdp_config={'state_dict_type': 'FULL_STATE_DICT'}. Nothing was changed."
        )


def check_adapters(trainer: Trainer) -> None:
    """Refuse to push a model with adapters.

    Raises:
        PushError: if it has some.
    """
    if adapter_configs(trained_model(trainer)):
        raise PushError(
            "The model carries adapters, which are saved with the path of their base on this machine, so nobody else could "
            "load them. Push the merged model: push_pruned_model(trainer.model.merge_and_unload(), repo_id, "
            "report=callback.report); after an interrupted training call callback.rollback() first. Nothing was sent."
        )
