"""A criterion of the user's own: what it may return, what is refused, and what it is refused for want of."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from hf_mpruner import CalibrationError, Criterion, PruningConfig, find_block_stacks, prune_, register_criterion
from hf_mpruner.criteria import CriterionInputs, find_criterion, known_criteria, registry, score_layers

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 50}
PATH = "encoder.layer"


@pytest.fixture(scope="module")
def model() -> BertModel:
    return BertModel(BertConfig(num_hidden_layers=3, **SIZES))


@pytest.fixture(autouse=True)
def leave_no_criterion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))


def returning(found: Any, **attributes: Any) -> Criterion:
    """A criterion that says `found`, whatever the model."""
    return type("Own", (Criterion,), {"name": "own", "score": lambda self, inputs: found, **attributes})()


def scored(model: nn.Module, criterion: Criterion, **inputs: Any) -> tuple[float | None, ...]:
    stacks = find_block_stacks(model)
    return score_layers(criterion, CriterionInputs(model, stacks, **inputs)).scores[stacks[0].path].values


@pytest.mark.parametrize(
    "values",
    [[1, 2.5, 3], (1, 2.5, 3), torch.tensor([1, 2.5, 3]), numpy.array([1, 2.5, 3]), iter([1, 2.5, 3])],
    ids=["list", "tuple", "tensor", "array", "iterator"],
)
def test_one_number_a_layer_in_any_form_is_taken(model: BertModel, values: Any) -> None:
    assert scored(model, returning({PATH: values})) == (1.0, 2.5, 3.0)


def test_a_layer_without_a_score_stays(model: BertModel) -> None:
    assert scored(model, returning({PATH: [None, 0.1, None]})) == (None, 0.1, None)


@pytest.mark.parametrize(
    ("found", "error", "says"),
    [
        ([1, 2, 3], TypeError, r"'own' returned a list: return a dict from stack paths.*encoder\.layer"),
        (None, TypeError, "returned a NoneType"),
        ({"decoder": [1, 2, 3]}, ValueError, r"gave no scores for 'encoder\.layer', only for \['decoder'\]"),
        ({PATH: [1, 2]}, ValueError, r"gave 2 scores for 'encoder\.layer', which has 3 layers: give one a layer"),
        ({PATH: torch.ones(4)}, ValueError, "gave 4 scores"),
        ({PATH: torch.ones(3, 2)}, ValueError, "are not one number a layer"),
        ({PATH: 0.5}, ValueError, "are not one number a layer"),
        ({PATH: [1, float("nan"), 3]}, CalibrationError, r"score of layer 1 of 'encoder\.layer' is nan"),
        ({PATH: [1, 2, float("inf")]}, CalibrationError, "score of layer 2.*is inf"),
        ({PATH: ["low", 1, 2]}, ValueError, "low"),
    ],
)
def test_anything_else_is_refused_with_what_to_return(model: BertModel, found: Any, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        scored(model, returning(found))


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        ("data", "'own' measures on calibration data: pass calibration"),
        ("loss", "'own' measures on calibration data"),
        ("gradients", "'own' measures on calibration data"),
        ("metric", "'own' evaluates the model without each layer: pass evaluate"),
    ],
)
def test_what_it_needs_and_nobody_gave_is_named(model: BertModel, needs: str, says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        scored(model, returning({PATH: [1, 2, 3]}, needs=frozenset({needs})))


def test_gradients_of_codes_are_refused() -> None:
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=2, **SIZES))
    stacks = find_block_stacks(model)
    dense = model.bert.encoder.layer[0].output.dense
    dense.weight = nn.Parameter(dense.weight.detach().to(torch.int8), requires_grad=False)
    inputs = CriterionInputs(model, stacks, [{}])
    with pytest.raises(CalibrationError, match=r"'own' needs gradients.*torch\.int8.*without quantisation"):
        score_layers(returning({}, needs=frozenset({"gradients"})), inputs)


def test_data_that_runs_out_is_said(model: BertModel) -> None:
    with pytest.raises(CalibrationError, match="gave no batch"):
        scored(model, find_criterion("block_influence"), batches=[])
    once = iter([{"input_ids": torch.ones(1, 3, dtype=torch.long)}])
    assert len(scored(model, find_criterion("block_influence"), batches=once)) == 3
    with pytest.raises(CalibrationError, match="was it read before"):
        scored(model, find_criterion("block_influence"), batches=once)


def test_a_registered_name_is_known_everywhere_and_replaces_one_before(model: BertModel) -> None:
    @register_criterion
    class Backwards(Criterion):
        name = "tail"

        def score(self, inputs: CriterionInputs) -> dict[str, range]:
            return {stack.path: range(stack.depth) for stack in inputs.stacks}

    assert isinstance(find_criterion("tail"), Backwards)
    assert known_criteria().count("tail") == 1
    small = BertModel(BertConfig(num_hidden_layers=3, **SIZES))
    rows = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}] * 4
    report = prune_(small, PruningConfig(criterion="tail", target_num_layers=2), calibration=rows)
    assert report.plan.kept == {PATH: (1, 2)}


def test_a_class_of_a_module_is_imported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_measures")
    module.Mine = type("Mine", (Criterion,), {"name": "mine", "score": lambda self, inputs: {}})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_measures", module)
    assert find_criterion("my_measures:Mine").name == "mine"
    for wrong in ("my_measures:Other", "no_such_module:Mine"):
        with pytest.raises(ValueError, match=f"criterion='{wrong}' cannot be imported"):
            find_criterion(wrong)


@pytest.mark.parametrize("wrong", [object(), 3, type("Nameless", (Criterion,), {"score": lambda self, inputs: {}})])
def test_what_is_no_criterion_is_not_registered(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"is no criterion: pass a subclass of hf_mpruner\.Criterion with a name"):
        register_criterion(wrong)
