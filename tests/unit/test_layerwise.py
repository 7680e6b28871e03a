"""`measure_layer_by_layer`: the bits of `measure_similarity`, each weight read once, and nothing left behind."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
import torch
from accelerate.utils.offload import OffloadedWeightsLoader
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from hf_mpruner import measure_similarity
from hf_mpruner.architectures import find_block_stacks
from hf_mpruner.errors import CalibrationError
from hf_mpruner.features import interleaved, measure_layer_by_layer
from hf_mpruner.placement.request import as_accelerate_takes_it
from hf_mpruner.similarity import SimilarityProtocol

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
LLAMA = LlamaConfig(num_hidden_layers=3, **SIZES)
KINDS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "bert": (BertModel, BertConfig(num_hidden_layers=3, max_position_embeddings=8, **SIZES)),
    "llama": (LlamaForCausalLM, LLAMA),
    # every other layer looks back at 3 tokens only, so that blocks get different masks
    "gemma2": (Gemma2Model, Gemma2Config(num_hidden_layers=4, head_dim=8, num_key_value_heads=1, sliding_window=3, **SIZES)),
    "vit": (ViTModel, ViTConfig(num_hidden_layers=3, image_size=8, patch_size=4, **{**SIZES, "vocab_size": 1})),
    # the first block makes position biases for all, and the decoder reads what the encoder puts out
    "t5": (
        T5ForConditionalGeneration,
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, decoder_start_token_id=0),
    ),
}  # fmt: skip


def build(name: str) -> PreTrainedModel:
    kind, config = KINDS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()


def batches(name: str) -> list[dict[str, Tensor]]:
    """Three batches of different lengths, one padded."""
    generator = torch.Generator().manual_seed(1)
    if name == "vit":
        return [{"pixel_values": torch.randn(5, 3, 8, 8, generator=generator)} for _ in range(3)]
    found = []
    for length in (7, 5, 8):
        ids = torch.randint(3, 40, (5, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 4:] = 0
        found.append({"input_ids": ids, "attention_mask": mask, **({"labels": ids} if name == "t5" else {})})
    return found


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """How often each weight was read from the disk."""
    found: Counter[str] = Counter()
    read = OffloadedWeightsLoader.__getitem__

    def count(self: Any, name: str) -> Tensor:
        value = read(self, name)  # before 1.15 accelerate asks for names that are not there
        found[name] += 1
        return value

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", count)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_each_weight_is_read_once_and_the_bits_are_those_of_the_plain_model(name, tmp_path, reads, caplog):
    plain, data = build(name), batches(name)
    expected = measure_similarity(plain, data)
    plain.save_pretrained(tmp_path)
    model = type(plain).from_pretrained(tmp_path, device_map=as_accelerate_takes_it({"": "disk"})).eval()
    resident = watch_blocks(model)
    found = measure_layer_by_layer(model, data)
    assert found.keys() == expected.keys()
    for path, matrix in found.items():
        assert torch.equal(matrix.values, expected[path].values)
        assert matrix.num_samples == expected[path].num_samples == 15
        inside = [read for read in reads if read.startswith(f"{path}.")]
        assert len(inside) == len(list(plain.get_submodule(path).parameters()))
    assert set(reads.values()) == {1}  # a pass over three batches by measure_similarity reads each three times
    assert max(resident) == 1  # one block at a time is in memory
    assert all(parameter.is_meta for parameter in model.parameters())
    assert "measured one after the other" not in caplog.text


def watch_blocks(model: PreTrainedModel) -> list[int]:
    """While each block runs: how many blocks have weights in memory."""
    blocks = [block for stack in find_block_stacks(model) for block in model.get_submodule(stack.path)]
    seen: list[int] = []

    def count(module: nn.Module, args: Any) -> None:
        seen.append(sum(any(not one.is_meta for one in block.parameters()) for block in blocks))

    for block in blocks:
        # the last module of a block: by then its other weights are there
        last = [module for module in block.modules() if next(module.parameters(recurse=False), None) is not None][-1]
        last.register_forward_pre_hook(count)
    return seen


def test_a_few_batches_at_a_time(tmp_path, reads):
    plain, data = build("llama"), batches("llama")
    plain.save_pretrained(tmp_path)
    model = type(plain).from_pretrained(tmp_path, device_map=as_accelerate_takes_it({"": "disk"}))
    found = measure_layer_by_layer(model, iter(data), in_flight=2, max_samples=12)
    assert torch.equal(
        found["model.layers"].values, measure_similarity(plain, data, max_samples=12)["model.layers"].values
    )
    assert set(reads.values()) == {2}


@pytest.mark.parametrize("rows", ["first", "examples", "tokens"])
def test_other_rows(rows):
    """A model in memory, and no examples of different lengths where all positions are compared."""
    protocol = (
        SimilarityProtocol(rows=rows, token_groups="example") if rows == "tokens" else SimilarityProtocol(rows=rows)
    )
    data = [{"input_ids": batch["input_ids"]} for batch in batches("llama")]
    model = build("llama")
    found = measure_layer_by_layer(model, data, protocol=protocol)
    assert torch.equal(
        found["model.layers"].values, measure_similarity(model, data, protocol=protocol)["model.layers"].values
    )


class Remembers(LlamaForCausalLM):
    """Its second block adds what the model noticed of the batch before the first."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.noticed: Tensor | None = None

    def forward(self, input_ids: Tensor, **more: Any) -> Any:
        self.noticed = input_ids.float().std()
        return super().forward(input_ids, **more)


def test_a_model_that_remembers_a_batch_is_measured_batch_after_batch(caplog, monkeypatch):
    torch.manual_seed(0)
    model = Remembers(LLAMA).eval()
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output * model.noticed)
    stacks = find_block_stacks(build("llama"))
    expected = measure_similarity(model, batches("llama"), stacks)["model.layers"].values
    found = measure_layer_by_layer(model, batches("llama"), stacks)["model.layers"].values
    assert torch.equal(found, expected)
    assert (
        "Remembers: '' keeps 'noticed' while it runs, so its batches are measured one after the other" in caplog.text
    )
    monkeypatch.setattr(interleaved.StateWatch, "check", lambda self: None)
    unnoticed = measure_layer_by_layer(model, batches("llama"), stacks)["model.layers"].values
    assert not torch.equal(unnoticed, expected)  # what would have come out


def test_what_fails_in_a_block_leaves_the_model_as_it_was(tmp_path):
    plain = build("llama")
    plain.save_pretrained(tmp_path)
    model = type(plain).from_pretrained(tmp_path, device_map=as_accelerate_takes_it({"": "disk"})).train()
    forwards = [vars(block).get("forward") for block in model.model.layers]
    threads = threading.active_count()

    def broken(module: nn.Module, args: Any, output: Any) -> Any:
        return output * torch.nan if args[0].shape[1] == 5 else output  # in the second batch

    handle = model.model.layers[1].mlp.register_forward_hook(broken)
    with pytest.raises(CalibrationError, match=r"model\.layers\.1 puts out NaN"):
        measure_layer_by_layer(model, batches("llama"))
    handle.remove()
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure_layer_by_layer(model, batches("llama"))
    handle.remove()
    with pytest.raises(ValueError, match="input_ids"):
        measure_layer_by_layer(model, [{"attention_mask": torch.ones(5, 3)}])
    assert threading.active_count() == threads
    assert [vars(block).get("forward") for block in model.model.layers] == forwards
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.training
    model.eval()
    found = measure_layer_by_layer(model, batches("llama"))
    assert torch.equal(
        found["model.layers"].values, measure_similarity(plain, batches("llama"))["model.layers"].values
    )


def test_what_cannot_be_streamed():
    model = build("llama")
    with pytest.raises(ValueError, match="token_groups='batch' compares all tokens of a batch at once"):
        measure_layer_by_layer(
            model, batches("llama"), protocol=SimilarityProtocol(rows="tokens", token_groups="batch")
        )
    with pytest.raises(ValueError, match="in_flight=0 is below 1"):
        measure_layer_by_layer(model, batches("llama"), in_flight=0)
    with pytest.raises(CalibrationError, match="loader is empty"):
        measure_layer_by_layer(model, [])
