"""What a data set tells of itself: nothing guessed, nothing of this machine."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset, load_dataset
from torch.utils.data import DataLoader, Subset

from hf_mpruner.data import describe_data, has_one_label_each
from trainer_kit import Rows


def look_at_a_hub_dataset(repo_id):
    """Facts about a data set that the real `datasets` loads from the Hub, and about what is made of it."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    from hf_mpruner.data import describe_data

    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset")
    rows = "text,label\n" + "\n".join(f"t{number},{number % 2}" for number in range(10))
    for name in ("train.csv", "README.md"):
        commit = api.upload_file(
            path_or_fileobj=(rows if name == "train.csv" else "# Rows\n").encode(),
            path_in_repo=name,
            repo_id=repo_id,
            repo_type="dataset",
        )
    data = load_dataset(repo_id, split="train[:8]")
    made = data.map(lambda row: {"length": len(row["text"])}).shuffle(seed=1).select(range(3))
    return [commit.oid, describe_data(data, "training set"), describe_data(made, "judge")]


def test_a_data_set_of_the_hub_is_named_with_its_commit(client):
    oid, loaded, made = client.call(look_at_a_hub_dataset, repo_id="ann/CamelCase-rows")
    known = {"dataset": "ann/CamelCase-rows", "config": "default", "revision": oid, "split": "train[:8]"}
    assert loaded == {"source": "training set", **known, "num_examples": 8}
    assert made == {"source": "judge", **known, "num_examples": 3}


def test_a_local_file_is_not_named(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na,1\nb,0\n")
    data = load_dataset("csv", data_files=str(tmp_path / "rows.csv"), split="train", cache_dir=str(tmp_path / "cache"))
    found = describe_data(data, "training set")
    assert found == {"source": "training set", "split": "train", "num_examples": 2}
    assert str(tmp_path) not in json.dumps(found)
    data.save_to_disk(str(tmp_path / "ann___rows"))
    assert "dataset" not in describe_data(Dataset.load_from_disk(str(tmp_path / "ann___rows")), "training set")


def test_addresses_that_some_versions_keep():
    data = Dataset.from_dict({"label": [0, 1]})
    sha = "0123456789abcdef" * 2 + "01234567"
    data.info.download_checksums = {f"hf://datasets/ann/rows@{sha}/{name}": {} for name in ("a.csv", "b.csv")}
    data.info.config_name = "small"
    found = describe_data(data, "judge")
    assert found == {
        "source": "judge",
        "dataset": "ann/rows",
        "config": "small",
        "revision": sha,
        "num_examples": 2,
    }
    data.info.download_checksums["/home/ann/c.csv"] = {}  # rows of two places
    assert describe_data(data, "judge") == {"source": "judge", "num_examples": 2}


def test_torch_datasets_and_several_data_sets():
    rows = Rows(5, 0)
    assert describe_data(rows, "judge") == {"source": "judge", "num_examples": 5}
    assert describe_data(Subset(rows, [0, 1]), "judge")["num_examples"] == 2
    assert describe_data(DataLoader(rows, batch_size=2), "judge")["num_examples"] == 5
    assert describe_data({"a": rows, "b": Rows(2, 0)}, "judge") == {"source": "judge", "num_examples": 7}
    assert describe_data(iter(rows), "judge") == {"source": "judge"}


@pytest.mark.parametrize(
    ("data", "one"),
    [
        ([{"labels": 3}], True),
        ([{"label": torch.tensor(3)}], True),
        ([{"labels": [1, 0]}], False),
        ([{"labels": torch.tensor([1, 0])}], False),
        ([{"labels": 0.5}], False),
        ([{"start_positions": 4}], False),
        ([(1, 2)], False),
        (iter([{"labels": 1}]), False),
        ([], False),
    ],
)
def test_whether_each_example_has_one_label(data, one):
    assert has_one_label_each(data) is one
