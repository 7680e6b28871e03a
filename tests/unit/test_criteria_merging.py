"""`laco` and `mka`: the walk against models that are merged for real, the information against closed forms."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from hf_mpruner import CalibrationError, PruningConfig, apply_plan_, find_block_stacks, prune_
from hf_mpruner.architectures import BlockStack, ConfigField
from hf_mpruner.criteria import CriterionInputs, LayerScores, ScoredLayers, find_criterion, plan_layers, score_layers
from hf_mpruner.criteria.laco import Layers, best_walk, collapse, uncut, walk
from hf_mpruner.criteria.mka import gaussian_kernel, matrix_entropy, similarity_of_kernels

PATH = "encoder.layer"
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 50}


def make_model(depth: int = 6, seed: int = 0) -> BertModel:
    """With weights large enough that layers differ, in 64 bits."""
    torch.manual_seed(seed)
    model = BertModel(BertConfig(num_hidden_layers=depth, **SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.double().eval()


def make_batches(seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for lengths in ((6, 3), (5, 2), (4, 6)):
        ids, mask = torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, 6, dtype=torch.long)
        for row, length in enumerate(lengths):
            ids[row, :length] = torch.randint(2, 50, (length,), generator=generator)
            mask[row, :length] = 1
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def score(name: str, model: nn.Module, batches: list[dict[str, Tensor]], **settings: Any) -> ScoredLayers:
    return score_layers(find_criterion(name), CriterionInputs(model, find_block_stacks(model), batches, **settings))


@torch.no_grad()
def final_similarity(model: nn.Module, whole: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    """Of two models, an unpadded example at a time."""
    cosines = []
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            alone = ids[: int(mask.sum())].unsqueeze(0)
            one, other = (each(alone).last_hidden_state.flatten() for each in (model, whole))
            cosines.append(float(torch.cosine_similarity(one, other, dim=0)))
    return sum(cosines) / len(cosines)


@torch.no_grad()
def collapsed(model: nn.Module, place: int, number: int) -> nn.Module:
    """A copy of a model in which a layer has taken over those behind it, by the paper's equation 1."""
    model = copy.deepcopy(model)
    blocks = list(model.encoder.layer)
    for name, parameter in blocks[place].named_parameters():
        base = parameter.clone()
        for behind in blocks[place + 1 : place + 1 + number]:
            parameter += behind.get_parameter(name) - base
    model.encoder.layer = nn.ModuleList(blocks[: place + 1] + blocks[place + 1 + number :])
    return model


def paper_walk(whole: nn.Module, batches: list[dict[str, Tensor]], wanted: int, threshold: float) -> nn.Module:
    """Algorithm 1 on models, with C = 4 and I = 2, that ends when `wanted` layers are gone."""
    model, depth = whole, len(whole.encoder.layer)
    place = depth - min(4, wanted + 1)
    while place >= 0:
        left = wanted - (depth - len(model.encoder.layer))
        if not left:
            break
        trial = collapsed(model, place, min(3, left, len(model.encoder.layer) - place - 1))
        if final_similarity(trial, whole, batches) >= threshold - 1e-12:
            model = trial
            left = wanted - (depth - len(model.encoder.layer))
            place = min(place - 2, len(model.encoder.layer) - min(4, left + 1))
        else:
            place -= 1
    return model


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_laco_is_the_walk_of_the_paper_on_models_that_are_merged_for_real(seed: int) -> None:
    model, batches = make_model(6, seed), make_batches(seed)
    stacks = find_block_stacks(model)
    before = copy.deepcopy(model.state_dict())
    found = score("laco", model, batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    scores, criterion = found.scores[PATH], find_criterion("laco")
    for layer in range(1, 6):
        alone = final_similarity(collapsed(model, layer - 1, 1), model, batches)
        assert scores.values[layer] == pytest.approx(1 - alone, abs=1e-9)
    assert scores.values[0] is None
    for number in range(1, 6):
        threshold = scores.details["thresholds"].get(str(number))
        if threshold is None:
            continue
        walked = paper_walk(model, batches, number, threshold)
        cut = copy.deepcopy(model)
        plan = plan_layers(criterion, ScoredLayers.from_dict(found.to_dict()), stacks, {PATH: number})
        assert plan.num_removed == number
        apply_plan_(cut, plan)
        for (name, one), other in zip(cut.state_dict().items(), walked.state_dict().values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=name)
    assert str(1) in scores.details["thresholds"]


def test_a_collapse_of_several_is_no_copy_of_the_last() -> None:
    """What the published code leaves: base += theta_k - base, with base changing, is theta of the last layer."""
    model, stack = make_model(5), find_block_stacks(make_model(5))[0]
    weights = [layer.output.dense.weight.detach().clone() for layer in model.encoder.layer]
    scores = LayerScores(PATH, (None, 0.3, 0.2, 0.1, 0.4))
    merged = find_criterion("laco").merges(scores, stack, (2, 3, 4))
    assert merged == {1: {1: -2.0, 2: 1.0, 3: 1.0, 4: 1.0}}
    plan = plan_layers(
        find_criterion("laco"), ScoredLayers("laco", {PATH: scores}), [stack], {PATH: 3}, protect=["encoder.layer:4"]
    )
    apply_plan_(model, plan)
    base = weights[0] + sum(weights[k] - weights[0] for k in (1, 2, 3))
    torch.testing.assert_close(model.encoder.layer[0].output.dense.weight, base, rtol=1e-14, atol=1e-14)
    assert not torch.allclose(model.encoder.layer[0].output.dense.weight, weights[3])


def test_collapses_of_collapses_add_up() -> None:
    once = collapse(uncut(5), 2, 2)
    assert once[2] == (2, {2: -1.0, 3: 1.0, 4: 1.0})
    assert collapse(once, 1, 1)[1] == (1, {1: 0.0, 2: -1.0, 3: 1.0, 4: 1.0})
    assert collapse(once, 0, 2)[0] == (0, {0: -1.0, 1: 1.0, 2: -1.0, 3: 1.0, 4: 1.0})


@pytest.mark.parametrize("seed", range(10))
def test_no_larger_threshold_lets_so_many_go(seed: int) -> None:
    draw = random.Random(seed)
    depth, size, interval = draw.randint(2, 7), draw.randint(2, 4), draw.randint(1, 3)
    stays = set(draw.sample(range(depth), draw.randint(0, 1)))

    def similarity(layers: Layers) -> float:
        return round(random.Random(f"{seed}{layers}").uniform(-1, 1), 2)

    def is_allowed(layers: Layers) -> bool:
        return stays <= {layer for layer, _ in layers}

    thresholds = [step / 100 for step in range(100, -101, -1)]  # all values there are
    for wanted in range(1, depth):
        found = best_walk(depth, wanted, size, interval, similarity, is_allowed)
        enough = [
            (layers, threshold)
            for threshold in thresholds
            if depth - len(layers := walk(depth, wanted, size, interval, threshold, similarity, is_allowed)[0])
            == wanted
        ]
        if found is None:
            assert not enough
            continue
        assert found == enough[0]
        assert is_allowed(found[0])


def test_laco_keeps_to_pins_protection_and_what_can_be_summed() -> None:
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "vocab_size": 50}
    torch.manual_seed(0)
    t5 = T5ForConditionalGeneration(T5Config(num_layers=4, num_decoder_layers=3, decoder_start_token_id=0, **sizes))
    batches = [{**batch, "labels": batch["input_ids"]} for batch in make_batches()]
    for name in ("laco", "mka"):
        found, stacks = score(name, t5, batches), find_block_stacks(t5)
        encoder, decoder = found.scores["encoder.block"], found.scores["decoder.block"]
        assert encoder.values[:2] == (None, None)  # the first block has the position bias, so nothing adds to it
        assert None not in encoder.values[2:]
        assert decoder.values[2] is not None
        plan = plan_layers(
            find_criterion(name), found, stacks, {"encoder.block": 1, "decoder.block": 1}, protect=["encoder.block:3"]
        )
        assert plan.stacks["encoder.block"].removed == (2,)
        assert plan.merged.keys() == {"encoder.block", "decoder.block"}
        with pytest.raises(ValueError, match=r"3 layers of 'encoder\.block' cannot be removed"):
            find_criterion(name).select(encoder, stacks[0], 3)
        apply_plan_(copy.deepcopy(t5), plan)
        for target, protect in (("encoder.block:1", []), ("encoder.block:2", ["encoder.block:3"])):
            config = PruningConfig(criterion=name, target_num_layers=[target], protect=protect)
            with pytest.raises(ValueError, match=rf"target_num_layers=\d: .* so for criterion='{name}'.*\(layer 1: "):
                prune_(t5, config, calibration=Unread(batches))


class Unread(list):
    """Data that must not be needed."""

    def __iter__(self):
        raise AssertionError("what cannot be reached is known before any data is read")


@pytest.mark.parametrize("name", ["laco", "mka"])
def test_padding_and_batches_change_nothing(name: str) -> None:
    model, batches = make_model(4), make_batches()
    alone = [
        {"input_ids": ids[: int(mask.sum())].unsqueeze(0)}
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    together = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    first = score(name, model, alone).scores[PATH]
    for other in (score(name, model, batches).scores[PATH], score(name, model, [together]).scores[PATH]):
        assert other.values == pytest.approx(first.values, abs=1e-9)
        assert other.details.get("removed") == first.details.get("removed")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads what transformers deprecates
@pytest.mark.parametrize("name", ["laco", "mka"])
def test_a_model_that_cannot_be_merged_is_refused(name: str) -> None:
    model = make_model(3)
    stacks = find_block_stacks(model)
    model.is_quantized = True
    with pytest.raises(CalibrationError, match=rf"'{name}' merges layers.*quantised.*block_influence"):
        score_layers(find_criterion(name), CriterionInputs(model, stacks, make_batches()))
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(make_model(3), peft.LoraConfig(target_modules=["query"])).get_base_model()
    with pytest.raises(CalibrationError, match=r"has adapters.*merge_and_unload"):
        score_layers(find_criterion(name), CriterionInputs(adapted, stacks, make_batches()))


def test_laco_looks_at_no_more_examples_and_numbers_than_it_must() -> None:
    model = make_model(5)
    found = score("laco", model, make_batches() * 4, num_removed={PATH: 2})
    assert found.scores[PATH].details["num_examples"] == 8
    assert set(found.scores[PATH].details["removed"]) <= {"1", "2"}
    everything = score("laco", model, make_batches() * 4)
    for number in ("1", "2"):  # a plan does not depend on what else is asked for
        assert everything.scores[PATH].details["merged"][number] == found.scores[PATH].details["merged"][number]


def blocks(*sizes: int) -> Tensor:
    """The kernel of examples that are alike in groups of these sizes, and not at all between them."""
    return torch.block_diag(*(torch.ones(size, size, dtype=torch.float64) for size in sizes))


def test_information_has_its_closed_forms() -> None:
    assert matrix_entropy(torch.eye(8, dtype=torch.float64)) == pytest.approx(math.log(8))
    assert matrix_entropy(blocks(8)) == pytest.approx(0, abs=1e-12)
    shares = [3 / 8, 4 / 8, 1 / 8]  # the entropy of drawing a group
    assert matrix_entropy(blocks(3, 4, 1)) == pytest.approx(-sum(p * math.log(p) for p in shares))
    halves = blocks(4, 4)
    quarters = blocks(2, 2, 2, 2)
    crossed = halves[[0, 4, 1, 5, 2, 6, 3, 7]][:, [0, 4, 1, 5, 2, 6, 3, 7]]  # independent of the halves
    matrix = similarity_of_kernels([halves, quarters, crossed])
    assert [matrix[i][i] for i in range(3)] == [1, 1, 1]
    assert matrix[0][1] == pytest.approx(math.log(2) / math.sqrt(math.log(2) * math.log(4)))
    assert matrix[0][2] == pytest.approx(0, abs=1e-9)
    assert matrix[1][0] == matrix[0][1]


def test_a_kernel_does_not_see_rotation_scale_or_place() -> None:
    torch.manual_seed(0)
    rows = torch.randn(9, 5, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    torch.testing.assert_close(gaussian_kernel(3 * rows @ turn + 2), gaussian_kernel(rows))
    distances = [[sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in rows.tolist()] for x in rows.tolist()]
    width = sorted(distances[i][j] for i in range(9) for j in range(i + 1, 9))[
        17
    ]  # the lower of the two in the middle
    assert gaussian_kernel(rows)[2, 5].item() == pytest.approx(math.exp(-distances[2][5] / width))
    with pytest.raises(CalibrationError, match="got 3: pass a calibration set of 4 or more"):
        gaussian_kernel(rows[:3])
    with pytest.raises(CalibrationError, match="puts out the same for every example"):
        gaussian_kernel(torch.ones(5, 2, dtype=torch.float64))


def test_mka_takes_one_layer_over_after_the_other() -> None:
    model, batches = make_model(5), make_batches()
    found = score("mka", model, batches)
    scores, stack = found.scores[PATH], find_block_stacks(model)[0]
    assert found.cost.forward_passes == 1
    assert [1 - value for value in scores.values[1:]] == pytest.approx(
        [scores.pairs[layer][layer + 1] for layer in range(4)]
    )
    removed = find_criterion("mka").select(scores, stack, 3)
    weights = [layer.output.dense.weight.detach().clone() for layer in model.encoder.layer]
    expected, base = {}, None
    for layer in range(5):
        if layer not in removed:
            base, expected[layer] = layer, weights[layer]
        else:
            alpha = scores.pairs[base][layer]
            expected[base] = alpha * expected[base] + (1 - alpha) * weights[layer]
    apply_plan_(model, plan_layers(find_criterion("mka"), found, [stack], {PATH: 3}))
    for layer, weight in zip(model.encoder.layer, expected.values(), strict=True):
        torch.testing.assert_close(layer.output.dense.weight, weight, rtol=1e-13, atol=1e-13)


def test_sums_of_a_plan_that_nobody_walked_are_those_of_each_run() -> None:
    stack = BlockStack("layer", "Layer", 6, ConfigField("n"))
    scores = LayerScores("layer", (0.0,) * 6, pairs=((0.5,) * 6,) * 6)
    assert find_criterion("laco").merges(scores, stack, (0, 2, 3, 5)) == {1: {1: -1.0, 2: 1.0, 3: 1.0}, 4: {5: 1.0}}
    assert find_criterion("mka").merges(scores, stack, (0, 2, 3)) == {1: {1: 0.25, 2: 0.25, 3: 0.5}}
