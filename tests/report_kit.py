"""Records of runs that never ran, for what draws them: every value is set here, so that a test can look for it."""

from __future__ import annotations

import torch

from hf_mpruner.record import Measurement, PruningRecord, Round
from hf_mpruner.report import PruningReport
from hf_mpruner.similarity import PROTOCOLS, SimilarityMatrix

LAYER_PARAMETERS = 1_000


def similarity(path, layers, seed=0):
    """A matrix of the given original layers: values between 0.9 and 1, ones on the diagonal."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.rand(len(layers), len(layers), generator=generator, dtype=torch.float64).triu(1) / 10
    values = 1 - half - half.T
    return SimilarityMatrix(values, PROTOCOLS["default"], 64, path, tuple(layers)).to_dict()


def measurement(kept, metric=None, interval=None, **facts):
    """Of a model that has 500 parameters and 1,000 for each layer, four bytes each."""
    parameters = 500 + LAYER_PARAMETERS * sum(len(layers) for layers in kept.values())
    return Measurement(parameters, 4 * parameters, metric, 1.5, interval=interval, **facts)


def build_report(depths, rounds, *, baseline=0.94, measured_after=True, halfwidth=None, **facts):
    """A finished run: `rounds` are (kept layers of each stack, verdict, metric) in the original numbering."""

    def interval(metric):
        return None if halfwidth is None or metric is None else [metric - halfwidth, metric + halfwidth]

    current = {path: list(range(depth)) for path, depth in depths.items()}
    settings = {
        "metric": "accuracy",
        "greater_is_better": True,
        "config": {"max_metric_drop": 0.02, "threshold": 0.98},
    }
    record = PruningRecord(dict(depths), **{**settings, **facts})
    record.baseline = measurement(current, baseline, interval(baseline))
    for number, (kept, verdict, metric) in enumerate(rounds, 1):
        seed = sum(map(len, current.values()))  # a rejected cut leaves the model as it was, so it is not measured anew
        after = measurement(kept, metric, interval(metric))
        drop = None if metric is None or baseline is None else baseline - metric
        record.rounds.append(
            Round(
                number, 1, kept, {path: [layers[1:3]] for path, layers in current.items()},
                {path: similarity(path, layers, seed) for path, layers in current.items() if len(layers) > 1},
                after, "rejected" if verdict == "refused" else verdict, drop,
                f"reason of round {number}", 10 * number, 10 * number + 5, 1.0, 2.0, verdict == "refused",
            )
        )  # fmt: skip
        current = kept if verdict in ("accepted", "unjudged") else current
    if measured_after:
        record.similarity_after = {
            path: similarity(path, layers, sum(map(len, current.values())))
            for path, layers in current.items()
            if len(layers) > 1
        }
    return PruningReport(record)


def bert_report(**facts):
    """Six layers; a rejected cut, an accepted one, and one more that was rejected."""
    path = "bert.encoder.layer"
    rounds = [
        ({path: [0, 2, 4]}, "rejected", 0.81),
        ({path: [0, 1, 2, 4, 5]}, "accepted", 0.9325),
        ({path: [0, 2, 5]}, "rejected", 0.78),
    ]
    return build_report({path: 6}, rounds, **{"source_model": "google-bert/bert-base-uncased", **facts})
