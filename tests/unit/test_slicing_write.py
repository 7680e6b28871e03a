"""A smaller checkpoint's files, written from a larger one's as bytes, against `save_pretrained` of the same tensors."""

from __future__ import annotations

import json
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from hf_mpruner.errors import CheckpointError
from hf_mpruner.slicing import Piece, open_checkpoint, write, write_tensors_of
from hf_mpruner.storage import new_folder


def make_llama(layers: int = 5) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 33}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes)).to(torch.bfloat16)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if "safetensors" in file.name}


def keep(kept: list[int], names: list[str]) -> dict[str, Piece]:
    """Which tensor of a smaller Llama comes from which, for a model that keeps some layers."""
    recipe = {}
    for name in names:
        parts = name.split(".")
        if "layers" in parts:
            at = parts.index("layers") + 1
            parts[at] = str(kept[int(parts[at])])
        recipe[name] = Piece(".".join(parts))
    return recipe


@pytest.mark.parametrize("read_size", ["5KB", "50GB"])
@pytest.mark.parametrize("write_size", ["3KB", "9KB", "50GB"])
@pytest.mark.parametrize("in_kernel", [True, False])
def test_files_are_those_of_save_pretrained_to_the_byte(tmp_path, monkeypatch, read_size, write_size, in_kernel):
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
        monkeypatch.setattr(write, "_COPIED", 96)
    monkeypatch.setattr(write, "_PAGE", 8 if in_kernel else 32)  # headers are multiples of 8 bytes
    model, kept = make_llama(), [0, 3, 4]
    model.save_pretrained(tmp_path / "whole", max_shard_size=read_size)
    smaller = make_llama(3)
    recipe = keep(kept, list(smaller.state_dict()))
    smaller.load_state_dict({name: model.state_dict()[piece.source] for name, piece in recipe.items()})
    smaller.save_pretrained(tmp_path / "expected", max_shard_size=write_size)
    (tmp_path / "made").mkdir()
    checkpoint = open_checkpoint(tmp_path / "whole")
    written = write_tensors_of(
        checkpoint, recipe, tmp_path / "made", write_size, num_parameters=smaller.num_parameters()
    )
    assert contents(tmp_path / "made") == contents(tmp_path / "expected")
    assert {file.name for file in written} == set(contents(tmp_path / "made"))
    assert checkpoint.size(piece.source for piece in recipe.values()) == 2 * smaller.num_parameters()


@pytest.mark.parametrize("write_size", ["20KB", "60KB"])
def test_experts_that_are_one_tensor_in_the_model_stay_together_as_save_pretrained_has_it(tmp_path, write_size):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 33}
    model = MixtralForCausalLM(MixtralConfig(num_hidden_layers=2, num_local_experts=4, **sizes))
    model.save_pretrained(tmp_path / "expected", max_shard_size=write_size)
    model.save_pretrained(tmp_path / "whole")
    saved = revert_weight_conversion(model, model.state_dict())
    storages = {name: tensor.untyped_storage().data_ptr() for name, tensor in saved.items()}
    (tmp_path / "made").mkdir()
    write_tensors_of(
        open_checkpoint(tmp_path / "whole"),
        {name: Piece(name) for name in saved},
        tmp_path / "made",
        write_size,
        num_parameters=model.num_parameters(),
        storages=storages,
    )
    assert len(contents(tmp_path / "made")) > 4
    assert contents(tmp_path / "made") == contents(tmp_path / "expected")


def test_neighbours_are_copied_in_one_go(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(write, "_copy", lambda source, move, bar: calls.append(move.length))
    model = make_llama(12)
    model.save_pretrained(tmp_path / "whole")
    names = [name for name in model.state_dict() if "layers.1" not in name or "layers.1." in name]
    (tmp_path / "made").mkdir()
    checkpoint = open_checkpoint(tmp_path / "whole")
    write_tensors_of(checkpoint, {name: Piece(name) for name in names}, tmp_path / "made")
    assert sum(calls) == checkpoint.size(names)
    assert len(calls) == 2, "what is before layers 10 and 11, and what is after them"


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize("long", [1, 64 * 2**10])
@pytest.mark.parametrize("buffer", [7, 4 * 2**20])
def test_entries_of_an_axis(tmp_path, monkeypatch, dtype, long, buffer):
    monkeypatch.setattr(write, "_LONG", long)
    monkeypatch.setattr(write, "_BUFFER", buffer)
    generator = random.Random(0)
    values, recipe, expected = {}, {}, {}
    for number in range(12):
        shape = [generator.randint(1, 6) for _ in range(generator.randint(1, 4))]
        axis = generator.randrange(len(shape))
        indices = [generator.randrange(shape[axis]) for _ in range(generator.randint(0, 5))]
        values[f"t{number}"] = torch.randint(0, 100, shape).to(dtype)
        recipe[f"n{number}"] = Piece(f"t{number}", axis, tuple(indices))
        raw = values[f"t{number}"].view(torch.uint8).reshape(*shape, -1)  # not every dtype can be indexed
        kept = raw.index_select(axis, torch.tensor(indices, dtype=torch.long)).contiguous()
        shape[axis] = len(indices)
        expected[f"n{number}"] = kept.view(dtype).reshape(shape)
    values["other"] = torch.ones(3)
    recipe["same"], expected["same"] = Piece("other"), values["other"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "made").mkdir()
    save_file(values, tmp_path / "whole" / "model.safetensors")
    save_file(expected, tmp_path / "expected.safetensors", metadata={"format": "pt"})
    write_tensors_of(open_checkpoint(tmp_path / "whole"), recipe, tmp_path / "made")
    made = (tmp_path / "made" / "model.safetensors").read_bytes()
    assert made == (tmp_path / "expected.safetensors").read_bytes()


def test_a_tensor_may_be_written_twice_and_an_empty_one_at_all(tmp_path):
    for name in ("whole", "made"):
        (tmp_path / name).mkdir()
    save_file({"x": torch.arange(4), "e": torch.zeros(0, 3)}, tmp_path / "whole" / "model.safetensors")
    recipe = {"a": Piece("x"), "b": Piece("x"), "e": Piece("e"), "f": Piece("x", 0, (2,))}
    write_tensors_of(open_checkpoint(tmp_path / "whole"), recipe, tmp_path / "made")
    made = load_file(tmp_path / "made" / "model.safetensors")
    assert made["a"].tolist() == made["b"].tolist() == [0, 1, 2, 3]
    assert made["e"].shape == (0, 3)
    assert made["f"].tolist() == [2]


@pytest.fixture
def small(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "made").mkdir()
    file = tmp_path / "whole" / "model.safetensors"
    save_file({"x": torch.arange(4), "y": torch.ones(2, 3)}, file)
    os.utime(file, (1, 1))  # a later change shows, however coarse the file system's clock is
    return open_checkpoint(tmp_path / "whole")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "Nothing of .* would stay"),
        ({"a": Piece("z")}, "'a' is to be made from 'z', which '.*whole' does not have"),
        ({"a": Piece("y", 1, (0, 3))}, r"'a' takes entries \[0, 3\] of 'y', which has 3 along axis 1"),
        ({"a": Piece("y", 0, (-1,))}, r"'a' takes entries \[-1\] of 'y', which has 2 along axis 0"),
        ({"a": Piece("y", 2, (0,))}, r"along axis 2 of 'y' with shape \[2, 3\]"),
        ({"a": Piece("y", 1)}, r"indices None along axis 1"),
        ({"a": Piece("y", None, (1,))}, r"along axis None"),
    ],
)
def test_recipes_that_cannot_be_followed(small, tmp_path, recipe, message):
    with pytest.raises(CheckpointError, match=message):
        write_tensors_of(small, recipe, tmp_path / "made")
    assert not list((tmp_path / "made").iterdir())


def test_a_size_that_is_none(small, tmp_path):
    with pytest.raises(ValueError, match="Unit"):
        write_tensors_of(small, {"x": Piece("x")}, tmp_path / "made", "lots")


def test_a_full_disk_is_seen_before_anything_is_written(small, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(
        CheckpointError, match=r"\d+ bytes are needed on the disk of '.*made', 100 are free. Make room"
    ):
        write_tensors_of(small, {"x": Piece("x")}, tmp_path / "made")
    assert not list((tmp_path / "made").iterdir())


def test_a_file_that_changed_since_its_header_was_read(small, tmp_path):
    save_file({"x": torch.arange(4) + 1, "y": torch.ones(2, 3)}, tmp_path / "whole" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors' changed while it was read"):
        write_tensors_of(small, {"x": Piece("x")}, tmp_path / "made")


@pytest.mark.parametrize("in_kernel", [True, False])
@pytest.mark.parametrize("change", ["cut", "write"])
def test_a_file_that_changes_during_the_copy(small, tmp_path, monkeypatch, in_kernel, change):
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    copy, file = write._copy, tmp_path / "whole" / "model.safetensors"

    def change_and_copy(source, move, bar):
        if change == "cut":
            os.truncate(file, 40)
        else:
            with file.open("r+b") as stream:
                stream.seek(-1, os.SEEK_END)
                stream.write(b"x")
        copy(source, move, bar)

    monkeypatch.setattr(write, "_copy", change_and_copy)
    with pytest.raises(CheckpointError, match=r"model.safetensors' changed while it was read"):
        write_tensors_of(small, {"x": Piece("x"), "y": Piece("y")}, tmp_path / "made")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a life is forked")
@pytest.mark.parametrize("copies", [0, 2])
def test_a_kill_in_the_middle_of_a_copy_leaves_nothing_in_the_way_of_the_next_run(tmp_path, copies):
    make_llama(4).save_pretrained(tmp_path / "whole", max_shard_size="5KB")
    checkpoint = open_checkpoint(tmp_path / "whole")
    recipe = {name: Piece(name) for name in checkpoint.tensors}

    def make() -> None:
        with new_folder(tmp_path / "out") as draft:
            write_tensors_of(checkpoint, recipe, draft, "9KB")

    pid = os.fork()
    if pid == 0:
        copy, done = write._copy, []

        def die_within(source, move, bar):
            if len(done) == copies:
                copy(source, replace(move, length=move.length // 2), bar)
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(move)
            copy(source, move, bar)

        write._copy = die_within
        try:
            make()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    (draft,) = (entry for entry in tmp_path.iterdir() if entry.name != "whole")
    assert draft.name.startswith(".out.")
    assert list(draft.glob("*.safetensors"))
    make()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "whole"]
    made = open_checkpoint(tmp_path / "out")
    assert made.tensors == checkpoint.tensors
    for name, value in load_all(tmp_path / "whole").items():
        assert torch.equal(load_all(tmp_path / "out")[name], value)


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def test_the_index_counts_parameters_only_if_told(small, tmp_path):
    write_tensors_of(small, {"x": Piece("x"), "y": Piece("y")}, tmp_path / "made", 32)
    index = json.loads((tmp_path / "made" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 56}
    assert index["weight_map"] == {
        "x": "model-00001-of-00002.safetensors",
        "y": "model-00002-of-00002.safetensors",
    }
