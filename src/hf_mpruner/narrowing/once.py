"""`prune_width_`: neurons or heads leave a model in one call, without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_mpruner.architectures import Widths, find_widths
from hf_mpruner.architectures.width import What
from hf_mpruner.data import FirstBatch, calibration_loader, describe_sample
from hf_mpruner.environment import describe_device, library_versions
from hf_mpruner.runtime import keep_rng_state
from hf_mpruner.surgery import apply_compared_, apply_width_plan_
from hf_mpruner.verify import check_request
from hf_mpruner.width import NeuronCriterion, find_neuron_criterion, plan_width
from hf_mpruner.width.planning import choose_groups, numbers_kept

from .report import NarrowingReport

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_mpruner.config import Verification


def prune_width_(
    model: PreTrainedModel,
    fraction: float | None,
    *,
    calibration: Any = None,
    criterion: str | NeuronCriterion = "cka",
    what: What = "neurons",
    fields: Sequence[str] | None = None,
    multiple_of: int = 1,
    processing_class: Any = None,
    calibration_samples: int = 256,
    calibration_batch_size: int = 16,
    seed: int = 0,
    verify: Verification = "structure",
    show_progress: bool | None = None,
) -> NarrowingReport:
    """Take neurons or heads out of a model in place: parameters, size and latency fall, and plain `from_pretrained` loads it.

    The same share goes in every layer, since one config value counts them all; which ones, is each layer's own. What is
    left is run on the first calibration batch, where there is one, and must equal the whole model with the removed neurons
    at zero.

    Args:
        model (`PreTrainedModel`): changed in place; afterwards `save_pretrained` writes an ordinary checkpoint.
        fraction (`float`, *optional*): how many of each layer go, above 0 and below 1; `None`: as `mipp` decides.
        calibration (*optional*): data to measure activations on: a dataset (model-ready, or with a text or image column and
            `processing_class`), or an iterable of batches. Criteria of weights and of chance run without.
        criterion (`str` or `NeuronCriterion`): `"cka"`, `"cka_one_shot"`, `"mipp"`, `"mipp_neural"`, `"l1"`, `"random"`.
        what (`"neurons"` or `"heads"`): of the feed-forwards, or of the attentions. Heads of grouped queries go with their
            key-value head.
        fields (sequence of `str`, *optional*): config values whose layers are narrowed, e.g. `["encoder_ffn_dim"]`.
        multiple_of (`int`): what stays of each layer is a multiple of this, as kernels like it: 8, 64.
        processing_class (*optional*): tokenizer or image processor for raw data.
        calibration_samples (`int`): how many examples are run.
        calibration_batch_size (`int`): how many at a time.
        seed (`int`): draws the examples, and what a criterion draws.
        verify (`"structure"` or `"full"`): also compare with a copy that was saved and loaded again.
        show_progress (`bool`, *optional*): progress bar; by default only on a terminal.

    Returns:
        `NarrowingReport`: with `.plan`, which replays it on a fresh copy, and `.edit`, whose `undo()` takes it back.

    Raises:
        UnsupportedArchitectureError: the config cannot express fewer (says why), or it cannot be proved right.
        ValueError: for a fraction outside 0 to 1, or one that leaves a layer empty or changes nothing; an unknown criterion.
        CalibrationError: if the criterion needs data, or it cannot be measured. In all cases the model is as it was.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> sizes = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
        >>> model = BertModel(BertConfig(**sizes, vocab_size=20))
        >>> report = prune_width_(model, 0.25, calibration=[{"input_ids": [1, 2, 3, token]} for token in range(20)])
        >>> model.config.intermediate_size, model.encoder.layer[1].intermediate.dense
        (12, Linear(in_features=8, out_features=12, bias=True))
    """
    criterion, found = check_width(model, fraction, criterion, what, fields, multiple_of)  # before any data is read
    if calibration is None and verify == "full":
        check_request(verify, None)
    sample: Any = {"num_samples": calibration_samples, "batch_size": calibration_batch_size, "seed": seed}
    first, facts = _read(model, calibration, processing_class, sample)
    choice: Any = {"criterion": criterion, "what": what, "fields": fields, "multiple_of": multiple_of, "seed": seed}
    batches = None if first is None else first.batches
    plan = plan_width(model, found, fraction, batches=batches, show_progress=show_progress, **choice)
    preview = plan.preview(model)
    if first is None:
        edit = apply_width_plan_(model, plan)
    else:
        edit = apply_compared_(model, plan, found, first(), saved=verify == "full")
    device = describe_device(model.device)
    return NarrowingReport(plan, preview, data=facts, versions=library_versions(), device=device, edit=edit)


def _read(
    model: PreTrainedModel, calibration: Any, processing_class: Any, sample: Any
) -> tuple[FirstBatch | None, dict[str, Any]]:
    """The batches, and what is known of where they are from; without data neither."""
    if calibration is None:
        return None, {}
    with keep_rng_state():
        loader = calibration_loader(calibration, processing_class=processing_class, model=model, **sample)
        return FirstBatch(loader), {"calibration": describe_sample(calibration, loader, "given by the user")}


def check_width(
    model: PreTrainedModel,
    fraction: float | None,
    criterion: str | NeuronCriterion = "cka",
    what: What = "neurons",
    fields: Sequence[str] | None = None,
    multiple_of: int = 1,
) -> tuple[NeuronCriterion, Widths]:
    """Check what can be checked before any data is read; see `prune_width_`.

    Returns:
        `tuple[NeuronCriterion, Widths]`: the criterion, and what of the model's width can go.
    """
    found_criterion = find_neuron_criterion(criterion)
    found = find_widths(model, what)
    numbers_kept(found, choose_groups(found, what, fields), fraction, multiple_of, found_criterion)
    return found_criterion, found
