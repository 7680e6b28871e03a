"""Two processes under FSDP2: one launch of scripts/fsdp.py, of which each test looks at a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import compare_versions
from transformers import BertForSequenceClassification

from distributed_kit import SHARDED, SHARDED_PRUNING, bert, fork, results
from trainer_kit import STACK, Scripted, add, build_trainer

pytestmark = pytest.mark.skipif(compare_versions("accelerate", "<", "1.9"), reason="loading a checkpoint hangs")

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    done = fork("fsdp.py", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def found(output: Path) -> Found:
    return results(output)


def test_both_processes_hold_the_same_model_and_record(found: Found) -> None:
    assert found[0] == found[1]
    run = found[0]["run"]
    assert run["name"] == "FSDP2"
    assert run["units"] == [True] * 4
    assert run["consistent"]


def test_it_ends_as_one_process_does(output: Path, found: Found, tmp_path: Path) -> None:
    trainer = build_trainer(bert(), tmp_path, Scripted(0.9, 0.1, 0.9), **SHARDED)
    callback = add(trainer, **SHARDED_PRUNING)
    trainer.train()
    run = found[0]["run"]
    assert run["kept"] == [round_.kept[STACK] for round_ in callback.record.rounds]
    for values, round_ in zip(run["similarity"], callback.record.rounds, strict=True):
        assert (torch.tensor(values) - torch.tensor(round_.similarity[STACK]["values"])).abs().max() < 1e-6
    saved = BertForSequenceClassification.from_pretrained(output / "saved").state_dict()
    assert max((saved[name] - value).abs().max() for name, value in trainer.model.state_dict().items()) < 1e-5


def test_a_rejected_cut_is_taken_back(found: Found) -> None:
    for one in found:
        assert one["run"]["verdicts"] == ["rejected", "accepted"]
        before, after = one["run"]["before"], one["run"]["after"]
        assert before[1]["digest"] == after[1]["digest"] != before[0]["digest"]
        assert before[3]["digest"] != after[3]["digest"]  # it still trains
        assert all(moment["consistent"] for moment in (*before, *after))


def test_blocks_that_went_for_good_are_freed(found: Found) -> None:
    for one in found:
        kept = one["run"]["kept"][-1]
        assert one["freed"] == [layer not in kept for layer in range(6)]


def test_what_is_saved_loads_by_itself(found: Found) -> None:
    for one in found:
        assert one["saved"] == one["run"]["digest"]


def test_resumed_after_the_last_verdict_it_ends_in_the_same_bits(found: Found) -> None:
    for one in found:
        assert one["resumed"]["digest"] == one["run"]["digest"]
        assert one["resumed"]["verdicts"] == one["run"]["verdicts"]


def test_resumed_before_a_verdict_is_refused(found: Found) -> None:
    for one in found:
        assert "UnsupportedBackendError" in one["pending"]
        assert "a cut without a verdict, which cannot be gone on with under FSDP2" in one["pending"]


def test_layers_that_share_a_unit_are_refused(found: Found) -> None:
    for one in found:
        assert "UnsupportedBackendError" in one["root"]
        assert "FSDP2 without a unit for bert.encoder.layer.0" in one["root"]
        assert one["engine"]
