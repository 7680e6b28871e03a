"""`mixture`: its proposals are those of its members, their values those of models that were really cut, the best one goes."""

from __future__ import annotations

import copy
import itertools
import json
import logging

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_mpruner import PruningPlan, apply_plan_, find_block_stacks
from hf_mpruner.criteria import (
    Criterion,
    CriterionInputs,
    LayerScores,
    as_recorded,
    find_criterion,
    from_original,
    plan_layers,
    score_layers,
    to_original,
)
from hf_mpruner.criteria.mixture import Mixture
from hf_mpruner.criteria.output_change import angular
from hf_mpruner.errors import CalibrationError
from hf_mpruner.runtime import SingleProcess

GPT2, BERT = "transformer.h", "bert.encoder.layer"


class Sharded(SingleProcess):
    """Forward passes communicate; nobody else is there."""

    equal_forwards = True

    def __init__(self, name):
        self.name = name


class Fixed(Criterion):
    """Removes the layers that it was made with."""

    needs = frozenset()

    def __init__(self, name, *layers):
        self.name, self.layers = name, layers

    def score(self, inputs):
        return {
            stack.path: [float(layer not in self.layers) for layer in range(stack.depth)] for stack in inputs.stacks
        }


def stretched(model, seed=1):
    """Weights far from those that all layers begin with, so that layers differ."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.add_(torch.randn(weight.shape, generator=draw) * weight.std() * 4)
    return model.eval()


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=5, n_head=2)
    return stretched(GPT2LMHeadModel(config), seed=9)


@pytest.fixture(scope="module")
def texts():
    draw = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(2, 60, (size, 8), generator=draw)} for size in (4, 4, 3)]


@pytest.fixture(scope="module")
def stacks(gpt2):
    return find_block_stacks(gpt2)


def cut(model, stacks, removed):
    copied = copy.deepcopy(model)
    kept = [layer for layer in range(stacks[0].depth) if layer not in removed]
    apply_plan_(copied, PruningPlan.from_kept({stacks[0].path: kept}, stacks))
    return copied


def loss_by_hand(model, texts):
    """Mean over the examples."""
    with torch.no_grad():
        losses = [float(model(**batch, labels=batch["input_ids"]).loss) * len(batch["input_ids"]) for batch in texts]
    return sum(losses) / sum(len(batch["input_ids"]) for batch in texts)


@pytest.fixture(scope="module")
def scored(gpt2, texts, stacks):
    inputs = CriterionInputs(gpt2, stacks, texts, num_removed={GPT2: 3})
    return score_layers(Mixture(["cka", "block_influence", "taylor", "tail"]), inputs)


def test_each_proposal_is_a_members_own_and_its_value_that_of_a_really_cut_model(scored, gpt2, texts, stacks):
    details = scored.scores[GPT2].details
    assert (details["judged_by"], details["left_out"]) == ("loss", {})
    inputs = CriterionInputs(gpt2, stacks, texts, num_removed={GPT2: 3})
    names = ["greedy_loss", "cka", "block_influence", "taylor", "tail"]
    alone = {name: score_layers(find_criterion(name), inputs) for name in names}
    for number in (1, 2, 3):
        wanted: dict[tuple[int, ...], list[str]] = {}
        for name, found in alone.items():
            plan = plan_layers(find_criterion(name), found, stacks, {GPT2: number})
            wanted.setdefault(plan.stacks[GPT2].removed, []).append(name)
        proposals = [one for one in details["proposals"] if one["num_removed"] == number]
        assert {tuple(one["layers"]): one["members"] for one in proposals} == wanted
        for one in proposals:
            assert one["value"] == loss_by_hand(cut(gpt2, stacks, one["layers"]), texts)
        best = min(proposals, key=lambda one: one["value"])
        taken = plan_layers(Mixture(["tail"]), scored, stacks, {GPT2: number}).stacks[GPT2].removed
        assert taken == tuple(best["layers"])
    assert len({tuple(one["layers"]) for one in details["proposals"]}) > 5  # or there was nothing to choose from


def test_no_plan_is_run_twice(scored):
    distinct = {tuple(one["layers"]) for one in scored.scores[GPT2].details["proposals"]}
    greedy = 5 + 4 + 3  # the plans of greedy removal, of which its own proposals are a part
    others = [one for one in scored.scores[GPT2].details["proposals"] if "greedy_loss" not in one["members"]]
    assert scored.cost.forward_passes <= 1 / 3 + 3 + greedy + len(others)
    assert len(distinct) == len(scored.scores[GPT2].details["proposals"])


def test_a_plan_that_greedy_removal_does_not_find_is_taken_if_it_is_better(gpt2, texts, stacks):
    losses = {three: loss_by_hand(cut(gpt2, stacks, three), texts) for three in itertools.combinations(range(5), 3)}
    best = min(losses, key=losses.__getitem__)
    worst = max(losses, key=losses.__getitem__)
    inputs = CriterionInputs(gpt2, stacks, texts, num_removed={GPT2: 3})
    mixture = Mixture([Fixed("worst", *worst), Fixed("oracle", *best), Fixed("echo", *worst)])
    found = score_layers(mixture, inputs)
    of_three = [one for one in found.scores[GPT2].details["proposals"] if one["num_removed"] == 3]
    assert of_three[0]["members"] == ["oracle"]  # greedy removal must not find it, or this shows nothing
    assert of_three[0]["value"] == losses[best]
    assert of_three[-1]["members"] == ["worst", "echo"]
    assert mixture.select(found.scores[GPT2], stacks[0], 3) == best
    # what must stay is in none of the plans that are taken then
    assert not set(mixture.select(found.scores[GPT2], stacks[0], 3, protected=best[:1])) & {best[0]}


def test_of_equal_values_the_plan_of_more_members_is_taken(gpt2, texts, stacks):
    inputs = CriterionInputs(
        gpt2,
        stacks,
        texts,
        compute_loss=lambda model, batch: model(**batch).logits.sum() * 0 + 1,
        num_removed={GPT2: 2},
    )
    members = [Fixed("one", 0, 1), Fixed("two", 1, 2), Fixed("three", 1, 2)]
    found = score_layers(Mixture(members), inputs).scores[GPT2]
    assert Mixture(members).select(found, stacks[0], 2) == (1, 2)


def test_scores_go_through_a_record_in_another_numbering(scored, stacks):
    recorded = json.loads(json.dumps(to_original(scored, {GPT2: [0, 2, 4, 6, 8]})))
    back = from_original(recorded)
    assert recorded["scores"][GPT2]["layers"] == [0, 2, 4, 6, 8]
    for number in (1, 2, 3):
        asked = (stacks, {GPT2: number})
        before = plan_layers(Mixture(), as_recorded(scored), *asked)
        assert plan_layers(Mixture(), back, *asked).kept == before.kept


def test_values_are_the_shares_of_the_taken_plans_that_keep_a_layer(scored, stacks):
    taken = [Mixture().select(scored.scores[GPT2], stacks[0], number) for number in (1, 2, 3)]
    wanted = tuple(sum(layer not in plan for plan in taken) / 3 for layer in range(5))
    assert scored.scores[GPT2].values == wanted


def test_without_labels_the_change_of_the_output_judges(make_bert, caplog):
    model = stretched(make_bert())
    draw = torch.Generator().manual_seed(2)
    batches = [{"input_ids": torch.randint(2, 60, (5, 6), generator=draw)} for _ in range(2)]
    stacks = find_block_stacks(model)
    inputs = CriterionInputs(model, stacks, batches, num_removed={stacks[0].path: 2})
    with caplog.at_level(logging.WARNING):
        found = score_layers(Mixture(["cka", "taylor", "tail"]), inputs).scores[stacks[0].path]
    assert found.details["judged_by"] == "output_change"
    assert found.details["left_out"] == {"taylor": "there is no loss"}
    assert "there is no loss" in caplog.text
    assert found.details["proposals"][0]["members"][0] == "output_change"
    for one in found.details["proposals"]:
        smaller = cut(model, stacks, one["layers"])
        with torch.no_grad():
            rows = [angular(model(**batch).logits, smaller(**batch).logits) for batch in batches]
        assert one["value"] == pytest.approx(float(torch.cat(rows).mean()), rel=1e-5)


def test_what_cannot_be_had_of_parts_of_layers_is_left_out(gpt2, texts, stacks):
    inputs = CriterionInputs(gpt2, stacks, texts, num_removed={GPT2: 1})
    inputs.runtime = Sharded("FSDP2")
    found = score_layers(Mixture(["taylor", "tail"]), inputs).scores[GPT2]
    assert found.details["left_out"] == {"taylor": "FSDP2 gives no gradients of single layers."}


def test_a_loss_that_is_not_finite_is_an_error(gpt2, texts, stacks):
    inputs = CriterionInputs(
        gpt2, stacks, texts, compute_loss=lambda model, batch: model(**batch).logits.sum() * float("nan")
    )
    with pytest.raises(CalibrationError, match="not finite"):
        score_layers(Mixture(["tail"]), inputs)


def test_a_number_that_was_not_asked_for_goes_by_the_shares(stacks):
    details = {
        "judged_by": "loss",
        "proposals": [{"num_removed": 1, "layers": [2], "members": ["tail"], "value": None}],
    }
    scores = LayerScores(GPT2, (1.0, 0.5, 0.7, 0.2, 1.0), details=details)
    assert Mixture().select(scores, stacks[0], 2) == (1, 3)
    assert Mixture().select(scores, stacks[0], 1) == (3,)  # not the plan without a value
    assert Mixture().select(scores, stacks[0], 0) == ()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "members is empty"),
        (["laco"], "'laco' merges layers"),
        ([Mixture()], "'mixture' is a mixture itself"),
        (["cak"], "Did you mean 'cka'"),
    ],
)
def test_members_that_cannot_propose_are_refused(members, message):
    with pytest.raises(ValueError, match=message):
        Mixture(members)
