"""Criteria that run the model without layers, or differentiate its loss: against models that were really cut."""

from __future__ import annotations

import copy
import itertools
import math
import weakref

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_mpruner import PruningPlan, apply_plan_, find_block_stacks
from hf_mpruner.criteria import CriterionInputs, find_criterion, hold_protected, plan_layers, score_layers
from hf_mpruner.criteria.output_change import OutputChange
from hf_mpruner.errors import CalibrationError

BERT = "bert.encoder.layer"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def text_batches(sizes=(4, 4, 3), labels=None, seed=0):
    """Padded ones; the last of another size."""
    draw = generator(seed)
    batches = []
    for size in sizes:
        ids = torch.randint(2, 60, (size, 8), generator=draw)
        mask = (torch.arange(8) < torch.randint(4, 9, (size, 1), generator=draw)).long()
        batch = {"input_ids": ids * mask, "attention_mask": mask}
        if labels == "classes":
            batch["labels"] = torch.randint(0, 3, (size,), generator=draw)
        elif labels == "texts":
            batch["labels"] = torch.randint(2, 60, (size, 5), generator=draw).masked_fill(
                torch.arange(5) >= torch.randint(2, 6, (size, 1), generator=draw), -100
            )
        batches.append(batch)
    return batches


def stretched(model, seed=1):
    """Weights far from those that all layers begin with, so that layers differ."""
    draw = generator(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.add_(torch.randn(weight.shape, generator=draw) * weight.std() * 4)
    return model.eval()


def make_gpt2(depth=4):
    torch.manual_seed(1)
    return stretched(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=depth, n_head=2)))


def make_t5():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "decoder_start_token_id": 0}
    return stretched(T5ForConditionalGeneration(T5Config(num_layers=4, num_decoder_layers=3, **sizes)))


def make_swin():
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "num_heads": [2, 2], "window_size": 2}
    return stretched(SwinForImageClassification(SwinConfig(**sizes, depths=[1, 7], num_labels=3)))


FOUND = weakref.WeakKeyDictionary()


def stacks_of(model):
    if model not in FOUND:
        FOUND[model] = find_block_stacks(model)
    return list(FOUND[model])


def inputs_of(model, batches, **more):
    return CriterionInputs(model=model, stacks=stacks_of(model), batches=batches, **more)


def cut(model, path, removed):
    """A copy without some layers."""
    copied, stacks = copy.deepcopy(model), stacks_of(model)
    depth = next(stack.depth for stack in stacks if stack.path == path)
    apply_plan_(copied, PruningPlan.from_kept({path: [i for i in range(depth) if i not in removed]}, stacks))
    return copied


def loss_by_hand(model, batches):
    """Mean over the examples of the batches' losses."""
    with torch.no_grad():
        losses = [float(model(**batch).loss) * len(batch["input_ids"]) for batch in batches]
    return sum(losses) / sum(len(batch["input_ids"]) for batch in batches)


def scored(name, inputs):
    return score_layers(find_criterion(name), inputs)


# -- loss -------------------------------------------------------------------------------------------------------------


def test_loss_is_that_of_really_cut_models(make_bert):
    model, batches = stretched(make_bert()), text_batches(labels="classes")
    result = scored("loss", inputs_of(model, batches))
    wanted = [loss_by_hand(cut(model, BERT, [layer]), batches) for layer in range(4)]
    assert result.scores[BERT].values == tuple(wanted)
    assert len(set(wanted)) == 4
    assert result.cost.forward_passes == 4
    assert result.cost.backward_passes == 0


def test_both_stacks_of_an_encoder_decoder_are_scored_with_the_other_whole():
    model, batches = make_t5(), text_batches(labels="texts")
    result = scored("loss", inputs_of(model, batches))
    for path, depth in (("encoder.block", 4), ("decoder.block", 3)):
        wanted = [loss_by_hand(cut(model, path, [layer]), batches) for layer in range(depth)]
        assert result.scores[path].values == tuple(wanted)
    assert result.cost.forward_passes == 7


def test_a_language_model_is_measured_on_its_own_texts_without_padding():
    model, batches = make_gpt2(), text_batches()
    ids = [
        {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)} for batch in batches
    ]
    inputs = inputs_of(model, batches)
    found = scored("loss", inputs).scores["transformer.h"].values
    assert found == tuple(loss_by_hand(cut(model, "transformer.h", [layer]), ids) for layer in range(4))
    # labels that are there are used: here all positions count
    every = [{**batch, "labels": batch["input_ids"]} for batch in batches]
    assert scored("loss", inputs_of(model, every)).scores["transformer.h"].values != found


def test_the_users_own_loss_is_what_counts(make_bert):
    model, batches = stretched(make_bert()), text_batches()
    inputs = inputs_of(model, batches, compute_loss=lambda model, batch: model(**batch).logits.square().mean())
    found = scored("loss", inputs).scores[BERT].values
    with torch.no_grad():
        without = cut(model, BERT, [2])
        wanted = (
            sum(float(without(**batch).logits.square().mean()) * len(batch["input_ids"]) for batch in batches) / 11
        )
    assert found[2] == wanted


# -- greedy removal ---------------------------------------------------------------------------------------------------


def greedy_by_hand(model, path, depth, number, measure):
    """Layers in the order of removal, by cutting a copy for every candidate."""
    gone, values = [], []
    for _ in range(number):
        found = {layer: measure(cut(model, path, [*gone, layer])) for layer in range(depth) if layer not in gone}
        best = min(found, key=lambda layer: (found[layer], -layer))
        gone.append(best)
        values.append(found[best])
    return tuple(gone), values


def test_greedy_loss_removes_as_a_loop_over_really_cut_models():
    model, batches = make_gpt2(5), text_batches()
    labelled = [
        {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)} for batch in batches
    ]
    path = "transformer.h"
    inputs = inputs_of(model, batches, num_removed={path: 3})
    result = scored("greedy_loss", inputs)
    order, values = greedy_by_hand(model, path, 5, 3, lambda copied: loss_by_hand(copied, labelled))
    scores = result.scores[path]
    assert scores.order == order
    assert [scores.values[layer] for layer in order] == values
    assert [len(step) for step in scores.details["steps"]] == [5, 4, 3]
    assert result.cost.forward_passes == 5 + 4 + 3
    plan = plan_layers(find_criterion("greedy_loss"), result, inputs.stacks, {path: 2})
    assert plan.stacks[path].removed == tuple(sorted(order[:2]))
    one_shot = scored("loss", inputs).scores[path].ranking[:3]
    assert set(one_shot) != set(order)  # or the test could not tell the two apart


@pytest.mark.filterwarnings("ignore:generate.. keeps keys:UserWarning")
def test_greedy_removal_stops_where_it_was_told_to_in_each_stack():
    model, batches = make_t5(), text_batches(labels="texts")
    result = scored("greedy_loss", inputs_of(model, batches, num_removed={"encoder.block": 2}))
    order, _ = greedy_by_hand(model, "encoder.block", 4, 2, lambda copied: loss_by_hand(copied, batches))
    assert result.scores["encoder.block"].order == order
    decoder = result.scores["decoder.block"]
    assert decoder.order == ()
    assert decoder.values == scored("loss", inputs_of(model, batches)).scores["decoder.block"].values
    assert result.cost.forward_passes == 4 + 3 + 3


def test_without_a_number_all_but_one_layer_may_go(make_bert):
    model, batches = stretched(make_bert()), text_batches((4,), "classes")
    scores = scored("greedy_loss", inputs_of(model, batches)).scores[BERT]
    assert len(scores.order) == 3
    kept = ({0, 1, 2, 3} - set(scores.order)).pop()
    assert scores.values[kept] is not None


def test_protected_layers_are_there_while_others_are_removed(make_bert):
    model, batches = stretched(make_bert()), text_batches(labels="classes")
    free = scored("greedy_loss", inputs_of(model, batches)).scores[BERT].order
    held = free[0]
    inputs = inputs_of(model, batches, num_removed={BERT: 3})
    inputs.stacks = hold_protected(inputs.stacks, {BERT: [held]})
    scores = scored("greedy_loss", inputs).scores[BERT]
    assert held not in scores.order
    assert scores.values[held] is None
    first = [layer for layer in range(4) if layer != held]
    losses = {layer: loss_by_hand(cut(model, BERT, [layer]), batches) for layer in first}
    assert scores.order[0] == min(first, key=losses.__getitem__)


def test_layers_that_go_in_pairs_are_removed_in_pairs():
    model = make_swin()
    images = {"pixel_values": torch.randn(4, 3, 16, 16, generator=generator()), "labels": torch.tensor([0, 1, 2, 0])}
    inputs = inputs_of(model, [images])
    stack = max(inputs.stacks, key=lambda stack: stack.depth)
    assert stack.period == 2
    assert 0 in stack.pinned
    inputs.stacks, inputs.num_removed = [stack], {stack.path: 3}
    result = scored("greedy_loss", inputs)
    scores = result.scores[stack.path]

    def loss(removed):
        with torch.no_grad():
            return float(cut(model, stack.path, removed)(**images).loss)

    pairs = {(layer, layer + 1): loss([layer, layer + 1]) for layer in range(1, 6)}
    best = min(pairs, key=pairs.__getitem__)
    assert scores.order[:2] == best
    assert scores.details["steps"][0] == {f"{one}+{other}": value for (one, other), value in pairs.items()}
    assert scores.values[0] is None
    plan = plan_layers(find_criterion("greedy_loss"), result, inputs.stacks, {stack.path: 3})
    assert len(plan.stacks[stack.path].removed) == 3


# -- output_change ----------------------------------------------------------------------------------------------------


def angle(one, other):
    cosine = nn.functional.cosine_similarity(one.double(), other.double(), dim=-1).clamp(-1, 1)
    return cosine.acos() / math.pi


def divergence(one, other):
    p, q = one.double().softmax(-1), other.double().softmax(-1)
    return (p * (p / q).log()).sum(-1)


@pytest.mark.parametrize(("distance", "by_hand"), [("angular", angle), ("kl", divergence)])
def test_output_change_is_the_distance_of_outputs_of_really_cut_models(distance, by_hand):
    model, batches, path = make_gpt2(), text_batches(), "transformer.h"

    def change(copied):
        parts = []
        with torch.no_grad():
            for batch in batches:
                real = batch["attention_mask"].bool()
                parts.append(by_hand(model(**batch).logits[real], copied(**batch).logits[real]))
        return float(torch.cat(parts).mean())

    result = score_layers(OutputChange(distance), inputs_of(model, batches, num_removed={path: 2}))
    order, values = greedy_by_hand(model, path, 4, 2, change)
    scores = result.scores[path]
    assert scores.order == order
    assert [scores.values[layer] for layer in order] == pytest.approx(values, rel=1e-4)
    assert result.cost.forward_passes == (4 + 1) + (3 + 1)


def test_output_change_of_decoders_counts_real_targets_only():
    model, batches = make_t5(), text_batches(labels="texts")
    scores = scored("output_change", inputs_of(model, batches, num_removed={"decoder.block": 1})).scores
    for path in ("encoder.block", "decoder.block"):
        copied, parts = cut(model, path, [1]), []
        with torch.no_grad():
            for batch in batches:
                real = batch["labels"] != -100
                parts.append(angle(model(**batch).logits[real], copied(**batch).logits[real]))
        assert scores[path].details["steps"][0]["1"] == pytest.approx(float(torch.cat(parts).mean()), rel=1e-4)


def test_output_change_needs_no_labels_and_no_head(make_bert):
    model, batches = stretched(make_bert()), text_batches()
    logits = scored("output_change", inputs_of(model, batches)).scores[BERT]
    hidden = scored("output_change", inputs_of(model.bert, batches)).scores["encoder.layer"]
    assert sorted(logits.order) != [] != sorted(hidden.order)
    assert logits.values != hidden.values


def test_small_angles_are_not_lost_in_rounding():
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-2.0, 0.0]])
    other = torch.tensor([[1.0, 1e-5], [3.0, 0.0], [1.0, 0.0]])
    from hf_mpruner.criteria.output_change import angular

    assert angular(one, other).tolist() == pytest.approx([1e-5 / math.pi, 0.0, 1.0], rel=1e-3, abs=1e-9)


def test_output_change_says_what_it_cannot_compare(make_bert):
    with pytest.raises(CalibrationError, match="one number where output_change compares directions"):
        scored("output_change", inputs_of(make_bert(num_labels=1), text_batches()))
    with pytest.raises(ValueError, match="distance='cosine' is not known: pass one of 'angular', 'kl'"):
        OutputChange("cosine")


# -- metric_drop ------------------------------------------------------------------------------------------------------


def test_metric_drop_is_the_fall_of_the_metric_of_really_cut_models(make_bert):
    model, batches = stretched(make_bert()), text_batches(labels="classes")
    calls = []

    def accuracy(model=model):
        calls.append(1)
        with torch.no_grad():
            right = [(model(**batch).logits.argmax(-1) == batch["labels"]).sum() for batch in batches]
        return float(sum(right)) / 11

    result = scored("metric_drop", inputs_of(model, None, evaluate=accuracy))
    whole = accuracy(model)
    wanted = [whole - accuracy(cut(model, BERT, [layer])) for layer in range(4)]
    assert result.scores[BERT].values == tuple(wanted)
    assert len(calls) == 5 + 5


def test_an_evaluation_of_another_object_is_noticed(make_bert):
    model, other = make_bert(), make_bert()
    batch = text_batches((4,))[0]
    with pytest.raises(CalibrationError, match=r"encoder.layer.0 is never run on the evaluation's data"):
        scored("metric_drop", inputs_of(model, None, evaluate=lambda: other(**batch).logits.sum().item()))


# -- taylor -----------------------------------------------------------------------------------------------------------


def plain_backward(model, batches):
    """`.grad` of the mean loss of all data, by one `backward` over one large sum."""
    copied = copy.deepcopy(model).requires_grad_(True)
    examples = sum(len(batch["input_ids"]) for batch in batches)
    sum(copied(**batch).loss * len(batch["input_ids"]) for batch in batches).div(examples).backward()
    return copied


def taylor_by_hand(model, path, batches):
    blocks = plain_backward(model, batches).get_submodule(path)
    return [
        sum(float((w.data * w.grad).abs().sum()) for w in block.parameters() if w.grad is not None) for block in blocks
    ]


def test_taylor_is_weight_times_gradient_of_the_mean_loss(make_bert):
    model, batches = stretched(make_bert()), text_batches(labels="classes")
    result = scored("taylor", inputs_of(model, batches))
    assert result.scores[BERT].values == pytest.approx(taylor_by_hand(model, BERT, batches), rel=1e-5)
    assert (result.cost.forward_passes, result.cost.backward_passes) == (1, 1)


def test_taylor_against_finite_differences(make_bert):
    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 2, "num_hidden_layers": 2}
    model, batches = stretched(make_bert(**sizes)).double(), text_batches((3, 2), "classes")
    wanted = []
    for block in model.bert.encoder.layer:
        total = 0.0
        for weights in block.parameters():
            flat = weights.data.view(-1)
            for place, held in enumerate(flat.tolist()):
                losses = []
                for step in (1e-5, -1e-5):
                    flat[place] = held + step
                    losses.append(loss_by_hand(model, batches))
                flat[place] = held
                total += abs(held * (losses[0] - losses[1]) / 2e-5)
        wanted.append(total)
    assert scored("taylor", inputs_of(model, batches)).scores[BERT].values == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("path", ["encoder.block", "decoder.block"])
def test_taylor_of_an_encoder_and_a_decoder(path):
    model, batches = make_t5(), text_batches(labels="texts")
    found = scored("taylor", inputs_of(model, batches)).scores[path].values
    assert found == pytest.approx(taylor_by_hand(model, path, batches), rel=1e-4)


def test_frozen_weights_and_gradients_at_hand_stay_as_they_are(make_bert):
    model, batches = stretched(make_bert()), text_batches(labels="classes")
    wanted = scored("taylor", inputs_of(model, batches)).scores[BERT].values
    model.bert.requires_grad_(False)
    weight = model.bert.encoder.layer[0].output.dense.weight.requires_grad_(True)
    weight.grad = torch.full_like(weight, 3.0)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert scored("taylor", inputs_of(model, batches)).scores[BERT].values == wanted
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert bool((weight.grad == 3).all())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == [
        "bert.encoder.layer.0.output.dense.weight"
    ]


def test_taylor_in_16_bits_adds_up_in_32(make_bert):
    model, batches = stretched(make_bert()), text_batches((2,) * 12, labels="classes")
    wanted = taylor_by_hand(model, BERT, batches)
    found = scored("taylor", inputs_of(model.bfloat16(), batches)).scores[BERT].values
    assert found == pytest.approx(wanted, rel=0.05)


# -- what is missing or wrong -----------------------------------------------------------------------------------------


DATA = ("loss", "greedy_loss", "output_change", "taylor")


@pytest.mark.parametrize("name", DATA)
def test_no_data(name, make_bert):
    with pytest.raises(CalibrationError, match=f"criterion '{name}' measures on calibration data"):
        scored(name, inputs_of(make_bert(), None))
    with pytest.raises(CalibrationError, match="gave no batch"):
        scored(name, inputs_of(make_bert(), []))


@pytest.mark.parametrize("name", ["loss", "greedy_loss", "taylor"])
def test_no_labels(name, make_bert):
    with pytest.raises(
        CalibrationError, match=r"gives no loss on input_ids, attention_mask\. Pass calibration data with"
    ):
        scored(name, inputs_of(make_bert(), text_batches()))
    with pytest.raises(
        CalibrationError, match=r"T5ForConditionalGeneration gives no loss on input_ids, attention_mask"
    ):
        scored(name, inputs_of(make_t5(), text_batches()))


def test_quantised_weights_have_no_gradients(make_bert):
    model = make_bert()
    model.bert.encoder.layer[0].output.dense.weight = nn.Parameter(torch.zeros(32, 64, dtype=torch.int8), False)
    with pytest.raises(CalibrationError, match=r"'taylor' needs gradients, but .* torch.int8"):
        scored("taylor", inputs_of(model, text_batches(labels="classes")))


def test_a_metric_is_missing_or_not_finite(make_bert):
    with pytest.raises(CalibrationError, match="'metric_drop' evaluates the model without each layer"):
        scored("metric_drop", inputs_of(make_bert(), None))
    with pytest.raises(CalibrationError, match="metric of the uncut model is nan"):
        scored("metric_drop", inputs_of(make_bert(), None, evaluate=lambda: math.nan))


@pytest.mark.parametrize("name", DATA)
def test_a_model_that_computes_nothing_finite(name, make_bert):
    model = make_bert()
    with torch.no_grad():
        model.classifier.bias.fill_(math.nan)
    with pytest.raises(CalibrationError, match=r"not finite|is nan"):
        scored(name, inputs_of(model, text_batches(labels="classes")))


def test_a_layer_without_which_nothing_is_finite_has_no_score_and_stays(make_bert):
    model, batches = stretched(make_bert()), text_batches(labels="classes")
    passed = []
    model.bert.encoder.layer[1].attention.register_forward_hook(lambda *_: passed.append(1))

    def loss(model, batch):
        passed.clear()
        value = model(**batch).loss
        return value if passed else value / 0

    inputs = inputs_of(model, batches, compute_loss=loss)
    # the first call of a skipped block is computed, and here that would tell
    result = scored("loss", inputs)
    wanted = scored("loss", inputs_of(model, batches)).scores[BERT].values
    assert result.scores[BERT].values == (wanted[0], None, *wanted[2:])
    assert 1 not in plan_layers(find_criterion("loss"), result, inputs.stacks, {BERT: 3}).stacks[BERT].removed


@pytest.mark.parametrize("name", [*DATA, "metric_drop"])
def test_everything_is_left_as_it_was_also_after_a_failure(name, make_bert):
    model = make_bert().train()
    model.bert.encoder.layer[2].eval()
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[1].requires_grad_(False)
    batches = text_batches(labels="classes")
    counter = itertools.count()

    def state():
        return (
            [(path, module.training, sorted(vars(module)), len(module._forward_pre_hooks), len(module._forward_hooks))
             for path, module in model.named_modules()],
            [(path, weight.requires_grad, weight.grad, weight.clone()) for path, weight in model.named_parameters()],
            torch.get_rng_state(),
        )  # fmt: skip

    def same(one, other):
        assert one[0] == other[0]
        assert all(a[:3] == b[:3] and torch.equal(a[3], b[3]) for a, b in zip(one[1], other[1], strict=True))
        assert torch.equal(one[2], other[2])

    def evaluate():
        with torch.no_grad():
            return float(model(**batches[0]).logits.sum())

    before = state()
    scored(name, inputs_of(model, batches, evaluate=evaluate))
    same(before, state())

    def failing(*_):
        if next(counter) > 0:
            raise KeyError("in the middle")

    handle = model.classifier.register_forward_hook(failing)
    before = state()
    with pytest.raises(KeyError, match="in the middle"):
        scored(name, inputs_of(model, batches, evaluate=evaluate))
    same(before, state())
    handle.remove()
