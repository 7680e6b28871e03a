"""What the tests of promises share: models whose outcomes on the judging examples are given by their depth."""

from __future__ import annotations

import torch

from hf_mpruner import PruningConfig
from hf_mpruner.engine import PruningEngine
from hf_mpruner.features import measure_similarity
from hf_mpruner.guarantee import Outcomes


def zeros_and_ones(right, num_examples, lost=0):
    """Of the first `right` examples that the uncut model has right, `lost` are wrong now; nothing else changes."""
    values = [1.0] * (right - lost) + [0.0] * (lost + num_examples - right)
    return Outcomes("binary", tuple(values), (right - lost) / num_examples, num_examples)


class Judged:
    """Stands for an evaluation: accuracy and outcomes by the number of layers of the model as it is.

    Args:
        depth (callable): returns that number.
        lost (`dict`): by that number, how many examples the model has wrong that the uncut one has right.
    """

    def __init__(self, depth, lost, num_examples=4000):
        self.depth, self.lost, self.num_examples = depth, lost, num_examples
        self.right, self.asked = int(0.9 * num_examples), []

    def evaluate(self, *_):
        lost = self.lost.get(self.depth(), 0)
        return {"accuracy": float("nan") if lost is None else (self.right - lost) / self.num_examples}

    def outcomes(self, metric):
        self.asked.append((metric, self.depth()))
        return zeros_and_ones(self.right, self.num_examples, self.lost.get(self.depth(), 0))


def make_engine(model, stack, lost, *, num_examples=4000, record=None, judged=None, trains=False, **config):
    """An engine whose rounds are judged by `Judged`; every layer is alike: of 4, k = 1 keeps [0], k = 2 keeps [0, 2]."""
    batches = [{"input_ids": torch.randint(0, 99, (8, 5), generator=torch.Generator().manual_seed(1))}]
    judged = judged or Judged(lambda: len(model.get_submodule(stack)), lost, num_examples)
    settings = {"threshold": 0.0, "max_metric_drop": 0.02, "confidence": 0.95, "calibration_samples": 8, **config}
    return PruningEngine(
        model,
        PruningConfig(**settings),
        measure=lambda stacks: measure_similarity(model, batches, stacks),
        evaluate=judged.evaluate,
        take_outcomes=judged.outcomes,
        trains=trains,
        record=record,
    )


def run(engine):
    """All rounds, without training."""
    while engine.start_round():
        engine.decide()
    return engine
