"""`hub`, as far as no Hub is needed: names of repositories."""

from __future__ import annotations

import re

import pytest

from hf_mpruner.hub import check_repo_id


@pytest.mark.parametrize("repo_id", ["ann/bert", "bert-pruned", "Ann_1/x.y-z", "a/" + "b" * 96])
def test_names_that_the_hub_takes(repo_id: str) -> None:
    assert check_repo_id(repo_id) == repo_id


@pytest.mark.parametrize(
    ("repo_id", "reason", "instead"),
    [
        ("", "names no repository", "NAMESPACE/NAME"),
        (None, "repo_id=None names no repository", "NAMESPACE/NAME"),
        ("./out", "is a path", "NAMESPACE/out"),
        ("../runs/out", "is a path", "NAMESPACE/out"),
        ("/data/out", "is a path", "NAMESPACE/out"),
        ("~/out", "is a path", "NAMESPACE/out"),
        ("C:\\runs\\out", "is a path", "NAMESPACE/out"),
        ("..", "is a path", "NAMESPACE/NAME"),
        ("https://huggingface.co/ann/bert/tree/main", "is a web address", "ann/bert"),
        ("hf.co/ann/bert", "is a web address", "ann/bert"),
        ("ann/bert/plots", "has 2 slashes, one is allowed", "NAMESPACE/plots"),
        ("ann/", "nothing stands beside the slash", "NAMESPACE/ann"),
        ("ann/my bert", "' ' in 'my bert' is not allowed", "ann/my-bert"),
        ("ann/ü", "'ü' in 'ü' is not allowed", "ann/NAME"),
        ("-ann/bert", "'-ann' must neither begin nor end with", "ann/bert"),
        ("ann/a--b", "'a--b' must neither begin", "ann/a-b"),
        ("ann/bert.git", "must not end with '.git'", "ann/bert"),
        ("ann/" + "b" * 97, "'bbbbbbbbbbbb...' has 97 characters, at most 96", "ann/" + "b" * 96),
    ],
)
def test_names_that_are_refused(repo_id: str, reason: str, instead: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as found:
        check_repo_id(repo_id)
    assert repr(repo_id) in str(found.value)
    assert f"'{instead}'" in str(found.value)
    if "NAME" not in instead:  # what is offered is taken
        assert check_repo_id(instead) == instead


def test_a_folder_is_no_repository(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smaller").mkdir()
    with pytest.raises(ValueError, match=r"repo_id='smaller' is a folder here.*type 'NAMESPACE/smaller'"):
        check_repo_id("smaller")
    assert check_repo_id("ann/smaller") == "ann/smaller"
