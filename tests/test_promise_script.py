"""`reproduce/guarantee`: what is repeated there thousands of times is what the library does once."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hf_mpruner import PruningConfig
from hf_mpruner.engine import PruningEngine
from hf_mpruner.guarantee import Outcomes, bound_drop

FOLDER = Path(__file__).parents[1] / "reproduce" / "guarantee"


@pytest.fixture(scope="module")
def promise() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("promise")
    finally:
        sys.path.remove(str(FOLDER))


def test_the_short_way_to_a_verdict_gives_the_bounds_verdict(promise: ModuleType) -> None:
    draw, seen = random.Random(0), set()
    for _ in range(30):
        size = draw.choice([40, 300])
        lost, won, budget = draw.randint(0, size // 20), draw.randint(0, size // 20), draw.choice([0.01, 0.05, 0.1])
        before = Outcomes("binary", (1,) * (size - won) + (0,) * won, (size - won) / size, size)
        after = Outcomes("binary", (0,) * lost + (1,) * (size - lost), (size - lost) / size, size)
        bound = bound_drop(before, after, greater_is_better=True, max_drop=budget, level=0.02)
        assert promise.exact_holds(size, lost, won, budget, 0.02) == bound.holds
        seen.add(bound.holds)
    assert seen == {True, False}


def test_macro_f1_of_rows_is_that_of_scikit_learn(promise: ModuleType) -> None:
    from sklearn.metrics import f1_score

    draw = np.random.default_rng(0)
    labels, says = draw.integers(0, 4, (5, 30)), draw.integers(0, 10, (5, 30))
    expected = [f1_score(a, b, average="macro", zero_division=0) for a, b in zip(labels, says, strict=True)]
    assert promise.macro_f1(labels, says) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["clusters", "layers", "search"])
def test_a_walk_is_a_run_of_the_library_with_that_judging_set(promise: ModuleType, way: str, tmp_path: Path) -> None:
    facts = {"layers": 5, "hidden": 16, "originals": 600, "train": 1200, "pool": 600, "strength": 0.3, "steps": 150,
             "rate": 4e-3, "recovery_steps": 3, "recovery_rate": 1e-3, "calibration_samples": 64, "seed": 0}  # fmt: skip
    subject = promise.Subject(tmp_path, facts)
    config = PruningConfig(**{**promise.WAYS[way], **({"threshold": 0.8} if way == "clusters" else {})})
    tree, size, seen = promise.Tree(way, config, subject), 300, set()
    for number, budget in enumerate((0.05, 0.1, 0.2, 0.4)):
        drawn = np.random.default_rng(number).integers(0, len(subject.pool), size)
        one = promise.walk(
            tree,
            budget,
            "promise",
            lambda model, drawn=drawn: promise.Accuracy().measure(subject.uncut, model, drawn),
            lambda verdicts: 0.0,
        )
        record = _run(subject, tree, budget, drawn)
        assert record.verdicts == list(one.verdicts)
        assert sum(map(len, record.kept.values())) == one.kept.layers
        seen.update(one.verdicts)
    assert seen == {True, False}


def _run(subject: Any, tree: Any, budget: float, drawn: np.ndarray) -> Any:
    """The library's own engine and judge, on that judging set."""
    model = subject.load("uncut", lambda: None)
    inputs = tree.inputs(model)
    data, last = type(subject.pool)(subject.pool.x[drawn], subject.pool.y[drawn], subject.pool.original[drawn]), []

    def evaluate() -> dict[str, float]:
        says, _ = importlib.import_module("variants").answers(model, data)
        last[:] = (says == data.y).double().tolist()
        return {"accuracy": float(np.mean(last))}

    engine = PruningEngine(
        model,
        PruningConfig.from_dict({**tree.config.to_dict(), "max_metric_drop": budget, "confidence": 0.95}),
        evaluate=evaluate,
        take_outcomes=lambda metric: Outcomes("binary", tuple(last), float(np.mean(last)), len(last)),
        **inputs,
    )
    while engine.start_round():
        subject.recover(model, len(engine.record.rounds))
        engine.decide()
    return engine.record
