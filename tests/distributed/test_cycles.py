"""`prune_in_cycles` in two processes: one launch of scripts/cycles.py, of which each test looks at a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from packaging.version import Version
from transformers import BertForSequenceClassification

from cycles_kit import CYCLES_LIKE_ONE, Maker, facts, prune, source_of
from distributed_kit import LIKE_ONE, launch, results
from trainer_kit import accuracy

# Every launch of cycles is slow. By default the callback is tested in two processes, cycles in one.
pytestmark = pytest.mark.slow

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cycles")
    done = launch("cycles.py", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def found(output: Path) -> Found:
    return results(output)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_two_processes_are_one_with_the_batches_of_both(
    optim: str, output: Path, found: Found, tmp_path: Path
) -> None:
    maker = Maker(tmp_path / "training", compute_metrics=accuracy, **LIKE_ONE[optim])
    report = prune(maker, source_of(output), tmp_path / "alone", **CYCLES_LIKE_ONE)
    alone, both = facts(report), found[0][optim]
    assert [verdict for verdict, *_ in alone["rounds"]] == ["accepted", "accepted"]
    assert both["rounds"] == [list(round_) for round_ in alone["rounds"]]
    assert both["steps"] == [list(steps) for steps in alone["steps"]]
    assert (torch.tensor(both["metrics"]) - torch.tensor(alone["metrics"])).abs().max() < 1e-6
    for values, others in zip(both["similarity"], alone["similarity"], strict=True):
        assert (torch.tensor(values) - torch.tensor(others)).abs().max() < 1e-6
    folders = (output / optim / "model", tmp_path / "alone" / "model")
    weights, others = (BertForSequenceClassification.from_pretrained(folder).state_dict() for folder in folders)
    assert max((weights[name] - value).abs().max() for name, value in others.items()) < 1e-5


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_every_training_was_under_ddp_and_every_process_has_the_same_report(optim: str, found: Found) -> None:
    assert found[0][optim] == found[1][optim]
    assert found[0][optim]["wrappers"] == ["DistributedDataParallel"]


def test_stopped_on_all_and_gone_on_with(output: Path, found: Found) -> None:
    assert [one["stopped"] for one in found] == ["KeyError: 'stop'"] * 2
    for one in found:
        assert one["again"] | {"wrappers": one["sgd"]["wrappers"]} == one["sgd"]
        assert one["trainings"] == 1
    folders = (output / "sgd" / "model", output / "again" / "model")
    weights, others = (BertForSequenceClassification.from_pretrained(folder).state_dict() for folder in folders)
    assert all(torch.equal(weights[name], value) for name, value in others.items())


@pytest.mark.skipif(
    Version(accelerate.__version__) < Version("1.14"), reason="this accelerate wraps a model that was evaluated before"
)
def test_a_script_that_evaluates_before_training_is_refused(found: Found) -> None:
    for one in found:
        assert "The model is not wrapped, so each of 2 processes would train one of its own" in one["early"]


def test_a_folder_that_one_process_does_not_see_is_refused(found: Found) -> None:
    for one in found:
        assert "is not seen by rank 1: pass a folder that all processes share" in one["apart"]


@pytest.mark.parametrize(
    ("where", "doing"),
    [
        ("making", "making the Trainer of the candidate"),
        ("training", "training the candidate"),
        ("evaluation", "evaluating the model"),
    ],
)
def test_a_process_that_fails_ends_all(where: str, doing: str, tmp_path: Path) -> None:
    done = launch("cycles.py", tmp_path, where, timeout=120)  # the Trainer's own communication would wait half an hour
    assert done.returncode != 0
    said = [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == f"PeerError: rank 1 failed while {doing}: OSError: the disk of rank 1 is gone"
    assert said[1] == "OSError: the disk of rank 1 is gone"
    assert not (tmp_path / "failed" / "model").exists()
