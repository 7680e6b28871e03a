"""docs/criteria.md says of every criterion what the code says, and what it says of costs is what is counted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_mpruner import find_block_stacks
from hf_mpruner.criteria import CriterionInputs, find_criterion, score_layers
from hf_mpruner.criteria.registry import _BUILT_IN

PAGE = (Path(__file__).parents[2] / "docs" / "criteria.md").read_text(encoding="utf-8")
DEPTH, REMOVED = 5, 2
R_TIMES_L = 5 + 4
# Forward and backward passes over the data for five layers of which two go.
COUNTED = {
    "0": (0, 0),
    "1": (1, 0),
    "1 + 1 backward": (1, 1),
    "L": (DEPTH, 0),
    "R x L": (R_TIMES_L, 0),
    "R x (L + 1)": (6 + 5, 0),
    "L + 1 evaluations": (DEPTH + 1, 0),
}


def read_table() -> dict[str, list[str]]:
    """The cells of each row after the criterion's name."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_the_table_has_every_criterion_in_order() -> None:
    assert list(read_table()) == list(_BUILT_IN)


@pytest.mark.parametrize("name", _BUILT_IN)
def test_a_row_is_what_the_code_says(name: str) -> None:
    criterion = find_criterion(name)
    _, _, cost, needs, source = read_table()[name]
    assert criterion.name == name
    assert cost == criterion.cost
    assert needs == (", ".join(sorted(criterion.needs)) or "nothing")
    papers = set(re.findall(r"\d{4}\.\d{5}", criterion.source))
    assert papers == set(re.findall(r"\d{4}\.\d{5}", source))
    assert papers or source == criterion.source
    assert criterion.title


@pytest.fixture(scope="module")
def inputs() -> CriterionInputs:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 50}
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=DEPTH, **sizes))
    batches = [{"input_ids": torch.randint(2, 50, (4, 6)), "labels": torch.randint(0, 2, (4,))} for _ in range(2)]

    def evaluate() -> float:
        with torch.no_grad():
            return -sum(float(model(**batch).loss) for batch in batches)

    stacks = find_block_stacks(model)
    return CriterionInputs(model, stacks, batches, evaluate=evaluate, num_removed={stacks[0].path: REMOVED})


@pytest.mark.parametrize("name", _BUILT_IN)
def test_a_cost_is_what_is_counted(inputs: CriterionInputs, name: str) -> None:
    criterion = find_criterion(name)
    cost = score_layers(criterion, inputs).cost
    if name == "laco":  # as many trials as its walk takes, each merge tried once
        assert cost.forward_passes <= 1 + REMOVED * DEPTH + DEPTH
        assert criterion.cost == f"R x L on {criterion.num_examples} examples"
    elif name == "mixture":  # plans that several criteria propose are run once
        assert R_TIMES_L < cost.forward_passes <= REMOVED * (DEPTH + 6) + 6
        assert cost.backward_passes == 1
        assert criterion.cost == "at most R x (L + 6) + 6 + 1 backward"
    else:
        assert (cost.forward_passes, cost.backward_passes) == COUNTED[criterion.cost]
