"""Several processes and one push: whole weights, the random states of all, and nothing sent twice."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load

from distributed_kit import launch, results

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_push_once_and_go_on_from_what_was_pushed(hub, tmp_path, monkeypatch, kind):
    for name, value in hub.environment(tmp_path).items():
        if name.startswith(("HF_", "NO_")):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    mark, name = hub.journal.mark(), f"ann/{kind}"
    done = launch("push.py", tmp_path / "first", kind, name)
    assert done.returncode == 0, done.stderr[-4000:]
    found = results(tmp_path / "first")
    assert found[0]["digest"] == found[1]["digest"]
    assert [one["pushes"] for one in found] == [True, False]
    if kind == "fsdp":
        for one in found:
            assert one["refused"].startswith(
                "UnsupportedBackendError: TrainingArguments(push_to_hub=True) under FSDP with"
            )
            assert "FULL_STATE_DICT" in one["refused"]
    repo = hub.store.repo(name)
    files = repo.files()
    depth = json.loads(files["config.json"])["num_hidden_layers"]
    assert depth == len(found[0]["kept"]) < 6
    layers = {
        int(key.split(".")[3]) for key in load(files["model.safetensors"]) if key.startswith("bert.encoder.layer")
    }
    assert layers == set(range(depth))
    assert {f"last-checkpoint/rng_state_{rank}.pth" for rank in (0, 1)} <= set(files)
    assert not [file for file in files if file.endswith("training_args.bin")]
    for secret in (hub.token, str(tmp_path)):
        assert [str(request) for request in hub.journal.containing(secret, since=mark)] == []

    commit = next(one for one in repo.history() if one.title.endswith("epoch 3, checkpoint"))
    for file, blob in commit.files.items():
        (tmp_path / "down" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "down" / file).write_bytes(blob.data)
    done = launch("push.py", tmp_path / "second", kind, name, str(tmp_path / "down" / "last-checkpoint"))
    assert done.returncode == 0, done.stderr[-4000:]
    again = results(tmp_path / "second")
    assert [one["digest"] for one in again] == [found[0]["digest"]] * 2
    assert again[0]["begun"] == 9
