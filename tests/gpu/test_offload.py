"""Models that do not lie on the accelerator as a whole, and those in fewer bits, measured on it. `pytest -m gpu` runs it."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from hf_mpruner import measure_similarity
from hf_mpruner.cli import main, measure
from hf_mpruner.features import measure_layer_by_layer
from hf_mpruner.placement import input_device, offloaded
from hf_mpruner.similarity import linear_cka
from text_kit import lines, make_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="this machine has no accelerator"),
]

PATH = "model.layers"


def device():
    return torch.accelerator.current_accelerator()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A Llama of 16 layers, in a folder with its tokenizer, and texts."""
    folder, tokenizer = tmp_path_factory.mktemp("world"), make_tokenizer()
    config = LlamaConfig(
        num_hidden_layers=16, hidden_size=128, intermediate_size=256, num_attention_heads=4, vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    Dataset.from_list([{"text": line} for line in lines()]).to_csv(folder / "data.csv", index=False)
    return folder


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(2):
        ids = torch.randint(5, 50, (8, 12), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 7:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def load(world, **options):
    return LlamaForCausalLM.from_pretrained(world / "model", **options).eval()


@pytest.mark.parametrize("rest", ["memory", "disk"])
@pytest.mark.parametrize("way", [measure_similarity, measure_layer_by_layer])
def test_weights_that_come_to_the_accelerator_give_the_same_similarities(rest, way, world, batches, tmp_path):
    plain = load(world).to(device())
    expected = measure_similarity(plain, batches)[PATH].values
    half = sum(4 * parameter.numel() for parameter in plain.parameters()) // 2
    limits = {0: half, "cpu": 10**10 if rest == "memory" else 0}
    model = load(world, device_map="auto", max_memory=limits, offload_folder=tmp_path)
    assert 0 < len(offloaded(model)) < len(list(model.parameters()))
    assert input_device(model).type == device().type
    assert torch.equal(way(model, batches)[PATH].values, expected)


def analyze(capsys, world, *words):
    common = ["--split", "train", "--calibration_samples", "16", "--calibration_batch_size", "8", "--format", "json"]
    capsys.readouterr()
    code = main(["analyze", str(world / "model"), "--dataset", str(world / "data.csv"), *common, *words])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return torch.tensor(json.loads(captured.out)["similarity"][PATH]["values"])


def test_the_command_streams_layers_to_the_accelerator(capsys, world, monkeypatch):
    plain = analyze(capsys, world)
    seen, whole = [], measure.measure_layer_by_layer

    def watched(model, *args, **more):
        seen.append((input_device(model).type, len(offloaded(model))))
        return whole(model, *args, **more)

    monkeypatch.setattr(measure, "measure_layer_by_layer", watched)
    assert torch.equal(analyze(capsys, world, "--stream_layers"), plain)
    assert torch.equal(analyze(capsys, world, "--stream_layers", "--max_memory", "0=5MB"), plain)
    assert torch.equal(analyze(capsys, world, "--device_map", "auto", "--max_memory", "0=5MB", "cpu=1GB"), plain)
    (first, nothing), (second, some) = seen
    assert first == second == device().type
    assert nothing == 0 < some


def test_sums_of_a_bfloat16_model_are_as_exact_as_in_float64(world, batches):
    model = load(world, dtype=torch.bfloat16).to(device())
    batch = {"input_ids": batches[0]["input_ids"]}
    outputs = {}
    handles = [
        layer.register_forward_hook(lambda module, args, output, index=index: outputs.update({index: output.double()}))
        for index, layer in enumerate(model.model.layers)
    ]
    found = measure_similarity(model, [batch])[PATH].values
    for handle in handles:
        handle.remove()
    exact = torch.stack(
        [torch.stack([linear_cka(x.flatten(1), y.flatten(1)) for y in outputs.values()]) for x in outputs.values()]
    )
    assert torch.allclose(found, exact.cpu(), atol=1e-6)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_fewer_bits(capsys, world, bits):
    pytest.importorskip("bitsandbytes")
    plain, found = analyze(capsys, world), analyze(capsys, world, "--quantization", bits)
    assert not torch.equal(found, plain)
    assert torch.allclose(found, plain, atol=0.2)
