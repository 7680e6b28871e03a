"""One tester for every family: what is found, and that a cut model is exactly what it claims to be.

Each cut is compared bit for bit with three models that know nothing of the surgery: one built from the new config that
got the kept weights, the original whose removed blocks hand their input on, and the saved and reloaded checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_mpruner.architectures import BlockStack, count_parameters, examine, find_block_stacks, parameters_after
from hf_mpruner.architectures.reference import describe_modules
from hf_mpruner.surgery import ModelEdit
from trainer_kit import realigned


@dataclass(frozen=True)
class Family:
    """A model type in tiny: the classes to try, their config, and what must be found in them."""

    model_type: str
    classes: dict[str, str]
    """Class -> the Auto class that loads it."""
    config: dict[str, Any]
    inputs: Callable[[], dict[str, Any]]
    stacks: dict[str, int]
    """Path inside the base model -> depth."""
    pinned: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def build(self, class_name: str) -> PreTrainedModel:
        torch.manual_seed(0)
        config = CONFIG_MAPPING[self.model_type](**copy.deepcopy(self.config))
        model: PreTrainedModel = getattr(transformers, class_name)(config)
        with torch.no_grad():  # fresh norms and biases are ones and zeros, which would hide a mix-up
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        return model.eval()


def tokens(length: int = 7, vocabulary: int = 60) -> torch.Tensor:
    return torch.randint(3, vocabulary, (2, length), generator=torch.Generator().manual_seed(1))


def text() -> dict[str, Any]:
    return {"input_ids": tokens()}


def text_to_text() -> dict[str, Any]:
    return {"input_ids": tokens(), "decoder_input_ids": tokens()}


def image() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


def audio() -> dict[str, Any]:
    return {"input_features": torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(1))}


def audio_to_text() -> dict[str, Any]:
    return {**audio(), "decoder_input_ids": tokens()}


def image_and_text() -> dict[str, Any]:
    ids = tokens()
    ids[:, 1:5] = 61
    return {"input_ids": ids, "token_type_ids": (ids == 61).long(), **image()}


LAYERS = {"num_hidden_layers": 5, "hidden_size": 16, "num_attention_heads": 4, "vocab_size": 64}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
ENCODER = {**LAYERS, "intermediate_size": 24, "max_position_embeddings": 40}
DECODER = {**ENCODER, **TOKENS, "num_key_value_heads": 2}
SEQ2SEQ = {**TOKENS, "vocab_size": 64, "d_model": 16, "decoder_start_token_id": 0}
BART = {
    **SEQ2SEQ,
    "encoder_layers": 5,
    "decoder_layers": 4,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}
GEMMA3 = {**DECODER, "head_dim": 8, "sliding_window": 4, "layer_types": None, "query_pre_attn_scalar": 8}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [3, 4, 2]}
SEQUENCE, CAUSAL = "AutoModelForSequenceClassification", "AutoModelForCausalLM"

FAMILIES = [
    Family(
        "bert",
        {
            "BertForSequenceClassification": SEQUENCE,
            "BertForMaskedLM": "AutoModelForMaskedLM",
            "BertModel": "AutoModel",
        },
        ENCODER,
        text,
        {"encoder.layer": 5},
    ),
    Family(
        "roberta",
        {"RobertaForSequenceClassification": SEQUENCE, "RobertaForMaskedLM": "AutoModelForMaskedLM"},
        {**ENCODER, "pad_token_id": 1},
        text,
        {"encoder.layer": 5},
    ),
    Family(
        "distilbert",
        {"DistilBertForSequenceClassification": SEQUENCE, "DistilBertModel": "AutoModel"},
        {"n_layers": 5, "dim": 16, "n_heads": 4, "hidden_dim": 24, "vocab_size": 64, "max_position_embeddings": 40},
        text,
        {"transformer.layer": 5},
    ),
    Family(
        "gpt2",
        {"GPT2LMHeadModel": CAUSAL, "GPT2ForSequenceClassification": SEQUENCE},
        {"n_layer": 5, "n_embd": 16, "n_head": 4, "n_positions": 40, "vocab_size": 64, **TOKENS},
        text,
        {"h": 5},
    ),
    Family(
        "llama", {"LlamaForCausalLM": CAUSAL, "LlamaForSequenceClassification": SEQUENCE}, DECODER, text, {"layers": 5}
    ),
    Family(
        "qwen3",
        {"Qwen3ForCausalLM": CAUSAL, "Qwen3Model": "AutoModel"},
        {**DECODER, "head_dim": 8, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
        text,
        {"layers": 5},
    ),
    Family("gemma3_text", {"Gemma3ForCausalLM": CAUSAL}, {**GEMMA3, "num_hidden_layers": 7}, text, {"layers": 7}),
    Family(
        "gemma3",
        {"Gemma3ForConditionalGeneration": "AutoModelForImageTextToText"},
        {
            "text_config": GEMMA3,
            "vision_config": {**ENCODER, "num_hidden_layers": 4, "image_size": 16, "patch_size": 4},
            "mm_tokens_per_image": 4,
            "image_token_index": 61,
            "boi_token_index": 62,
            "eoi_token_index": 63,
        },
        image_and_text,
        {"language_model.layers": 5, "vision_tower.encoder.layers": 4},
    ),
    Family(
        "t5",
        {"T5ForConditionalGeneration": "AutoModelForSeq2SeqLM", "T5Model": "AutoModel"},
        {**SEQ2SEQ, "num_layers": 5, "num_decoder_layers": 4, "d_kv": 8, "d_ff": 24, "num_heads": 2},
        text_to_text,
        {"encoder.block": 5, "decoder.block": 4},
    ),
    Family(
        "t5",
        {"T5EncoderModel": "AutoModelForTextEncoding"},
        {**SEQ2SEQ, "num_layers": 5, "d_kv": 8, "d_ff": 24, "num_heads": 2},
        text,
        {"encoder.block": 5},
    ),
    Family(
        "bart",
        {"BartForConditionalGeneration": "AutoModelForSeq2SeqLM", "BartModel": "AutoModel"},
        BART,
        text_to_text,
        {"encoder.layers": 5, "decoder.layers": 4},
    ),
    Family(
        "vit",
        {"ViTForImageClassification": "AutoModelForImageClassification", "ViTModel": "AutoModel"},
        {**ENCODER, "image_size": 16, "patch_size": 4},
        image,
        {"layers": 5},
    ),
    Family(
        "resnet",
        {"ResNetForImageClassification": "AutoModelForImageClassification", "ResNetModel": "AutoModel"},
        {**RESNET, "layer_type": "bottleneck", "hidden_sizes": [16, 32, 48]},
        image,
        {f"encoder.stages.{stage}.layers": depth for stage, depth in enumerate(RESNET["depths"])},
        {f"encoder.stages.{stage}.layers": (0,) for stage in range(3)},
    ),
    Family(
        "resnet",
        {"ResNetForImageClassification": "AutoModelForImageClassification"},
        {**RESNET, "layer_type": "basic"},  # the first stage keeps the width: its opener looks like any other block
        image,
        {f"encoder.stages.{stage}.layers": depth for stage, depth in enumerate(RESNET["depths"])},
        {f"encoder.stages.{stage}.layers": (0,) for stage in range(3)},
    ),
    Family(
        "whisper",
        {"WhisperForConditionalGeneration": "AutoModelForSpeechSeq2Seq", "WhisperModel": "AutoModel"},
        {**BART, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 40},
        audio_to_text,
        {"encoder.layers": 5, "decoder.layers": 4},
    ),
    Family(
        "whisper",
        {"WhisperForAudioClassification": "AutoModelForAudioClassification"},
        {**BART, "num_mel_bins": 8, "max_source_positions": 10, "classifier_proj_size": 8},
        audio,
        {"encoder.layers": 5},
    ),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CASES = [
    pytest.param(family, name, id=f"{family.model_type}-{name}") for family in FAMILIES for name in family.classes
]


def find_cuts(stacks: Sequence[BlockStack]) -> Iterator[dict[str, list[int]]]:
    """First prunable, middle, last, two adjacent, two separate layers of each stack; then all stacks at once."""
    for stack in stacks:
        layers = stack.prunable
        first, middle, last = layers[0], layers[len(layers) // 2], layers[-1]
        removals = {(first,), (middle,), (last,), (first, layers[1 % len(layers)]), (first, last)}
        for removed in sorted(removals):
            kept = [layer for layer in range(stack.depth) if layer not in removed]
            if kept:
                yield {stack.path: kept}
    if len(stacks) > 1:
        yield {
            s.path: [layer for layer in range(s.depth) if layer != s.prunable[len(s.prunable) // 2]] for s in stacks
        }


def run(model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
    """The model's first floating output, logits or hidden states."""
    torch.manual_seed(0)
    settings = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    with torch.no_grad():
        output = model(**inputs, **settings)
    return output.logits if "logits" in output else output[0]


@contextmanager
def skipped(model: PreTrainedModel, kept: dict[str, list[int]]) -> Iterator[None]:
    """Let the blocks that are not kept hand their hidden states on unchanged."""

    def pass_on(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return type(output)([hidden, *output[1:]]) if isinstance(output, tuple | list) else hidden

    hooks = [
        block.register_forward_hook(pass_on, with_kwargs=True)
        for path, layers in kept.items()
        for number, block in enumerate(model.get_submodule(path))
        if number not in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rebuilt(model: PreTrainedModel) -> PreTrainedModel:
    """The class built from the model's config, with the model's weights copied in."""
    config = type(model.config).from_dict(model.config.to_dict())
    fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


def gradient_names(model: PreTrainedModel, inputs: dict[str, Any]) -> set[int]:
    """Parameters (by identity) that a training step reaches. Dropout off, so that nothing is skipped by chance."""
    model.zero_grad()
    settings = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    output = model(**inputs, **settings)
    (output.logits if "logits" in output else output[0]).float().square().sum().backward()
    reached = {id(parameter) for parameter in model.parameters() if parameter.grad is not None}
    model.zero_grad()
    return reached


def state_of(model: PreTrainedModel) -> tuple[Any, ...]:
    """Everything that undo must restore, except the weights' bits."""
    config_objects = [vars(module)["config"] for module in model.modules() if "config" in vars(module)]
    return (
        [(name, id(parameter)) for name, parameter in model.named_parameters(remove_duplicate=False)],
        [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)],
        {path: dict(module.values) for path, module in describe_modules(model).items()},
        [(id(config), {name: id(value) for name, value in vars(config).items()}) for config in config_objects],
        model.config.to_dict(),
    )


def check_reload(model: PreTrainedModel, auto_class: str, logits: torch.Tensor, inputs: Any, folder: Any) -> None:
    copy.deepcopy(model).save_pretrained(folder)  # saving writes the class name and dtype into the config
    for loader in (type(model), getattr(transformers, auto_class)):
        loaded, info = loader.from_pretrained(folder, output_loading_info=True)
        assert type(loaded) is type(model)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        assert torch.equal(run(realigned(loaded), inputs), logits)


def check_generation(model: PreTrainedModel, inputs: dict[str, Any]) -> None:
    prompt = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
    generate = (
        super(transformers.models.whisper.generation_whisper.WhisperGenerationMixin, model).generate
        if (isinstance(model, transformers.WhisperForConditionalGeneration))
        else model.generate
    )
    settings = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}
    cached, plain = (generate(**prompt, use_cache=use_cache, **settings) for use_cache in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.parametrize(("family", "class_name"), CASES)
def test_stacks_and_pins_are_found(family: Family, class_name: str) -> None:
    model = family.build(class_name)
    random_state = torch.get_rng_state()
    stacks = find_block_stacks(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    base = next((path + "." for path, module in model.named_modules() if path and module is model.base_model), "")
    assert {stack.path.removeprefix(base): stack.depth for stack in stacks} == family.stacks
    pinned = {stack.path.removeprefix(base): tuple(stack.pinned) for stack in stacks if stack.pinned}
    assert pinned == family.pinned
    assert all(type(model.get_submodule(stack.path)[0]).__name__ == stack.block_class for stack in stacks)


@pytest.mark.filterwarnings(r"ignore:generate\(\) keeps keys")  # t5 with an encoder shorter than its decoder
@pytest.mark.parametrize(("family", "class_name"), CASES)
def test_every_cut_is_exact(family: Family, class_name: str, tmp_path: Any, weight_digest: Any) -> None:
    model, inputs = family.build(class_name), family.inputs()
    whole, digest, state = run(model, inputs), weight_digest(model), state_of(model)
    trained = gradient_names(model, inputs)
    found = examine(model)
    cuts = list(find_cuts(found.stacks))
    if class_name != next(iter(family.classes)):
        cuts = [cuts[0], cuts[-1]]  # the other classes of a family share its blocks
    for number, kept in enumerate(cuts):
        with skipped(model, kept):
            expected = run(model, inputs)
        size, after = count_parameters(model), parameters_after(model, kept)
        edit = ModelEdit(model, kept, found=found)
        edit.apply()
        logits = run(model, inputs)
        assert logits.isfinite().all()
        assert torch.equal(logits, expected), f"{kept}: not the original with the blocks skipped"
        assert not torch.equal(logits, whole)
        assert torch.equal(run(rebuilt(model), inputs), logits), f"{kept}: not what its config builds"
        assert size - sum(p.numel() for p in edit.removed_parameters) == count_parameters(model) == after[0]
        assert {id(p) for p in model.parameters()} & trained <= gradient_names(model, inputs)
        if number in (0, len(cuts) - 1):
            check_reload(model, family.classes[class_name], logits, inputs, tmp_path / str(number))
            if model.can_generate():
                check_generation(model, inputs)
        edit.undo()
        assert state_of(model) == state
    assert weight_digest(model) == digest
    assert torch.equal(run(model, inputs), whole)
