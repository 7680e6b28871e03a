"""Two processes under DDP in other settings, resumed, and with cuts that fail on one: one launch of ddp_settings.py."""

from __future__ import annotations

from typing import Any

import pytest

from distributed_kit import launch, results

# A launch of many runs; the default suite has two processes in test_ddp.py, test_fsdp.py, test_cli.py and others.
pytestmark = pytest.mark.slow

Found = list[dict[str, Any]]
SETTINGS = [
    "accumulation",
    "checkpointing",
    "static",
    "compiled",
    "bf16",
    "frozen",
    "lora",
    "distilled",
    "full",
    "whole",
]
SAME_NUMBERS = ["checkpointing", "static", "compiled", "full"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("settings")
    done = launch("ddp_settings.py", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return results(folder)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_rejects_accepts_and_ends_alike_on_both(name: str, found: Found) -> None:
    first, second = (one[name] for one in found)
    assert first == second
    assert first["verdicts"] == ["rejected", "accepted"]
    assert first["layers"] == len(first["kept"][1]) == 4
    assert first["consistent"]
    assert (first["digest"] == found[0]["whole"]["digest"]) == (name in [*SAME_NUMBERS, "whole"])


@pytest.mark.parametrize("step", [2, 3, 5])
def test_resumed_in_mid_epoch_before_a_verdict_and_in_the_next_round(step: int, found: Found) -> None:
    for one in found:
        for fact in ("verdicts", "kept", "digest", "metrics", "similarity"):
            assert one[f"resumed {step}"][fact] == one["whole"][fact]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        (
            "broken",
            "PeerError: rank 1 failed while cutting the model: RuntimeError: only here",
            "RuntimeError: only here",
        ),
        (
            "refused",
            *["MPrunerError: The cut was refused by some processes, but not by the main one: rank 1: only here"] * 2,
        ),
    ],
)
def test_a_cut_that_fails_on_one_process_is_made_on_none(name: str, first: str, second: str, found: Found) -> None:
    assert [one[name]["error"] for one in found] == [first, second]
    for one in found:
        assert one[name]["unchanged"]
        assert (one[name]["layers"], one[name]["pending"], one[name]["rounds"]) == (6, False, 0)
        assert one[name]["reduced"]  # the wrapper averages the gradients of all layers again
