"""A checkpoint on the Hub: headers by ranges, one commit for all, and only files that hold a kept tensor downloaded."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load, save

INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def make_files(value: float = 1.0) -> dict[str, bytes]:
    """Three shards of 240 kB, more than the first request for a header asks for."""
    tensors = {f"layers.{i}.weight": torch.full((3, 20_000), value + i) for i in range(3)}
    files = {name: save({key: tensors[key]}, {"format": "pt"}) for name, key in zip(SHARDS, tensors, strict=True)}
    index = {"metadata": {}, "weight_map": dict(zip(tensors, SHARDS, strict=True))}
    return {**files, INDEX: json.dumps(index).encode(), "config.json": b"{}", "vocab.txt": b"a"}


def cut(repo_id, folder, kept=(0, 2), revision=None, offline=False, token=None, read_only=False):
    """Open a checkpoint, keep some layers, and say what is known before and after."""
    from pathlib import Path

    from huggingface_hub import constants

    from hf_mpruner.slicing import Piece, open_checkpoint, write_tensors_of

    constants.HF_HUB_OFFLINE = offline
    try:
        checkpoint = open_checkpoint(repo_id, revision=revision, token=token)
        before = {
            "commit": checkpoint.commit,
            "tensors": [[stored.name, stored.dtype, list(stored.shape)] for stored in checkpoint.tensors.values()],
            "files": sorted(name for name in checkpoint.folder_files if name != ".gitattributes"),
        }
        if read_only:
            return before
        recipe = {f"layers.{new}.weight": Piece(f"layers.{old}.weight") for new, old in enumerate(kept)}
        before["downloads"] = sorted(checkpoint.downloads(piece.source for piece in recipe.values()))
        Path(folder).mkdir()
        write_tensors_of(checkpoint, recipe, Path(folder))
        return {**before, "vocab": checkpoint.fetch("vocab.txt").read_text()}
    finally:
        constants.HF_HUB_OFFLINE = False


def content(folder) -> dict[str, float]:
    return {name: float(value[0, 0]) for name, value in load((folder / "model.safetensors").read_bytes()).items()}


def full_gets(hub, since) -> list[str]:
    """Names of files whose whole content was asked for, at the Hub itself."""
    found = hub.journal.find("GET", "/resolve/", since=since)
    return [request.path.rpartition("/")[2] for request in found if "range" not in request.headers]


def test_only_headers_and_then_only_kept_files_are_fetched_all_of_one_commit(hub, client, tmp_path):
    repo = hub.add_repo("ann/sharded", make_files())
    head, start = repo.at("main").oid, hub.journal.mark()
    seen = client.call(cut, repo_id="ann/sharded", folder=str(tmp_path / "never"), read_only=True)
    assert seen["tensors"] == [[f"layers.{i}.weight", "F32", [3, 20_000]] for i in range(3)]
    assert seen["commit"] == head
    assert seen["files"] == sorted(make_files())
    assert sorted(full_gets(hub, start)) == sorted(["config.json", INDEX])
    ranges = {request.headers.get("range") for request in hub.journal.find("GET", "safetensors$", since=start)}
    assert ranges == {"bytes=0-99999"}

    start = hub.journal.mark()
    seen = client.call(cut, repo_id="ann/sharded", folder=str(tmp_path / "made"))
    assert content(tmp_path / "made") == {"layers.0.weight": 1.0, "layers.1.weight": 3.0}
    assert seen["downloads"] == [SHARDS[0], SHARDS[2]]
    assert seen["vocab"] == "a"
    assert sorted(full_gets(hub, start)) == sorted([SHARDS[0], SHARDS[2], "vocab.txt"])
    asked = [request for request in hub.journal.find(path="/resolve/", since=start) if "config" not in request.path]
    assert {request.path.split("/resolve/")[1].split("/")[0] for request in asked} == {head}

    start = hub.journal.mark()
    seen = client.call(cut, repo_id="ann/sharded", folder=str(tmp_path / "again"))
    assert seen["downloads"] == []
    assert full_gets(hub, start) == []
    assert {request.path.rpartition("/")[2] for request in hub.journal.find("GET", "safetensors$", since=start)} == {
        SHARDS[1]
    }
    assert content(tmp_path / "again") == content(tmp_path / "made")

    failure = client.fails(cut, repo_id="ann/sharded", folder=str(tmp_path / "off"), offline=True)
    assert failure.is_a("CheckpointError")
    assert (
        f"names {SHARDS[1]}, but offline mode is on, and the cache has no {SHARDS[1]} of 'ann/sharded'"
        in failure.message
    )
    client.call(cut, repo_id="ann/sharded", folder=str(tmp_path / "all"), kept=[0, 1, 2])
    start = hub.journal.mark()
    seen = client.call(cut, repo_id="ann/sharded", folder=str(tmp_path / "off"), offline=True)
    assert seen["commit"] == head
    assert content(tmp_path / "off") == content(tmp_path / "made")
    assert not hub.journal.find(since=start)


def test_a_commit_between_the_headers_and_the_copy_changes_nothing(hub, client, tmp_path):
    repo = hub.add_repo("ann/moving", make_files())
    head = repo.at("main").oid
    hub.faults.add("GET", SHARDS[1], before=lambda: repo.write(make_files(7.0)))
    assert client.call(cut, repo_id="ann/moving", folder=str(tmp_path / "made"))["commit"] == head
    assert content(tmp_path / "made") == {"layers.0.weight": 1.0, "layers.1.weight": 3.0}
    assert repo.at("main").oid != head
    assert client.call(cut, repo_id="ann/moving", folder=str(tmp_path / "now"))["commit"] == repo.at("main").oid
    assert content(tmp_path / "now") == {"layers.0.weight": 7.0, "layers.1.weight": 9.0}
    client.call(cut, repo_id="ann/moving", folder=str(tmp_path / "old"), revision=head)
    assert content(tmp_path / "old") == content(tmp_path / "made")


def test_a_passing_failure_is_tried_again(hub, client, tmp_path):
    hub.add_repo("ann/shaky", make_files())
    hub.faults.add("GET", SHARDS[0], status=503)
    hub.faults.add("GET", SHARDS[1], cut="before")
    client.call(cut, repo_id="ann/shaky", folder=str(tmp_path / "made"))
    assert content(tmp_path / "made") == {"layers.0.weight": 1.0, "layers.1.weight": 3.0}


def test_a_header_longer_than_the_first_request(hub, client, tmp_path):
    tensors = {"layers.0.weight": torch.ones(2, 2)} | {f"{'n' * 200}{i}": torch.ones(1) for i in range(600)}
    hub.add_repo("ann/wordy", {"model.safetensors": save(tensors)})
    start = hub.journal.mark()
    seen = client.call(cut, repo_id="ann/wordy", folder="", read_only=True)
    assert len(seen["tensors"]) == 601
    asked = [request.headers["range"] for request in hub.journal.find("GET", "safetensors$", since=start)]
    assert asked[0] == "bytes=0-99999"
    assert len(asked) == 2
    assert asked[1].startswith("bytes=100000-")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({SHARDS[1]: None}, f"{INDEX} names {SHARDS[1]}, but 'ann/NAME' has no {SHARDS[1]} at commit"),
        ({SHARDS[1]: b"\0" * 7}, "it has 7 bytes, fewer than the 8 of its header's length"),
        ({SHARDS[1]: b"\xff" * 30}, "its header would have 18446744073709551615 bytes, at most"),
        (
            {SHARDS[1]: make_files()[SHARDS[1]][:-4]},
            f"'ann/NAME/{SHARDS[1]}' is no whole safetensors file: it is cut short: 240116 bytes, its tensors end at 240120",
        ),
        ({SHARDS[1]: b""}, "it has 0 bytes, fewer than the 8"),
        ({SHARDS[1]: (200_000).to_bytes(8, "little") + b"{" * 150_000}, "cut short in its header: 150008 bytes"),
        ({SHARDS[1]: make_files()[SHARDS[0]]}, "has 'layers.0.weight' twice"),
        ({INDEX: b'{"weight_map": {"a": "../a.safetensors"}}'}, "names '../a.safetensors' as a file of weights"),
        ({INDEX: b"<html>"}, "is no JSON"),
        ({INDEX: None}, "has no model.safetensors, model.safetensors.index.json"),
    ],
)
def test_repositories_that_are_not_whole(hub, client, tmp_path, request, change, message):
    name = f"broken{abs(hash(request.node.name))}"
    files = {key: value for key, value in {**make_files(), **change}.items() if value is not None}
    hub.add_repo(f"ann/{name}", files)
    failure = client.fails(cut, repo_id=f"ann/{name}", folder=str(tmp_path / "made"))
    assert failure.is_a("CheckpointError")
    assert message.replace("NAME", name) in failure.message
    assert not (tmp_path / "made").exists()


def test_what_the_hub_does_not_show(hub, client, tmp_path):
    hub.add_repo("bob/hidden", make_files(), private=True)
    hub.add_repo("bob/gated", make_files()).gated = "manual"
    hub.add_repo("ann/plain", make_files())
    for repo_id, options, message in [
        ("bob/hidden", {}, "Cannot read 'bob/hidden': there is no 'bob/hidden', or not for this token"),
        ("bob/gated", {}, "'bob/gated' is gated"),
        ("ann/plain", {"revision": "v9"}, "Cannot read 'ann/plain' at 'v9': 'ann/plain' has no such revision"),
    ]:
        failure = client.fails(cut, repo_id=repo_id, folder=str(tmp_path / "made"), **options)
        assert failure.is_a("CheckpointError"), failure.trace
        assert message in failure.message
    hub.faults.add("GET", "/api/models/ann/plain", status=500, times=99)
    failure = client.fails(cut, repo_id="ann/plain", folder=str(tmp_path / "made"))
    assert "the Hub answers 500" in failure.message


def cut_on_a_small_disk(repo_id, folder, free):
    """As `cut`, on disks that have so many bytes left."""
    import shutil
    from pathlib import Path
    from types import SimpleNamespace

    from hf_mpruner.slicing import Piece, open_checkpoint, write_tensors_of

    usage, shutil.disk_usage = shutil.disk_usage, lambda path: SimpleNamespace(free=free)
    try:
        checkpoint = open_checkpoint(repo_id)
        Path(folder).mkdir()
        write_tensors_of(checkpoint, {"layers.0.weight": Piece("layers.1.weight")}, Path(folder))
    finally:
        shutil.disk_usage = usage


def test_room_is_needed_for_downloads_too(hub, client, tmp_path):
    hub.add_repo("ann/roomy", make_files())
    start = hub.journal.mark()
    failure = client.fails(cut_on_a_small_disk, repo_id="ann/roomy", folder=str(tmp_path / "made"), free=300_000)
    assert "480240 bytes are needed on the disk of" in failure.message
    assert "(240120 of them to download from the Hub), 300000 are free" in failure.message
    assert not list((tmp_path / "made").iterdir())
    torch.save({"layers.1.weight": torch.ones(2000)}, tmp_path / "file")
    hub.add_repo("ann/roomy-pickle", {"pytorch_model.bin": (tmp_path / "file").read_bytes()})
    failure = client.fails(cut_on_a_small_disk, repo_id="ann/roomy-pickle", folder=str(tmp_path / "no"), free=8000)
    assert "to download from the Hub), 8000 are free" in failure.message
    assert not [name for name in full_gets(hub, start) if name.endswith((".bin", ".safetensors"))]
    client.call(cut_on_a_small_disk, repo_id="ann/roomy", folder=str(tmp_path / "fits"), free=480_240)


def test_old_pickles_are_downloaded_and_cut(hub, client, tmp_path):
    torch.save({f"layers.{i}.weight": torch.full((2, 2), i + 1.0) for i in range(3)}, tmp_path / "file")
    hub.add_repo("ann/pickled", {"pytorch_model.bin": (tmp_path / "file").read_bytes(), "vocab.txt": b"a"})
    client.call(cut, repo_id="ann/pickled", folder=str(tmp_path / "made"))
    assert content(tmp_path / "made") == {"layers.0.weight": 1.0, "layers.1.weight": 3.0}


def slice_it(repo_id, folder, revision=None):
    """A model of the Hub, cut by a plan."""
    from hf_mpruner import PruningPlan, slice_checkpoint
    from hf_mpruner.plan.stack import StackPlan

    plan = PruningPlan({"encoder.layer": StackPlan(3, (0, 2))}, model_type="bert")
    done = slice_checkpoint(repo_id, plan, folder, revision=revision, progress=False)
    return {"commit": done.commit, "copied": sorted(done.copied)}


def test_a_model_of_the_hub_is_cut_to_the_files_that_a_folder_gives(hub, client, tmp_path):
    """Of one commit, config and all; nothing is downloaded that is not written, but the index."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2, "vocab_size": 20}
    model = BertModel(BertConfig(num_hidden_layers=3, **sizes))
    model.save_pretrained(tmp_path / "whole", max_shard_size="100KB")
    index = json.loads((tmp_path / "whole" / INDEX).read_text())["weight_map"]
    kept = {file for name, file in index.items() if ".layer.1." not in name}
    assert set(index.values()) - kept  # some file holds nothing but what goes
    others = {"vocab.txt": b"a", "onnx/model.onnx": b"x", "training_args.bin": b"x", "tf_model.h5": b"x"}
    files = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    repo = hub.add_repo("ann/whole", {**files, **others})
    head, start = repo.at("main").oid, hub.journal.mark()
    done = client.call(slice_it, repo_id="ann/whole", folder=str(tmp_path / "hub"))
    assert done == {"commit": head, "copied": ["vocab.txt"]}
    fetched = set(full_gets(hub, start))
    assert kept <= fetched <= {*kept, "config.json", "generation_config.json", INDEX, "vocab.txt"}
    asked = [request for request in hub.journal.find("GET", "/resolve/", since=start) if "safetensors" in request.path]
    assert {request.path.split("/resolve/")[1].split("/")[0] for request in asked} == {head}
    slice_it(str(tmp_path / "whole"), str(tmp_path / "disk"))
    ours = {file.name: file.read_bytes() for file in (tmp_path / "hub").iterdir() if file.name != "vocab.txt"}
    assert ours == {file.name: file.read_bytes() for file in (tmp_path / "disk").iterdir()}
