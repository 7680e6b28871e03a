"""What may not leave the machine is found in every kind of file, and what only looks like it is not."""

from __future__ import annotations

import json
import pickle
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from hf_mpruner.hub import leaks
from hf_mpruner.hub.leaks import Secrets, find_leaks, is_local, scrub_json

TOKEN = "hf_" + "aB3" * 11
SECRETS = Secrets(frozenset({"hf_ann_write"}), frozenset({"/home/ann", "/srv/run 7", "/tmp", "/root"}))
HOME = "the local path '/home/ann/run'"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"token={TOKEN}", ["what looks like a token (hf_aB3...)"]),
        ("Authorization: hf_ann_write", ["a token that this machine is logged in with"]),
        ("cd /home/ann/run; ls", [HOME]),
        ("cd '/home/ann'", ["the local path '/home/ann'"]),
        ("file:///home/ann/run", [HOME]),
        ('{"a": "/srv/run 7/x"}', ["the local path '/srv/run 7/x'"]),
        ("/tmp/pytest-1 /root/.cache", ["the local path '/tmp/pytest-1'", "the local path '/root/.cache'"]),
        ("/home/ann/run and /home/ann/run", [HOME]),
        # none of them is a place here, or secret
        ("a / b, /tmp, /root. https://host/tmp/x ~/tmp/x", []),
        ("/home/annette /home/ann-2 https://example.org/home/ann/x", []),
        ("hf_mpruner hf_xet_download_group_of_files_and_more hf_short123", []),
        ("abc_hf_" + "a" * 40, []),
    ],
)
def test_texts(text, found):
    assert find_leaks(text.encode(), SECRETS) == found


def test_a_pickle_whose_string_has_a_letter_before_it(tmp_path):
    """In a pickle a string's length stands before it: 65 bytes of it look like the letter A."""
    path = "/home/ann/" + "x" * 55
    assert len(path) == ord("A")
    torch.save({"output_dir": path, "hub_token": "hf_" + "Z" * 62}, tmp_path / "args.bin")
    content = (tmp_path / "args.bin").read_bytes()
    assert b"A\x00\x00\x00/home" in content
    expected = ["what looks like a token (hf_ZZZ...)", "a path in '/home/ann'"]
    assert find_leaks(tmp_path / "args.bin", SECRETS) == expected
    assert find_leaks(content, SECRETS) == expected
    short = pickle.dumps({"output_dir": path, "hub_token": "hf_" + "Z" * 62}, protocol=4)
    assert b"Ahf_ZZ" in short
    assert find_leaks(short, SECRETS) == expected
    torch.save({"output_dir": path}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert find_leaks(tmp_path / "old.bin", SECRETS) == ["a path in '/home/ann'"]
    torch.save("/home/ann", tmp_path / "home.bin")  # and a letter after it
    assert b"/home/annq" in (tmp_path / "home.bin").read_bytes()
    assert find_leaks(tmp_path / "home.bin", SECRETS) == ["a path in '/home/ann'"]


def test_arguments_of_a_trainer(tmp_path):
    from transformers import TrainingArguments

    arguments = TrainingArguments(str(tmp_path), hub_token="hf_given", report_to="none", use_cpu=True)
    torch.save(arguments, tmp_path / "training_args.bin")
    secrets = Secrets.of_machine([tmp_path], ["hf_given", None])
    found = find_leaks(tmp_path / "training_args.bin", secrets)
    assert found[0] == "a token that this machine is logged in with"
    assert f"a path in '{tmp_path}'" in found
    assert leaks.NEVER_SENT == ("training_args.bin",)


def test_numbers_of_tensors_are_not_searched(tmp_path):
    numbers = torch.frombuffer(bytearray(b"/home/ann/run   " * 4), dtype=torch.uint8)
    save_file({"w": numbers}, tmp_path / "clean.safetensors", metadata={"format": "pt"})
    save_file({"w": numbers}, tmp_path / "named.safetensors", metadata={"from": "/home/ann/run"})
    assert find_leaks(tmp_path / "clean.safetensors", SECRETS) == []
    assert find_leaks(tmp_path / "named.safetensors", SECRETS) == [HOME]
    torch.save({"w": numbers}, tmp_path / "optimizer.pt")
    assert b"/home/ann/run" in (tmp_path / "optimizer.pt").read_bytes()
    assert find_leaks(tmp_path / "optimizer.pt", SECRETS) == []


def test_archives_are_opened(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", "/home/ann/run " * 100)
    assert b"ann" not in (tmp_path / "a.zip").read_bytes()
    assert find_leaks(tmp_path / "a.zip", SECRETS) == ["a path in '/home/ann'"]
    assert find_leaks(b"PK\x03\x04 no archive, but /home/ann/run", SECRETS) == [HOME]


def test_large_files_are_read_in_pieces_and_the_largest_at_both_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(leaks, "_CHUNK", 1 << 13)
    middle = b"x" * (1 << 13)
    assert find_leaks(middle[:-6] + b" /home/ann/run " + middle, SECRETS) == [HOME]
    monkeypatch.setattr(leaks, "_WHOLE", 1 << 14)
    file = tmp_path / "model.gguf"
    file.write_bytes(middle * 4 + b" /home/ann/run " + middle * 4)
    assert find_leaks(file, SECRETS) == []
    file.write_bytes(middle * 8 + b" /home/ann/run ")
    assert find_leaks(file, SECRETS) == [HOME]


def test_json_without_its_paths():
    values = {
        "name_or_path": "/home/ann/bert", "_name_or_path": "ann/bert", "special_tokens_map_file": "/opt/x/map.json",
        "inner": [{"best_model_checkpoint": "/home/ann/run/checkpoint-2", "best_metric": 0.5}], "task": "ä",
    }  # fmt: skip
    clean = json.loads(scrub_json(json.dumps(values).encode(), SECRETS))
    assert clean == {"_name_or_path": "ann/bert", "inner": [{"best_metric": 0.5}], "task": "ä"}
    untouched = b'{"b": 1,   "a": "/home/ann/run"}'
    assert scrub_json(untouched, SECRETS) is untouched
    assert find_leaks(untouched, SECRETS) == [HOME]
    assert scrub_json(b"{no json", SECRETS) == b"{no json"


def test_names_on_the_hub_are_not_local():
    assert is_local("/opt/models/bert", SECRETS)
    assert not is_local("google-bert/bert-base-uncased", SECRETS)


def test_what_this_machine_knows(monkeypatch, tmp_path):
    home, work, link = tmp_path / "h" / "ann", tmp_path / "w" / "run", tmp_path / "link"
    home.mkdir(parents=True)
    work.mkdir(parents=True)
    link.symlink_to(work)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    for name, value in {
        "HF_TOKEN": "hf_of_environment",
        "MY_API_KEY": "k" * 20,
        "CI_TOKEN": "short",
        "NAME": "n" * 20,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/env"])
    secrets = Secrets.of_machine([link], ["hf_explicit", "tiny"])
    assert {"hf_of_environment", "k" * 20, "hf_explicit"} <= secrets.tokens
    assert not {"short", "n" * 20, "tiny"} & secrets.tokens
    assert {str(home), str(work), str(link)} <= secrets.paths
    assert not {"/usr/bin", "/"} & secrets.paths
    monkeypatch.setattr(sys, "argv", ["/srv/project/train.py"])
    assert "/srv/project" in Secrets.of_machine().paths
