"""Two processes under DDP: one launch of scripts/ddp.py, of which each test looks at a part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from packaging.version import Version

from distributed_kit import LIKE_ONE, LIKE_ONE_PRUNING, PROMISED, PROMISED_PRUNING, bert, fork, launch, results
from trainer_kit import STACK, add, build_trainer

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    done = fork("ddp.py", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def found(output: Path) -> Found:
    return results(output)


@pytest.fixture(scope="module", params=["sgd", "adamw_torch"])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any, Any]]:
    """The same run by one process, with the batches of all."""
    trainer = build_trainer(bert(), tmp_path_factory.mktemp("alone"), **LIKE_ONE[request.param])
    callback = add(trainer, **LIKE_ONE_PRUNING)
    trainer.train()
    return request.param, trainer, callback.record


def assert_like_one(output: Path, found: Found, alone: tuple[str, Any, Any]) -> None:
    optim, trainer, record = alone
    assert len(record.rounds) > 1
    for one in found:
        assert one[optim]["kept"] == [round_.kept[STACK] for round_ in record.rounds]
        assert one[optim]["verdicts"] == [round_.verdict for round_ in record.rounds]
        for values, round_ in zip(one[optim]["similarity"], record.rounds, strict=True):
            expected = torch.tensor(round_.similarity[STACK]["values"])
            assert (torch.tensor(values) - expected).abs().max() < 1e-6
        assert one[optim]["after"].keys() == record.similarity_after.keys()
        for path, matrix in record.similarity_after.items():  # of the model that was kept
            assert (torch.tensor(one[optim]["after"][path]) - torch.tensor(matrix["values"])).abs().max() < 1e-6
        assert all(None not in seconds for seconds in one[optim]["seconds"])
    first = torch.tensor(record.rounds[0].similarity[STACK]["values"], dtype=torch.float64)
    measured = torch.tensor(found[0][optim]["similarity"][0], dtype=torch.float64)
    assert (measured - first).abs().max() < 1e-12  # of weights that are the same bits
    weights = torch.load(output / f"{optim}.pt")
    assert max((weights[name] - value).abs().max() for name, value in trainer.model.state_dict().items()) < 1e-5


def test_two_processes_are_one_with_the_batches_of_both(
    output: Path, found: Found, alone: tuple[str, Any, Any]
) -> None:
    assert_like_one(output, found, alone)


@pytest.mark.slow
def test_four_processes_are_one_with_the_batches_of_all(alone: tuple[str, Any, Any], tmp_path: Path) -> None:
    done = launch("ddp.py", tmp_path, ranks=4)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_like_one(tmp_path, results(tmp_path, ranks=4), alone)


@pytest.mark.slow  # test_cli.py starts two processes the same way
def test_accelerate_launch_starts_two_processes_as_well(tmp_path: Path, found: Found) -> None:
    done = launch("ddp.py", tmp_path, accelerate=True)
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("sgd", "adamw_torch", "last", "rejected"):
        assert {one[name]["digest"] for one in results(tmp_path)} == {found[0][name]["digest"]}


@pytest.mark.parametrize("name", ["sgd", "adamw_torch", "last", "rejected", "healed", "promised"])
def test_all_processes_end_with_the_same_model_and_record(name: str, found: Found) -> None:
    first, second = (one[name] for one in found)
    assert first == second
    assert first["consistent"]
    assert first["wrapper"] == "DistributedDataParallel"


def test_the_runs_evaluations_are_all_there(found: Found) -> None:
    assert found[0]["sgd"]["evaluations"] == 3  # epochs


def test_a_cut_before_the_last_step_with_its_block_freed(found: Found) -> None:
    for one in found:
        assert one["last"]["steps"] == 2
        assert one["last"]["verdicts"] == ["accepted"]
        assert one["last"]["freed"]


def test_a_rejected_cut_is_taken_back_on_every_process(found: Found) -> None:
    for one in found:
        assert one["rejected"]["verdicts"] == ["rejected"]
        assert one["rejected"]["before"] == one["rejected"]["after"] != one["rejected"]["next"]


def test_a_promise_is_about_the_same_examples_as_with_one_process(found: Found, tmp_path: Path) -> None:
    trainer = build_trainer(bert(), tmp_path, per_device_train_batch_size=8, **PROMISED)
    callback = add(trainer, **PROMISED_PRUNING)
    trainer.train()
    record = callback.record
    assert record.baseline is not None
    first, second = (one["promised"] for one in found)
    assert first["outcomes"] == second["outcomes"] == record.baseline.outcomes
    assert len(first["outcomes"]["values"]) == 121
    assert first["bounds"] == second["bounds"]
    assert first["verdicts"][0] == "accepted"
    assert first["levels"] == [round_.level for round_ in record.rounds][: len(first["levels"])]
    assert first["bounds"][0]["num_examples"] == 121


def test_the_main_processs_plan_holds(found: Found) -> None:
    assert [one["healed"]["verdicts"] for one in found] == [["accepted"]] * 2


def test_plans_that_differ_are_refused_by_every_process_before_anything_changes(found: Found) -> None:
    for rank, one in enumerate(found):
        assert f"MPrunerError: The processes have different plans: this one (rank {rank})" in one["divergent"]["error"]
        assert one["divergent"]["unchanged"]
        assert one["divergent"]["layers"] == 6


def test_models_that_differ_are_found(found: Found) -> None:
    for one in found:
        assert (
            "different weights: rank 1 differs from rank 0 in 1 of 25 parameters, first 'classifier.bias'"
            in one["weights"]
        )
        assert "different models: rank 1 differs from rank 0" in one["names"]


def test_what_one_process_cannot_do_fails_on_all(found: Found) -> None:
    assert [one["together"] for one in found] == [
        "PeerError: rank 1 failed while testing: KeyError: 'only here'",
        "KeyError: 'only here'",
    ]


def test_processes_that_do_different_things_notice(found: Found) -> None:
    for one in found:
        assert "PeerError: The processes are out of step: rank 0 is comparing models" in one["step"]
        assert one["healthy"] == 0


def test_sums_and_values_of_all_processes(found: Found) -> None:
    assert [one["sums"] for one in found] == [[3.0, [0, 1], False]] * 2


@pytest.mark.skipif(
    Version(accelerate.__version__) < Version("1.14"), reason="this accelerate wraps a model that was evaluated before"
)
def test_an_evaluation_before_training_is_refused(found: Found) -> None:
    for one in found:
        assert "UnsupportedBackendError" in one["early"]["error"]
        assert "trainer.evaluate() or trainer.predict() was called before" in one["early"]["error"]
        assert one["early"]["unchanged"]
