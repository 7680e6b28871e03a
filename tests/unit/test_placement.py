"""Models whose weights lie elsewhere: what is measured must not change, and what needs the weights must say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_mpruner import PruningConfig, PruningPlan, apply_plan_, measure_similarity, prune_
from hf_mpruner.architectures import find_block_stacks
from hf_mpruner.criteria import CriterionInputs, find_criterion, score_layers
from hf_mpruner.errors import CalibrationError, UnsupportedBackendError
from hf_mpruner.halves import measure_halves
from hf_mpruner.placement import Placement, input_device, offloaded
from hf_mpruner.placement.request import as_accelerate_takes_it

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
CLASSES: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "bert": (BertForSequenceClassification, BertConfig(num_hidden_layers=4, max_position_embeddings=8, **SIZES)),
    "llama": (LlamaForCausalLM, LlamaConfig(num_hidden_layers=4, **SIZES)),
    "t5": (
        T5ForConditionalGeneration,
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, decoder_start_token_id=0),
    ),
}


class Saved(NamedTuple):
    """A checkpoint, with what loads it and half its size in bytes."""

    kind: type[PreTrainedModel]
    folder: Path
    half: int

    def plain(self) -> Any:
        return self.kind.from_pretrained(self.folder).eval()

    def with_map(self, device_map: Any, **options: Any) -> Any:
        if isinstance(device_map, dict):
            device_map = as_accelerate_takes_it(device_map)
        return self.kind.from_pretrained(self.folder, device_map=device_map, **options).eval()

    def partly_on_disk(self, folder: Path) -> Any:
        model = self.with_map(device_map="auto", max_memory={"cpu": self.half}, offload_folder=folder)
        assert 0 < len(offloaded(model)) < len(list(model.parameters()))  # the test is about both
        return model


@pytest.fixture(scope="module", params=CLASSES)
def saved(request, tmp_path_factory) -> Saved:
    kind, config = CLASSES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
    model.save_pretrained(folder)
    return Saved(kind, folder, sum(4 * parameter.numel() for parameter in model.parameters()) // 2)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Saved:
    kind, config = CLASSES["llama"]
    folder = tmp_path_factory.mktemp("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
    model.save_pretrained(folder)
    return Saved(kind, folder, sum(4 * parameter.numel() for parameter in model.parameters()) // 2)


def batches(kind: type[PreTrainedModel]) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(2):
        ids = torch.randint(3, 40, (4, 7), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 4:] = 0
        more = {"labels": ids} if kind is T5ForConditionalGeneration else {}
        found.append({"input_ids": ids, "attention_mask": mask, **more})
    return found


def test_similarity_of_an_offloaded_model_is_the_plain_models_to_the_bit(saved, tmp_path):
    data = batches(saved.kind)
    expected = measure_similarity(saved.plain(), data)
    on_disk = saved.with_map(device_map={"": "disk"}, offload_folder=tmp_path / "all")
    assert len(offloaded(on_disk)) == len(list(on_disk.parameters()))
    for model in (saved.partly_on_disk(tmp_path / "half"), on_disk):
        found = measure_similarity(model, data)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[path].values, expected[path].values) for path in expected)
        assert offloaded(model)  # as it was


def test_where_inputs_go(llama, tmp_path):
    model = llama.with_map(device_map={"": "disk"}, offload_folder=tmp_path)
    assert model.device.type == "meta"  # what transformers says of the first parameter
    assert input_device(model) == torch.device("cpu")
    assert input_device(nn.Identity()) == torch.device("cpu")
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    assert input_device(empty) == torch.device("meta")
    assert offloaded(empty) == []  # it waits for no weights


def scores(model: PreTrainedModel, name: str) -> Any:
    stacks = find_block_stacks(model)
    inputs = CriterionInputs(model, stacks, batches(LlamaForCausalLM), num_removed={stacks[0].path: 2})
    return score_layers(find_criterion(name), inputs).scores


@pytest.mark.parametrize("name", ["block_influence", "angular", "loss", "output_change"])
def test_criteria_that_run_the_model_score_an_offloaded_one_alike(name, llama, tmp_path):
    assert scores(llama.partly_on_disk(tmp_path), name) == scores(llama.plain(), name)


@pytest.mark.parametrize("name", ["magnitude", "laco", "mka", "taylor"])
def test_criteria_that_read_weights_refuse_offloaded_ones(name, llama, tmp_path):
    """laco and mka would leave out the layers that are elsewhere, and give other scores without a word."""
    message = (
        rf"criterion '{name}' needs (the weights|gradients), but \d+ of the model's are offloaded, 'model\.layers"
    )
    with pytest.raises(CalibrationError, match=message):
        scores(llama.partly_on_disk(tmp_path), name)


def test_halves_of_an_offloaded_model(llama, tmp_path):
    data = batches(llama.kind)
    found = measure_halves(llama.partly_on_disk(tmp_path), data)
    assert found.stacks == measure_halves(llama.plain(), data).stacks


def test_an_offloaded_model_is_cut_and_saved_like_the_plain_one(saved, tmp_path):
    plain, elsewhere = saved.plain(), saved.partly_on_disk(tmp_path / "offload")
    stacks = find_block_stacks(plain)
    plan = PruningPlan.from_kept({stack.path: [0, stack.depth - 1] for stack in stacks}, stacks)
    batch = batches(saved.kind)[0]
    apply_plan_(plain, plan)
    edit = apply_plan_(elsewhere, plan)
    with torch.no_grad():
        assert torch.equal(elsewhere(**batch).logits, plain(**batch).logits)
    plain.save_pretrained(tmp_path / "plain")
    elsewhere.save_pretrained(tmp_path / "elsewhere")
    expected = load_file(tmp_path / "plain" / "model.safetensors")
    found = load_file(tmp_path / "elsewhere" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    edit.undo()
    with torch.no_grad():
        assert torch.equal(elsewhere(**batch).logits, saved.plain()(**batch).logits)


def test_cuts_that_need_the_weights_are_refused(llama, tmp_path):
    model = llama.partly_on_disk(tmp_path)
    stacks = find_block_stacks(model)
    path = stacks[0].path
    plan = PruningPlan.from_kept({path: [0, 1, 2]}, stacks, merged={path: {2: {2: 0.5, 3: 0.5}}})
    with pytest.raises(UnsupportedBackendError, match=r"changes weights of layers that stay, but .* are offloaded"):
        apply_plan_(model, plan)
    with pytest.raises(UnsupportedBackendError, match=r"prune_ keeps copies .* Nothing was changed\."):
        prune_(model, PruningConfig(), calibration=batches(llama.kind))
    assert len(model.get_submodule(path)) == 4


def test_a_model_on_the_disk_alone_with_an_accelerate_that_refuses_it(llama, tmp_path, monkeypatch):
    data = batches(llama.kind)
    monkeypatch.setattr("accelerate.utils.compare_versions", lambda library, sign, version: True)
    options = Placement(device_map={"": "disk"}).arguments()
    assert set(options["device_map"].values()) == {"disk", "cpu"}
    model = llama.kind.from_pretrained(llama.folder, **options).eval()
    assert len(offloaded(model)) == len(list(model.parameters()))
    expected = measure_similarity(llama.plain(), data)
    assert all(
        torch.equal(found.values, expected[path].values) for path, found in measure_similarity(model, data).items()
    )
    assert Placement(device_map={"": "cpu"}).arguments()["device_map"] == {"": "cpu"}
