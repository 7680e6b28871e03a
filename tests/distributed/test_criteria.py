"""Each criterion on two processes, under DDP and FSDP2: the same scores, cut and weights as one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import compare_versions

from distributed_kit import CRITERIA, launch, results, scored_run

Found = list[dict[str, Any]]
OLD = pytest.mark.skipif(compare_versions("accelerate", "<", "1.9"), reason="loading a checkpoint hangs")


@pytest.fixture(scope="module", params=["ddp", pytest.param("fsdp", marks=OLD)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Found]:
    folder = tmp_path_factory.mktemp(request.param)
    done = launch("criteria.py", folder, request.param, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return request.param, results(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", CRITERIA)
def test_two_processes_score_and_cut_as_one(found: tuple[str, Found], name: str, tmp_path: Path) -> None:
    kind, (first, second) = found
    if (kind, name) == ("fsdp", "taylor"):
        assert "'taylor' needs gradients, which FSDP2 does not give" in first[name]["failed"]
        return
    assert first[name] == second[name]
    if (kind, name) == ("fsdp", "mixture"):
        assert first[name]["left_out"] == ["taylor"]
        return
    alone = scored_run(name, tmp_path)
    assert (first[name]["kept"], first[name]["merged"]) == (alone["kept"], alone["merged"])
    for one, other in zip(first[name]["values"], alone["values"], strict=True):
        assert (one is None) == (other is None)
        assert one is None or one == pytest.approx(other, rel=1e-5, abs=1e-7)
    assert first[name]["weights"].keys() == alone["weights"].keys()
    for parameter, mean in alone["weights"].items():
        assert first[name]["weights"][parameter] == pytest.approx(mean, rel=1e-4, abs=1e-6), parameter
