"""Measures of what blocks get and put out: against hidden states that transformers gives, and against loops over tokens."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from hf_mpruner import CalibrationError, find_block_stacks
from hf_mpruner.architectures import BlockStack, ConfigField
from hf_mpruner.criteria import Criterion, CriterionInputs, LayerScores, find_criterion, score_layers
from hf_mpruner.criteria.angular import cheapest_runs, last_real

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1}
MEASURES = ("block_influence", "relative_magnitude", "angular")
LENGTHS = (7, 3, 1, 5)


def bert() -> nn.Module:
    return BertModel(BertConfig(num_hidden_layers=4, **SIZES))


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=16, n_head=2, vocab_size=50, **TOKENS))


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, num_key_value_heads=1, **SIZES, **TOKENS))


def t5() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "vocab_size": 50}
    return T5ForConditionalGeneration(T5Config(num_layers=3, num_decoder_layers=4, decoder_start_token_id=0, **sizes))


def vit() -> nn.Module:
    sizes = {key: value for key, value in SIZES.items() if key != "vocab_size"}
    return ViTModel(ViTConfig(num_hidden_layers=3, image_size=8, patch_size=2, **sizes))


def resnet() -> nn.Module:
    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 3], layer_type="basic"))


def make(build: Callable[[], nn.Module]) -> nn.Module:
    """With weights large enough that blocks change something."""
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


def examples(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 50, (length,), generator=generator) for length in LENGTHS]


def padded(sentences: list[Tensor], side: str = "right") -> dict[str, Tensor]:
    width = max(map(len, sentences)) + 1
    ids, mask = (
        torch.zeros(len(sentences), width, dtype=torch.long),
        torch.zeros(len(sentences), width, dtype=torch.long),
    )
    for row, sentence in enumerate(sentences):
        part = slice(len(sentence)) if side == "right" else slice(width - len(sentence), width)
        ids[row, part], mask[row, part] = sentence, 1
    return {"input_ids": ids, "attention_mask": mask}


def measure(name: str, model: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, LayerScores]:
    return score_layers(find_criterion(name), CriterionInputs(model, find_block_stacks(model), batches)).scores


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.tolist(), b.tolist()
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def expected(name: str, pairs: list[tuple[Tensor, Tensor]]) -> float:
    """By definition, a token at a time: `pairs` are the input and the output of a block, of each token that counts."""
    values = []
    for before, after in pairs:
        if name == "relative_magnitude":
            values.append(math.dist(after.tolist(), before.tolist()) / math.hypot(*after.tolist()))
        elif name == "block_influence":
            values.append(1 - cosine(before, after))
        else:
            values.append(math.acos(max(-1.0, min(1.0, cosine(before, after)))) / math.pi)
    return sum(values) / len(values)


@torch.no_grad()
def tokens_of(states: tuple[Tensor, ...], real: list[int], last: bool) -> list[list[tuple[Tensor, Tensor]]]:
    """For each layer the input and output of the tokens that count; examples are padded on the right."""
    layers = []
    for before, after in itertools.pairwise(states):
        places = [(row, at) for row, length in enumerate(real) for at in range(length) if not last or at == length - 1]
        layers.append([(before[place], after[place]) for place in places])
    return layers


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(("build", "is_causal"), [(bert, False), (gpt2, True), (llama, True)])
def test_scores_are_those_of_the_hidden_states(name: str, build: Callable[[], nn.Module], is_causal: bool) -> None:
    model, batch = make(build).eval(), padded(examples())
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    (found,) = measure(name, model, [batch]).values()
    rows = tokens_of(states, list(LENGTHS), last=is_causal and name == "angular")
    depth = len(found.values) - is_causal  # the last of a decoder's hidden states went through its final norm
    for layer in range(depth):
        assert found.values[layer] == pytest.approx(expected(name, rows[layer]), rel=1e-4, abs=1e-6)
    if name == "angular":
        assert found.details["tokens"] == ("last" if is_causal else "all")
        for first in range(depth):
            for end in range(first, depth + 1):
                two = tokens_of((states[first], states[end]), list(LENGTHS), last=is_causal)[0]
                assert found.pairs[first][end] == found.pairs[end][first]
                assert found.pairs[first][end] == pytest.approx(expected(name, two), rel=1e-4, abs=4e-4)


@pytest.mark.parametrize("name", MEASURES)
def test_both_stacks_of_an_encoder_decoder_have_tokens_of_their_own(name: str) -> None:
    model, batch = make(t5).eval(), padded(examples())
    lengths = [2, 6, 4, 3]
    labels = torch.full((4, 6), -100)
    for row, length in enumerate(lengths):
        labels[row, :length] = row + 5
    batch["labels"] = labels
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    found = measure(name, model, [batch])
    for path, states, real, last in [
        ("encoder.block", output.encoder_hidden_states, list(LENGTHS), False),
        ("decoder.block", output.decoder_hidden_states, lengths, name == "angular"),
    ]:
        rows = tokens_of(states, real, last)
        for layer in range(len(states) - 2):  # the last went through the final norm
            assert found[path].values[layer] == pytest.approx(expected(name, rows[layer]), rel=1e-4, abs=1e-6)
    if name == "angular":
        assert [found[path].details["tokens"] for path in ("encoder.block", "decoder.block")] == ["all", "last"]


@pytest.mark.parametrize("name", MEASURES)
def test_images_have_patches_or_pixels_as_positions(name: str) -> None:
    torch.manual_seed(0)
    images = {"pixel_values": torch.randn(3, 3, 8, 8)}
    model = make(vit).eval()
    with torch.no_grad():
        states = model(**images, output_hidden_states=True).hidden_states
    (found,) = measure(name, model, [images]).values()
    for layer, rows in enumerate(tokens_of(states, [17] * 3, last=False)):
        assert found.values[layer] == pytest.approx(expected(name, rows), rel=1e-4, abs=1e-6)

    model = make(resnet).eval()
    found = measure(name, model, [images])
    first, second = found["encoder.stages.0.layers"], found["encoder.stages.1.layers"]
    assert second.values[0] is None  # opens the stage with another shape
    blocks = model.encoder.stages[0].layers
    seen: list[tuple[Tensor, Tensor]] = []
    handle = blocks[1].register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        model(**images)
    handle.remove()
    before, after = (states.permute(0, 2, 3, 1).reshape(-1, 8) for states in seen[0])
    rows = [(a, b) for a, b in zip(before, after, strict=True) if a.any() and b.any()]
    assert first.values[1] == pytest.approx(expected(name, rows), rel=1e-4)


@pytest.mark.parametrize("name", [*MEASURES, "cka"])
def test_the_padding_of_texts_is_none_of_the_images_beside_them(name: str) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**sizes, "num_hidden_layers": 3, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    images = {**sizes, "num_hidden_layers": 2, "image_size": 8, "patch_size": 4}
    model = make(lambda: CLIPModel(CLIPConfig(text_config=text, vision_config=images, projection_dim=8)))
    torch.manual_seed(0)
    batch = {**padded(examples()), "pixel_values": torch.randn(4, 3, 8, 8)}
    found = measure(name, model, [batch])
    pixels = CLIPVisionModel(model.config.vision_config)
    pixels.load_state_dict(model.vision_model.state_dict())
    (alone,) = measure(name, pixels, [{"pixel_values": batch["pixel_values"]}]).values()
    known = slice(1, None) if name == "cka" else slice(None)
    assert found["vision_model.encoder.layers"].values[known] == pytest.approx(alone.values[known], rel=1e-5)
    assert len(found["text_model.encoder.layers"].values) == 3


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(("build", "side"), [(bert, "right"), (gpt2, "right"), (llama, "left")])
def test_padding_and_batches_change_nothing(name: str, build: Callable[[], nn.Module], side: str) -> None:
    model, sentences = make(build), examples()
    (alone,) = measure(name, model, [{"input_ids": one.unsqueeze(0)} for one in sentences]).values()
    (together,) = measure(name, model, [padded(sentences, side)]).values()
    (split,) = measure(name, model, [padded(sentences[:3], side), padded(sentences[3:], side)]).values()
    assert together.values == pytest.approx(alone.values, rel=1e-3)
    assert split.values == pytest.approx(alone.values, rel=1e-3)


def test_the_last_real_token_is_found_on_either_side_and_examples_without_one_do_not_count() -> None:
    states = torch.arange(12.0).view(4, 3, 1)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)
    assert last_real(states, mask).flatten().tolist() == [1, 5, 9]
    assert last_real(states, None).flatten().tolist() == [2, 5, 8, 11]


@pytest.mark.parametrize("name", [*MEASURES, "cka"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = make(gpt2).train()
    model.transformer.h[1].eval()
    flags = [module.training for module in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_pre_hooks)) for m in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random_state, python_state = torch.get_rng_state(), random.getstate()
    batches = [padded(examples(seed)) for seed in range(2)]
    inputs = CriterionInputs(model, find_block_stacks(model), batches)
    random_state, python_state = torch.get_rng_state(), random.getstate()
    found = score_layers(find_criterion(name), inputs)
    assert found.cost.forward_passes == 1
    assert found.cost.backward_passes == 0
    assert [module.training for module in model.modules()] == flags
    assert [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_pre_hooks)) for m in model.modules()
    ] == hooks
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert random.getstate() == python_state
    assert model.config.use_cache is True


def test_passes_over_the_data_are_counted() -> None:
    class Twice(Criterion):
        name = "twice"

        def score(self, inputs: CriterionInputs) -> dict[str, list[float]]:
            for _ in range(2):
                for batch in inputs.each_batch():
                    inputs.loss({**batch, "labels": batch["input_ids"]}).backward()
            inputs.model.zero_grad()
            with torch.no_grad():
                for batch in inputs.each_batch():
                    inputs.loss({**batch, "labels": batch["input_ids"]})
            return {stack.path: [1.0] * stack.depth for stack in inputs.stacks}

    model = make(gpt2)
    cost = score_layers(
        Twice(), CriterionInputs(model, find_block_stacks(model), [padded(examples(seed)) for seed in range(3)])
    ).cost
    assert (cost.forward_passes, cost.backward_passes) == (3, 2)


class Block(nn.Module):
    """Of the toy: adds something to its input, in place; may ask for it by name alone."""

    def __init__(self, size: int, named: bool) -> None:
        super().__init__()
        self.linear, self.named = nn.Linear(size, size), named

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        hidden_states += torch.tanh(self.linear(hidden_states))
        return hidden_states, None


class Toy(nn.Module):
    """Positions never see each other."""

    def __init__(self, named: bool = False, uses: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.uses = nn.ModuleList(Block(6, named) for _ in range(3)), uses

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = states.clone()
        bias = torch.zeros(len(states), 1, states.shape[1], states.shape[1])
        for index in self.uses:
            block = self.layers[index]
            states = block(mask=bias, hidden_states=states)[0] if block.named else block(states, bias)[0]
        return states


def toy_scores(name: str, model: nn.Module, batch: dict[str, Any]) -> LayerScores:
    stack = BlockStack("layers", "Block", 3, ConfigField("n"))
    return score_layers(find_criterion(name), CriterionInputs(model, [stack], [batch])).scores["layers"]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", MEASURES)
def test_blocks_that_work_in_place_and_pads_of_nan_do_no_harm(name: str, named: bool) -> None:
    model, states = Toy(named), torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    places = [states]
    with torch.no_grad():
        for block in model.layers:
            places.append(places[-1] + torch.tanh(block.linear(places[-1])))
    poisoned = torch.where(mask.bool().unsqueeze(2), states, torch.nan)
    found = toy_scores(name, model, {"states": poisoned, "attention_mask": mask})
    rows = tokens_of(tuple(places), [4, 2], last=name == "angular")  # a position never sees a later one
    for layer in range(3):
        assert found.values[layer] == pytest.approx(expected(name, rows[layer]), rel=1e-4)


@pytest.mark.parametrize("name", MEASURES)
def test_what_cannot_be_measured_is_refused_by_name(name: str) -> None:
    states = torch.randn(2, 4, 6)
    broken = Toy()
    with torch.no_grad():
        broken.layers[1].linear.weight[0, 0] = torch.nan
    with pytest.raises(CalibrationError, match=r"layers\.1 gets or puts out NaN or infinite"):
        toy_scores(name, broken, {"states": states})
    with pytest.raises(CalibrationError, match=r"layers\.1 did not run"):
        toy_scores(name, Toy(uses=(0, 2)), {"states": states})
    with pytest.raises(CalibrationError, match=r"layers\.2 ran 2 times"):
        toy_scores(name, Toy(uses=(0, 1, 2, 2)), {"states": states})
    with pytest.raises(CalibrationError, match=r"everything is padding"):
        toy_scores(name, Toy(), {"states": states, "attention_mask": torch.zeros(2, 4, dtype=torch.long)})
    with pytest.raises(CalibrationError, match=f"'{name}' measures on calibration data"):
        score_layers(
            find_criterion(name), CriterionInputs(Toy(), [BlockStack("layers", "Block", 3, ConfigField("n"))])
        )


@pytest.mark.parametrize("name", MEASURES)
def test_a_block_whose_input_is_zero_everywhere_has_no_direction(name: str) -> None:
    """Queries of detectors are zero before the first block."""
    found = toy_scores(name, Toy(), {"states": torch.zeros(2, 4, 6)})
    assert (found.values[0] is None) == (name != "relative_magnitude")
    assert None not in found.values[1:]


@pytest.mark.parametrize("seed", range(25))
def test_no_run_is_closer(seed: int) -> None:
    draw = random.Random(seed)
    depth, period = draw.randint(2, 8), draw.choice([1, 1, 2])
    pinned = dict.fromkeys(draw.sample(range(depth), draw.randint(0, 2)), "")
    stack = BlockStack(
        "layer", "Layer", depth, ConfigField("n"), period=period, period_reason="shifted", pinned=pinned
    )
    protected = set(draw.sample(range(depth), draw.randint(0, 1)))
    pairs = [[draw.uniform(0, 1) for _ in range(depth + 1)] for _ in range(depth + 1)]
    scores = LayerScores("layer", (0.0,) * depth, pairs=tuple(map(tuple, pairs)))

    def runs_of(layers: tuple[int, ...]) -> list[tuple[int, int]]:
        firsts = [layer for layer in layers if layer - 1 not in layers]
        lasts = [layer for layer in layers if layer + 1 not in layers]
        return list(zip(firsts, lasts, strict=True))

    for number in range(1, depth):
        allowed = {}
        for bits in range(2**depth):
            layers = tuple(layer for layer in range(depth) if bits >> layer & 1)
            if len(layers) == number and not protected & set(layers) and stack.removable(layers) == layers:
                runs = runs_of(layers)
                allowed[layers] = (len(runs), sum(pairs[first][last + 1] for first, last in runs))
        chosen = cheapest_runs(pairs, stack, number, protected)
        assert (chosen is None) == (not allowed)
        if chosen is not None:
            fewest, total = allowed[chosen]
            assert fewest == min(allowed.values())[0]
            assert total == pytest.approx(min(allowed.values())[1])
            assert find_criterion("angular").select(scores, stack, number, protected) == chosen
