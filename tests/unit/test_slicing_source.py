"""A checkpoint's files: which of them are read, in which formats, and everything about them that is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_mpruner.errors import CheckpointError
from hf_mpruner.slicing import Piece, StoredTensor, check_apart, open_checkpoint, write_tensors_of

TENSORS = {"a": torch.arange(6).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.tensor(2.0)}
STORED = {
    "a": StoredTensor("a", "I64", (2, 3)),
    "b": StoredTensor("b", "BF16", (4,)),
    "c": StoredTensor("c", "F32", ()),
}
ONE, TWO = "model-00001-of-00002", "model-00002-of-00002"


def shard(folder: Path, kind: str = "safetensors") -> Path:
    """A checkpoint in two files and their index."""
    folder.mkdir(exist_ok=True)
    parts = {f"{ONE}.{kind}": ("a",), f"{TWO}.{kind}": ("b", "c")}
    for file, names in parts.items():
        values = {name: TENSORS[name] for name in names}
        if kind == "safetensors":
            save_file(values, folder / file, metadata={"format": "pt"})
        else:
            torch.save(values, folder / file)
    weight_map = {name: file for file, names in parts.items() for name in names}
    index = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    (folder / f"{index}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def edit(folder: Path, **weight_map: object) -> None:
    file = folder / "model.safetensors.index.json"
    values = json.loads(file.read_text())
    values["weight_map"].update(weight_map)
    file.write_text(json.dumps(values))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [True, False])
def test_names_dtypes_shapes_and_bytes_of_every_kind(tmp_path, kind, sharded):
    if sharded:
        shard(tmp_path / "whole", kind)
    else:
        (tmp_path / "whole").mkdir()
        if kind == "safetensors":
            save_file(TENSORS, tmp_path / "whole" / "model.safetensors")
        else:
            torch.save(TENSORS, tmp_path / "whole" / "pytorch_model.bin")
    checkpoint = open_checkpoint(str(tmp_path / "whole"))
    assert checkpoint.tensors == STORED
    assert checkpoint.commit is None
    assert checkpoint.size(["a", "c"]) == 52
    assert checkpoint.downloads(STORED) == {}
    assert len(checkpoint.weights) == (3 if sharded else 1)
    assert set(checkpoint.weights) == set(checkpoint.folder_files)
    (tmp_path / "made").mkdir()
    write_tensors_of(checkpoint, {name: Piece(name) for name in TENSORS}, tmp_path / "made")
    save_file(TENSORS, tmp_path / "expected", metadata={"format": "pt"})
    assert (tmp_path / "made" / "model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


def test_what_from_pretrained_would_take_comes_first(tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert open_checkpoint(tmp_path).weights == ("pytorch_model.bin",)
    shard(tmp_path)
    assert open_checkpoint(tmp_path).weights[0] == "model.safetensors.index.json"
    save_file({"y": torch.ones(1)}, tmp_path / "model.safetensors")
    assert set(open_checkpoint(tmp_path).tensors) == {"y"}
    save_file({"z": torch.ones(1)}, tmp_path / "mine.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": "mine.safetensors"}))
    assert set(open_checkpoint(tmp_path).tensors) == {"z"}
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": "../mine.safetensors"}))
    with pytest.raises(CheckpointError, match=r"'config.json' names '../mine.safetensors' as a file of weights"):
        open_checkpoint(tmp_path)


def test_other_files_are_listed_and_fetched(tmp_path):
    shard(tmp_path)
    for name in ("config.json", "more/vocab.txt", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert {"config.json", "more/vocab.txt"} == set(checkpoint.folder_files) - set(checkpoint.weights)
    assert checkpoint.fetch("more/vocab.txt").read_text() == "{}"
    with pytest.raises(CheckpointError, match=r"there is no merges.txt in"):
        checkpoint.fetch("merges.txt")


def test_a_tensor_that_only_a_file_knows_is_read_too_as_from_pretrained_does(tmp_path):
    shard(tmp_path)
    file = tmp_path / "model.safetensors.index.json"
    values = json.loads(file.read_text())
    del values["weight_map"]["c"]
    file.write_text(json.dumps(values))
    assert open_checkpoint(tmp_path).tensors == STORED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d": "gone.safetensors"}, r"index.json names gone.safetensors, but there is no gone.safetensors in"),
        ({"d": f"{ONE}.safetensors"}, rf"says that 'd' is in {ONE}.safetensors, but no file has it"),
        ({"c": f"{ONE}.safetensors"}, rf"says that 'c' is in {ONE}.safetensors, but it is in {TWO}.safetensors"),
        ({"a": "../a.safetensors"}, r"names '../a.safetensors' as a file of weights. Only files inside"),
        ({"a": "/a.safetensors"}, "names '/a.safetensors' as a file"),
        ({"a": "x/../../a.safetensors"}, "as a file"),
        ({"a": "..\\a.safetensors"}, "as a file"),
        ({"a": "C:/a.safetensors"}, "as a file"),
        ({"a": ""}, "names '' as a file"),
        ({"a": None}, "names None as a file"),
        ({"a": ["x"]}, r"names \['x'\] as a file"),
    ],
)
def test_an_index_at_odds_with_the_files(tmp_path, changes, message):
    shard(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_a_tensor_in_two_files(tmp_path):
    shard(tmp_path)
    save_file({"a": TENSORS["a"], "b": TENSORS["b"]}, tmp_path / f"{ONE}.safetensors")
    with pytest.raises(CheckpointError, match=rf"has 'b' twice, in {ONE}.safetensors and in {TWO}.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "\udce9"])
def test_an_index_that_is_none(tmp_path, content):
    shard(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"is no JSON|holds a list|has no weight_map"):
        open_checkpoint(tmp_path)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"There is no folder '.*gone', and it is no name on the Hub: .*is a path"
    ):
        open_checkpoint(tmp_path / "gone")
    with pytest.raises(
        CheckpointError, match="It may be a name on the Hub, but offline mode is on, and the cache has"
    ):
        open_checkpoint("nobody/nothing")
    with pytest.raises(CheckpointError, match=r"offline mode is on, .* nothing of it at 'v1'. Unset HF_HUB_OFFLINE"):
        open_checkpoint("nobody/nothing", revision="v1")
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(
        CheckpointError, match=r"has no model.safetensors, .* \(there are tf_model.h5\). Pass the folder"
    ):
        open_checkpoint(tmp_path)
    shard(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"is a folder here, and revision='v1' is for the Hub. Leave the revision out"
    ):
        open_checkpoint(tmp_path, revision="v1")
    with pytest.raises(CheckpointError, match=rf"is a file. Pass the folder that it is in: '{tmp_path}'"):
        open_checkpoint(tmp_path / f"{ONE}.safetensors")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    shard(tmp_path)
    (tmp_path / f"{ONE}.safetensors").chmod(0)
    with pytest.raises(CheckpointError, match=r"cannot be read: .* Make it readable"):
        open_checkpoint(tmp_path)


# -- pytorch_model.bin -------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


def bin_of(folder: Path, values: object, **options: object) -> Path:
    torch.save(values, folder / "pytorch_model.bin", **options)
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"x": Evil()}, "cannot be read with weights_only=True: .* If you trust it, load the model once"),
        ([torch.ones(1)], "it holds no dict of tensors"),
        ({"x": 1}, "'x' in it is a int, a tensor is needed"),
        ({"x": torch.ones(2, 3).t()}, "'x' in it does not lie row by row"),
        ({"x": torch.ones(2, dtype=torch.complex128)}, "'x' in it is of complex128, which safetensors does not store"),
    ],
)
def test_pickles_that_cannot_be_cut(tmp_path, values, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(bin_of(tmp_path, values))
    assert "save_pretrained" in str(caught.value)


def test_pickles_of_before_zip_files_and_cut_short_ones(tmp_path):
    bin_of(tmp_path, TENSORS, _use_new_zipfile_serialization=False)
    with pytest.raises(
        CheckpointError, match=r"in torch's format from before torch 1.6. Copy or download it again, or load"
    ):
        open_checkpoint(tmp_path)
    content = (bin_of(tmp_path, TENSORS) / "pytorch_model.bin").read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        (tmp_path / "pytorch_model.bin").write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"cut short|cannot be read"):
            open_checkpoint(tmp_path)


def test_views_and_tied_weights_of_a_pickle_are_their_own_bytes(tmp_path):
    base = torch.arange(12).reshape(4, 3)
    values = {"base": base, "row": base[2], "rows": base[1:3], "tied": base, "none": base[:0], "param": torch.nn.Parameter(torch.ones(2))}  # fmt: skip
    (tmp_path / "whole").mkdir()
    (tmp_path / "made").mkdir()
    checkpoint = open_checkpoint(bin_of(tmp_path / "whole", values))
    write_tensors_of(checkpoint, {name: Piece(name) for name in values}, tmp_path / "made")
    save_file(
        {name: value.detach().clone() for name, value in values.items()}, tmp_path / "expected", {"format": "pt"}
    )
    assert (tmp_path / "made" / "model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


# -- where to ----------------------------------------------------------------------------------------------------------


def test_folders_that_hold_each_other(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    for source, output, message in [
        ("a", "a", "'a' is the checkpoint itself"),
        ("a", "link", "'link' is the checkpoint itself"),
        ("a", "a/c/d", "'a/c/d' lies in the checkpoint 'a'"),
        ("link", "a/c", "'a/c' lies in the checkpoint 'link'"),
        ("a/b", "a", "The checkpoint 'a/b' lies in 'a', which would be replaced as a whole"),
        ("a", ".", "The checkpoint 'a' lies in '.'"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            check_apart(source, output)
    check_apart("a", "ab")
    check_apart("a/b", "a/c")
    check_apart("ann/model", "ann")
