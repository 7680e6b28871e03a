"""A pruned model to the Hub and back, by all roads; what stops a push, and what is left then."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from push_kit import write_folder

HAND = b"---\nlicense: mit\ntags:\n- mine\n---\n# By hand\n\nWords of a person.\n"


def push(folder, repo_id, **options):
    """`push_pruned_model` of a folder; what `Pushed` says."""
    import dataclasses

    from huggingface_hub.utils import close_session

    from hf_mpruner import push_pruned_model

    close_session()
    return dataclasses.asdict(push_pruned_model(folder, repo_id, **options))


def push_live(folder, repo_id, **options):
    """The folder's model, in memory."""
    import dataclasses

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from hf_mpruner import PruningReport, push_pruned_model

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)
    report = PruningReport.load(folder) if options.pop("report", True) else None
    pushed = push_pruned_model(model, repo_id, report=report, processing_class=words, **options)
    return dataclasses.asdict(pushed)


def command(folder, repo_id, flags):
    """`hf-mpruner push` in this process: exit code, stdout, stderr."""
    import contextlib
    import io

    from hf_mpruner.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["push", folder, repo_id, *flags])
    return code, out.getvalue(), err.getvalue()


def logits(place, revision=None):
    """What a user of the model gets, as bytes in hex."""
    import tempfile

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with tempfile.TemporaryDirectory() as cache:
        where = {"cache_dir": cache, "revision": revision or "main"}
        model = AutoModelForSequenceClassification.from_pretrained(place, **where).eval()
        inputs = AutoTokenizer.from_pretrained(place, **where)("a b a", return_tensors="pt")
    with torch.no_grad():
        return [model.config.num_hidden_layers, model(**inputs).logits.numpy().tobytes().hex()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("made") / "small", source="somebody/bert")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "small")


@pytest.fixture
def name(request):
    return f"ann/{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower()).strip('-')}"


@pytest.mark.parametrize("uploads", ["lfs", "regular"])
@pytest.mark.parametrize("road", ["model", "folder", "command"])
def test_there_and_back_bit_for_bit(hub, client, xet_client, folder, name, road, uploads):
    hub.uploads = uploads
    sender = {"lfs": client, "regular": xet_client}[uploads]
    if road == "command":
        code, out, err = sender.call(
            command, folder=str(folder), repo_id=name, flags=["--private", "--format", "json"]
        )
        assert (code, json.loads(out)["repo_id"]) == (0, name), err
    else:
        pushed = sender.call(
            {"model": push_live, "folder": push}[road], folder=str(folder), repo_id=name, private=True
        )
        assert (pushed["card"], pushed["repo_id"]) == ("written", name)
    repo = hub.store.repo(name)
    assert (repo.private, len(repo.history())) == (True, 2)
    sent = {path for path in repo.files() if path != ".gitattributes"}
    assert sent == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert sender.call(logits, place=name) == sender.call(logits, place=str(folder))
    assert not list(client.home.glob("hf/hf_mpruner/*"))
    assert not list(client.home.glob("hf/hub/.hf_mpruner*"))
