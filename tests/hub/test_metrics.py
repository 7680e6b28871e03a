"""Metrics of evaluate by their plain names, from Spaces on the loopback; what is said when they are not there."""

from __future__ import annotations

SCRIPT = b"""
import datasets
import evaluate


class Share(evaluate.Metric):
    def _info(self):
        number = datasets.Value("int32")
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions, references):
        return {"share": sum(p == r for p, r in zip(predictions, references)) / len(references)}
"""


def compute(name):
    import numpy as np
    from transformers import EvalPrediction

    from hf_mpruner import make_compute_metrics

    function = make_compute_metrics(name)
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])
    return {"values": function(EvalPrediction(logits, np.array([0, 0]))), "sources": function.sources}


def test_a_plain_name_is_a_space_and_stays_known_when_the_hub_is_gone(hub, client):
    hub.add_repo("evaluate-metric/share", {"share.py": SCRIPT}, kind="space")
    found = client.call(compute, name="share")
    assert found["values"] == {"share": 0.5}
    assert found["sources"]["share"]["name"] == "share"
    assert client.call(compute, name="evaluate-metric/share")["values"] == {"share": 0.5}
    fault = hub.faults.add("*", r"evaluate-metric/share", status=503, times=99)
    assert client.call(compute, name="share")["values"] == {"share": 0.5}  # from the cache
    assert fault.used


def test_a_name_that_the_hub_does_not_know(hub, client):
    failure = client.fails(compute, name="acuracy")
    assert failure.type == "FileNotFoundError"
    assert "Did you mean 'accuracy'? Its script comes from the Hub (Space evaluate-metric/acuracy)." in failure.message


def test_a_hub_that_does_not_answer_is_named(hub, client):
    hub.add_repo("evaluate-metric/rest", {"rest.py": SCRIPT.replace(b"Share", b"Rest")}, kind="space")
    hub.faults.add("*", r"evaluate-metric/rest", status=503, times=99)
    failure = client.fails(compute, name="rest")
    assert failure.type == "FileNotFoundError"
    assert "No metric 'rest' could be loaded" in failure.message
    assert "Without a network name a folder" in failure.message
    hub.faults.clear()
    assert client.call(compute, name="rest")["values"] == {"share": 0.5}
