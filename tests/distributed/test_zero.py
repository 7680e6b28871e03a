"""`prune_in_cycles` under DeepSpeed's ZeRO stages, on the CPU: what it does there, it does without a GPU or NCCL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification

from cycles_kit import CYCLES_LIKE_ONE, Maker, facts, prune, source_of
from distributed_kit import LIKE_ONE, launch, results
from trainer_kit import accuracy


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return BertForSequenceClassification.from_pretrained(folder).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_run_under_zero_is_one_process_with_the_batches_of_both(stage: int, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    done = launch("zero.py", tmp_path, str(stage), timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    found = results(tmp_path)
    assert found[0] == found[1]
    one = found[0]
    assert (one["wrappers"], one["stages"]) == (["DeepSpeedEngine"], [stage])

    maker = Maker(tmp_path / "alone training", compute_metrics=accuracy, **LIKE_ONE["adamw_torch"])
    alone = facts(prune(maker, source_of(tmp_path), tmp_path / "alone", **CYCLES_LIKE_ONE))
    assert one["run"]["rounds"] == [list(round_) for round_ in alone["rounds"]]
    for values, others in zip(one["run"]["similarity"], alone["similarity"], strict=True):
        assert (torch.tensor(values) - torch.tensor(others)).abs().max() < 1e-6
    weights, others = weights_in(tmp_path / "run" / "model"), weights_in(tmp_path / "alone" / "model")
    assert max((weights[name] - value).abs().max() for name, value in others.items()) < 1e-5

    # stopped in a training and gone on with, with weights that are partitioned while they are loaded
    assert one["stopped"] == "KeyError: 'stop'"
    assert one["again"] == one["run"]
    again = weights_in(tmp_path / "again" / "model")
    assert all(torch.equal(weights[name], value) for name, value in again.items())
    # in the first run only what is loaded after the first Trainer was made is partitioned
    whole = stage < 3
    assert (one["late"], one["early"], one["zero3"]) == ([False, not whole, not whole], [not whole] * 2, not whole)
    assert one["baseline"]["rounds"] == one["run"]["rounds"][:1]

    text = "saved whole only with 'stage3_gather_16bit_weights_on_model_save': true"
    assert (text in one["scattered"]) == (stage == 3)
    assert f"under <ZeRO-{stage} (DeepSpeedEngine)>" in one["callback"]
    assert "hf_mpruner.prune_in_cycles(...)" in one["callback"]
