"""`measure_similarity`: what counts as a row, what padding must not change, and that the model is left as it was."""

from __future__ import annotations

import logging
import random
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_mpruner.architectures.stack import BlockStack, ConfigField
from hf_mpruner.errors import CalibrationError, PlanMismatchError
from hf_mpruner.features import measure_similarity, padding_mask
from hf_mpruner.features.rows import build_rows, lay_out
from hf_mpruner.similarity import SimilarityAccumulator, SimilarityProtocol, centred_gram, gram, linear_cka

Batch = dict[str, Tensor]
PER_SENTENCE = {"rows": "tokens", "token_groups": "example"}
ALL_ROWS = [
    {"rows": "examples"},
    {"rows": "tokens"},
    PER_SENTENCE,
    {"rows": "mean"},
    {"rows": "first"},
    {"rows": "last"},
]
IDS = ["examples", "pooled", "sentences", "mean", "first", "last"]


def stack_of(path: str, depth: int) -> BlockStack:
    return BlockStack(path, "Block", depth, ConfigField("num_hidden_layers"))


class Scale(nn.Module):
    """A block of the toy: a linear map of every position."""

    def __init__(self, dim: int, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x + torch.tanh(self.linear(x)))


class Toy(nn.Module):
    """Puts `features` of the batch, positions alone, through blocks: a position never sees its neighbours."""

    def __init__(self, depth: int = 3, dim: int = 8, wrap: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(Scale(dim, wrap) for _ in range(depth))

    def forward(self, features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            out = block(features)
            features = out if isinstance(out, Tensor) else out[0]
        return features


TOY = [stack_of("blocks", 3)]


def make_sentences(lengths: list[int], seed: int = 0, dim: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, dim, generator=generator) for length in lengths]


def pad(sentences: list[Tensor], extra: int = 0, side: str = "right", fill: float = 0.0) -> Batch:
    """One batch: padded to the longest and `extra` further positions, pads holding `fill`."""
    width = max(map(len, sentences)) + extra
    features = torch.full((len(sentences), width, sentences[0].shape[1]), fill)
    mask = torch.zeros(len(sentences), width, dtype=torch.long)
    for i, sentence in enumerate(sentences):
        place = slice(0, len(sentence)) if side == "right" else slice(width - len(sentence), width)
        features[i, place], mask[i, place] = sentence, 1
    return {"features": features, "attention_mask": mask}


def measure_toy(batches: list[Batch], model: nn.Module | None = None, **protocol: Any) -> Tensor:
    return measure_similarity(model or Toy(), batches, TOY, protocol=SimilarityProtocol(**protocol))["blocks"].values


def outputs_of(model: Toy, sentence: Tensor) -> list[Tensor]:
    """Block outputs for one sentence without padding."""
    outputs = []
    with torch.no_grad():
        for block in model.blocks:
            sentence = block(sentence)
            outputs.append(sentence)
    return outputs


# Rows


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("average", ["sums", "ratios"])
def test_sentences_are_measured_as_if_each_came_alone(estimator: str, average: str) -> None:
    sentences, model = make_sentences([5, 9, 4, 7]), Toy()
    protocol = SimilarityProtocol(estimator, "tokens", "example", average)
    accumulator = SimilarityAccumulator(3, protocol)
    for sentence in sentences:
        accumulator.update(outputs_of(model, sentence), weights=[1])
    expected = accumulator.compute()
    matrix = measure_similarity(model, [pad(sentences[:3]), pad(sentences[3:])], TOY, protocol=protocol)["blocks"]
    assert torch.allclose(matrix.values, expected.values, atol=1e-6)
    assert matrix.num_samples == expected.num_samples == 4
    assert matrix.path == "blocks"


@pytest.mark.parametrize(
    ("rows", "reduce"),
    [
        ("examples", lambda x: nn.functional.pad(x, (0, 0, 0, 9 - len(x))).flatten()),
        ("mean", lambda x: x.mean(0)),
        ("first", lambda x: x[0]),
        ("last", lambda x: x[-1]),
    ],
)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("part", [1, 100, 1 << 20])
def test_one_row_an_example(
    rows: str, reduce: Callable[[Tensor], Tensor], side: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram, "_PART", {"cpu": part})  # values that are worked on at a time
    if (rows, side) == ("examples", "left"):
        reduce = lambda x: nn.functional.pad(x, (0, 0, 9 - len(x), 0)).flatten()  # noqa: E731
    sentences, model = make_sentences([5, 9, 4, 7, 9, 6]), Toy()
    layers = list(zip(*(outputs_of(model, sentence) for sentence in sentences), strict=True))
    first, last = (torch.stack([reduce(x) for x in layers[i]]) for i in (0, 2))
    values = measure_toy([pad(sentences, side=side)], model, rows=rows)
    assert values[0, 2].item() == pytest.approx(linear_cka(first, last).item(), abs=1e-6)


@pytest.mark.parametrize("lengths", [[5, 9, 4, 7], [1, 2, 3, 1]], ids=["feature_space", "gram"])
def test_pooled_tokens_are_the_rows_of_one_matrix(lengths: list[int]) -> None:
    sentences, model = make_sentences(lengths), Toy()
    tokens = outputs_of(model, torch.cat(sentences))
    values = measure_toy([pad(sentences)], model, rows="tokens", token_groups="batch")
    assert values[0, 2].item() == pytest.approx(linear_cka(tokens[0], tokens[2]).item(), abs=1e-6)


@pytest.mark.parametrize("rows", ALL_ROWS, ids=IDS)
def test_padding_never_counts(rows: dict[str, str]) -> None:
    sentences = make_sentences([5, 9, 4, 7, 6])
    expected = measure_toy([pad(sentences)], **rows)
    assert torch.allclose(measure_toy([pad(sentences, extra=6)], **rows), expected, atol=1e-9)
    assert torch.allclose(measure_toy([pad(sentences, extra=6, fill=float("nan"))], **rows), expected, atol=1e-9)


@pytest.mark.parametrize("rows", ALL_ROWS[:4], ids=IDS[:4])
def test_a_mask_without_padding_changes_nothing(rows: dict[str, str]) -> None:
    batch = pad(make_sentences([6] * 5))
    assert torch.equal(measure_toy([batch], **rows), measure_toy([{"features": batch["features"]}], **rows))


def test_a_ragged_last_batch_is_weighted_by_its_examples() -> None:
    sentences, model = make_sentences([6] * 13), Toy()
    accumulator = SimilarityAccumulator(3)
    for part in (sentences[:8], sentences[8:]):
        layers = zip(*(outputs_of(model, sentence) for sentence in part), strict=True)
        accumulator.update([torch.stack(x).flatten(1) for x in layers])
    matrix = measure_similarity(model, [pad(sentences[:8]), pad(sentences[8:])], TOY)["blocks"]
    assert torch.allclose(matrix.values, accumulator.compute().values, atol=1e-9)
    assert matrix.num_samples == 13


@pytest.mark.parametrize("wrap", [lambda x: (x, None), lambda x: [x, x * 0]], ids=["tuple", "list"])
def test_hidden_states_may_come_first_in_a_tuple(wrap: Callable[[Tensor], Any]) -> None:
    batch = pad(make_sentences([6] * 5))
    assert torch.equal(measure_toy([batch], Toy(wrap=wrap)), measure_toy([batch]))


class Convolutions(nn.Module):
    """Blocks of feature maps (batch, channels, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.blocks(pixel_values)


def test_pixels_of_feature_maps_are_tokens() -> None:
    model = Convolutions()
    images = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = [model.blocks[0](images), model.blocks(images)]
    stacks = [stack_of("blocks", 2)]

    def measure(**protocol: Any) -> float:
        (matrix,) = measure_similarity(
            model, [{"pixel_values": images}], stacks, protocol=SimilarityProtocol(**protocol)
        ).values()
        return matrix.adjacent[0]

    assert measure() == pytest.approx(linear_cka(*(x.flatten(1) for x in maps)).item(), abs=1e-6)
    pixels = [x.permute(0, 2, 3, 1) for x in maps]
    assert measure(rows="tokens") == pytest.approx(linear_cka(*(x.flatten(0, 2) for x in pixels)).item(), abs=1e-6)
    assert measure(rows="mean") == pytest.approx(linear_cka(*(x.mean((1, 2)) for x in pixels)).item(), abs=1e-6)
    alone = [linear_cka(*(x[i].flatten(0, 1) for x in pixels)).item() for i in range(5)]
    assert measure(average="ratios", **PER_SENTENCE) == pytest.approx(sum(alone) / 5, abs=1e-6)


def test_blocks_that_work_in_place_do_not_touch_what_was_recorded() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Identity() for _ in range(2))

        def forward(self, features: Tensor) -> Tensor:
            first = self.blocks[0](features * 1)
            return self.blocks[1](first.tanh_())

    features = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    stacks = [stack_of("blocks", 2)]
    for rows in ALL_ROWS[:4]:
        protocol = SimilarityProtocol(**rows)
        (matrix,) = measure_similarity(InPlace(), [{"features": features}], stacks, protocol=protocol).values()
        assert matrix.adjacent[0] < 0.9999


# The model and the world around it


def make_text(count: int = 8, length: int = 7, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 99, (count, length), generator=generator)
    lengths = torch.randint(4, length + 1, (count, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < lengths).long()}


BERT = [stack_of("bert.encoder.layer", 4)]


@pytest.mark.parametrize("protocol", ["default", "paper"])
def test_extra_pad_columns_do_not_move_a_bert(make_bert: Callable[..., nn.Module], protocol: str) -> None:
    batch = make_text()
    wider = {name: nn.functional.pad(value, (0, 5)) for name, value in batch.items()}
    model = make_bert()
    measured = [measure_similarity(model, [b], BERT, protocol=protocol)["bert.encoder.layer"] for b in (batch, wider)]
    assert torch.allclose(measured[0].values, measured[1].values, atol=1e-5)
    assert measured[0].num_samples == 8


def test_the_model_is_left_as_it_was(make_bert: Callable[..., nn.Module], weight_digest: Callable[..., str]) -> None:
    model = make_bert(hidden_dropout_prob=0.5).train()
    model.bert.encoder.layer[1].eval()
    flags = {name: module.training for name, module in model.named_modules()}
    random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    digest = weight_digest(model)
    first, second = (measure_similarity(model, [make_text()], BERT)["bert.encoder.layer"] for _ in range(2))
    assert first == second, "dropout was on"
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert not any(module._forward_hooks for module in model.modules())
    assert weight_digest(model) == digest
    assert random.getstate() == states[0]
    assert numpy.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.is_grad_enabled()


def test_a_failing_pass_leaves_no_hook() -> None:
    model = Toy().train()
    with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
        measure_similarity(model, [{**pad(make_sentences([6] * 5)), "wrong": torch.ones(5)}], TOY)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


class Census(TorchDispatchMode):
    """Knows every tensor made under it, and which of them still live."""

    def __init__(self) -> None:
        super().__init__()
        self.born: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.born += [
            weakref.ref(x) for x in (made if isinstance(made, tuple | list) else [made]) if torch.is_tensor(x)
        ]
        return made

    def num_alive(self) -> int:
        return len({id(tensor) for ref in self.born if (tensor := ref()) is not None})


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor made under it, views of `given` apart."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given, self.num_bytes = given.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in filter(torch.is_tensor, made if isinstance(made, tuple | list) else [made]):
            storage = x.untyped_storage()
            if storage.data_ptr() != self.given:
                self.num_bytes = max(self.num_bytes, storage.nbytes())
        return made


@pytest.mark.parametrize("rows", ["examples", "mean", "first"])
@pytest.mark.parametrize("padded", [True, False])
def test_no_second_copy_of_an_output_is_made(rows: str, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_PART", {"cpu": 256})
    hidden, mask = torch.randn(6, 500, 16, dtype=torch.float16), torch.ones(6, 500, dtype=torch.bool)
    mask[0, 5 if padded else 500 :] = False
    protocol = SimilarityProtocol(rows=rows)
    layout = lay_out(protocol, (6, 500), mask, hidden.device)
    with Largest(hidden) as largest:
        centred_gram(*build_rows(hidden, layout, protocol))
    assert largest.num_bytes <= 6 * 500 * 8, "no more than the mask's indices, a 16th of the output's values"


@pytest.mark.parametrize("rows", ALL_ROWS, ids=IDS)
def test_nothing_is_hoarded(rows: dict[str, str]) -> None:
    batches, census, alive = [pad(make_sentences([4, 6, 6, 5], seed=seed)) for seed in range(6)], Census(), []

    def watched() -> Iterator[Batch]:
        for batch in batches:
            yield batch
            alive.append(census.num_alive())

    with census:
        measure_similarity(Toy(), watched(), TOY, protocol=SimilarityProtocol(**rows))
    assert len(alive) == 6
    assert len(set(alive)) == 1
    assert len(census.born) > 100


def test_stacks_are_found_when_none_are_given(make_bert: Callable[..., nn.Module]) -> None:
    model = make_bert()
    assert measure_similarity(model, [make_text()]) == measure_similarity(model, [make_text()], BERT)


def test_max_samples_cuts_the_last_batch(make_bert: Callable[..., nn.Module]) -> None:
    model, batches = make_bert(), [make_text(seed=seed) for seed in range(3)]
    cut = {name: value[:5] for name, value in batches[1].items()}
    measured = measure_similarity(model, iter(batches), BERT, max_samples=13)["bert.encoder.layer"]
    assert measured == measure_similarity(model, [batches[0], cut], BERT)["bert.encoder.layer"]
    assert measured.num_samples == 13
    assert measure_similarity(model, batches, BERT, max_samples=16)["bert.encoder.layer"].num_samples == 16
    assert measure_similarity(model, batches, BERT, max_samples=99)["bert.encoder.layer"].num_samples == 24


def test_entries_that_are_no_tensors_are_left_out(make_bert: Callable[..., nn.Module]) -> None:
    batch = make_text()
    named = {**batch, "text": ["a"] * 8}
    assert measure_similarity(make_bert(), [named], BERT) == measure_similarity(make_bert(), [batch], BERT)


def test_a_progress_bar_comes_only_when_asked_for(
    make_bert: Callable[..., nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    measure_similarity(make_bert(), [make_text()], BERT)
    assert capsys.readouterr() == ("", "")
    measure_similarity(make_bert(), [make_text()], BERT, show_progress=True)
    assert "Measuring similarity" in capsys.readouterr().err


# Encoder-decoder models and masks


@pytest.fixture(scope="module")
def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "vocab_size": 99, "num_layers": 3}
    config = T5Config(**sizes, num_decoder_layers=2, decoder_start_token_id=0, dropout_rate=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return T5ForConditionalGeneration(config).eval()


T5 = [stack_of("encoder.block", 3), stack_of("decoder.block", 2)]


@pytest.mark.parametrize("rows", ALL_ROWS[:4], ids=IDS[:4])
def test_the_decoder_of_t5_has_its_own_padding(t5: nn.Module, rows: dict[str, str]) -> None:
    protocol = SimilarityProtocol(**rows)
    batch = make_text(count=6)
    labels = make_text(count=6, length=9, seed=5)
    targets = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
    expected = measure_similarity(t5, [{**batch, "labels": targets}], T5, protocol=protocol)
    assert list(expected) == ["encoder.block", "decoder.block"]
    assert [matrix.values.shape[0] for matrix in expected.values()] == [3, 2]
    wider = {
        **{name: nn.functional.pad(value, (0, 4)) for name, value in batch.items()},
        "labels": nn.functional.pad(targets, (0, 3), value=-100),
    }
    shifted = t5._shift_right(targets)
    explicit = {**batch, "decoder_input_ids": shifted, "decoder_attention_mask": labels["attention_mask"]}
    for other in (wider, explicit):
        for path, matrix in measure_similarity(t5, [other], T5, protocol=protocol).items():
            assert torch.allclose(matrix.values, expected[path].values, atol=1e-5), path


def test_which_mask_belongs_to_which_stack(t5: nn.Module, make_bert: Callable[..., nn.Module]) -> None:
    attention = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    labels = torch.tensor([[5, 6, -100], [7, -100, -100]])
    own = torch.tensor([[1, 1, 1], [1, 1, 0]])
    batch = {"attention_mask": attention, "labels": labels}
    assert padding_mask(make_bert(), "bert.encoder.layer", batch) is attention
    assert padding_mask(t5, "encoder.block", batch) is attention
    assert torch.equal(padding_mask(t5, "decoder.block", batch), labels != -100)
    assert padding_mask(t5, "decoder.block", {**batch, "decoder_attention_mask": own}) is own
    shifted = [[1, 1, 1, 1], [1, 0, 1, 1]]
    for head_labels in ({}, {"labels": torch.tensor([0, 1])}, {"labels": torch.rand(2, 3)}):
        mask = padding_mask(t5, "decoder.block", {"attention_mask": attention, **head_labels})
        assert mask.tolist() == shifted
    assert padding_mask(t5, "decoder.block", {"attention_mask": attention, "decoder_input_ids": own}) is None
    assert padding_mask(t5, "decoder.block", {}) is None
    assert padding_mask(nn.Identity(), "decoder.layers", batch) is attention
    both = {**batch, "pixel_values": torch.rand(2, 3, 4, 4)}
    assert padding_mask(nn.Identity(), "text_model.encoder.layers", both) is attention
    assert padding_mask(nn.Identity(), "vision_model.encoder.layers", both) is None
    assert padding_mask(nn.Identity(), "model.visual.blocks", {**both, "pixel_mask": own}) is own


def test_a_mask_longer_than_the_output_is_reduced() -> None:
    sentences = make_sentences([3, 5, 4, 5, 2])
    batch = pad(sentences)
    fine = batch["attention_mask"].repeat_interleave(2, dim=1)
    fine[0, 5] = 0  # half a position is still a position
    assert torch.equal(measure_toy([{**batch, "attention_mask": fine}]), measure_toy([batch]))


@pytest.mark.parametrize("shape", [(5, 7), (4, 6), (5, 1, 6, 6), (5, 3)])
def test_a_mask_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    batch = {**pad(make_sentences([6] * 5)), "attention_mask": torch.ones(shape)}
    text = rf"blocks.0 puts out 5 x 6 positions, but the padding mask has shape {re.escape(str(shape))}"
    with pytest.raises(CalibrationError, match=text):
        measure_toy([batch])


# Too little data, broken data


def test_small_batches_are_skipped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    sentences = make_sentences([6] * 14)
    whole = [pad(sentences[:8]), pad(sentences[8:12])]
    with caplog.at_level(logging.WARNING, logger="hf_mpruner"):
        values = measure_toy([pad(sentences[12:]), *whole, pad(sentences[11:])])
    assert torch.equal(values, measure_toy(whole))
    assert [record.message for record in caplog.records] == [
        "blocks: skipped 5 of 17 examples, in batches of fewer than 4 rows (examples) or without any real token"
    ]


def test_short_sentences_are_skipped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    sentences = make_sentences([6, 1, 5, 1, 4])
    protocol = {"estimator": "biased", **PER_SENTENCE}
    with caplog.at_level(logging.WARNING, logger="hf_mpruner"):
        values = measure_toy([pad(sentences)], **protocol)
    assert torch.allclose(values, measure_toy([pad(sentences[::2])], **protocol), atol=1e-9)
    assert [record.message for record in caplog.records] == [
        "blocks: skipped 2 of 5 examples, in examples of fewer than 2 rows (tokens) or without any real token"
    ]


@pytest.mark.parametrize("rows", ALL_ROWS, ids=IDS)
def test_examples_without_a_token_are_no_rows(rows: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    sentences = make_sentences([6, 5, 7, 0, 4, 5, 0])
    values = measure_toy([pad(sentences)], **rows)
    assert torch.allclose(values, measure_toy([pad([s for s in sentences if len(s)])], **rows), atol=1e-9)
    assert "skipped 2 of 7 examples" in caplog.text


def test_nothing_left_says_how_many_rows_there_were() -> None:
    sentences = make_sentences([3, 3, 2])
    text = r"blocks: none of 5 examples could be measured: a batch had at most 3 rows \(examples\).*"
    with pytest.raises(
        CalibrationError, match=text + r"'unbiased' needs at least 4.*larger batch.*estimator='biased'"
    ):
        measure_toy([pad(sentences), pad(sentences[:2])])
    text = r"none of 3 examples could be measured: an example had at most 3 rows \(tokens\).*longer examples"
    with pytest.raises(CalibrationError, match=text):
        measure_toy([pad(sentences)], **PER_SENTENCE)
    with pytest.raises(
        CalibrationError, match=r"a batch had at most 1 rows.*'biased' needs at least 2. Use a larger batch\.$"
    ):
        measure_toy([pad(sentences[:1])], estimator="biased")


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(CalibrationError, match="the calibration loader is empty"):
        measure_toy([])


@pytest.mark.parametrize("rows", ALL_ROWS, ids=IDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_activations_name_the_layer(bad: float, rows: dict[str, str]) -> None:
    model = Toy()
    with torch.no_grad():
        model.blocks[1].linear.bias[0] = bad
    model.blocks[1].wrap = lambda x: x + model.blocks[1].linear.bias
    with pytest.raises(CalibrationError, match=r"blocks.1 puts out NaN or infinite values"):
        measure_toy([pad(make_sentences([6] * 5))], model, **rows)


def test_a_constant_layer_is_named() -> None:
    model = Toy()
    model.blocks[2].wrap = lambda x: torch.full_like(x, 0.7)
    with pytest.raises(CalibrationError, match=r"blocks.2 gives the same output for every row"):
        measure_toy([pad(make_sentences([6] * 5))], model)


@pytest.mark.parametrize(
    ("wrap", "text"),
    [
        (lambda x: {"hidden": x}, "blocks.0 puts out a dict; similarity needs a tensor"),
        (lambda x: (), "blocks.0 puts out a tuple"),
        (lambda x: x.flatten(0, 1), r"blocks.0 puts out a tensor of shape \(30, 8\)"),
    ],
)
def test_outputs_that_are_no_hidden_states_are_refused(wrap: Callable[[Tensor], Any], text: str) -> None:
    with pytest.raises(CalibrationError, match=text):
        measure_toy([pad(make_sentences([6] * 5))], Toy(wrap=wrap))


def test_blocks_must_agree_run_and_run_once() -> None:
    batch = pad(make_sentences([6] * 5))
    model = Toy()
    model.blocks[1].wrap = lambda x: x[:, ::2]
    with pytest.raises(
        CalibrationError, match=r"blocks.1 puts out 5 x 3 positions, the first block of the stack 5 x 6"
    ):
        measure_toy([batch], model)
    model = Toy()
    model.blocks[2] = model.blocks[1]
    with pytest.raises(CalibrationError, match=r"blocks\.[12] ran twice"):
        measure_toy([batch], model)
    model = Toy()
    model.forward = lambda features, attention_mask: model.blocks[0](features)
    with pytest.raises(CalibrationError, match=r"blocks.1 did not run in the forward pass"):
        measure_toy([batch], model)


def test_a_stack_of_another_model_is_refused(make_bert: Callable[..., nn.Module]) -> None:
    with pytest.raises(
        PlanMismatchError, match=r"'bert.encoder.layer' is described with 4 blocks, but this model has 3"
    ):
        measure_similarity(make_bert(3), [make_text()], BERT)
    with pytest.raises(PlanMismatchError, match=r"Toy has no module 'bert.encoder.layer'"):
        measure_similarity(Toy(), [make_text()], BERT)


def test_arguments_are_checked(make_bert: Callable[..., nn.Module]) -> None:
    model, loader = make_bert(), [make_text()]
    with pytest.raises(ValueError, match="max_samples=0 is below 1"):
        measure_similarity(model, loader, BERT, max_samples=0)
    with pytest.raises(ValueError, match="protocol='papre' is not one of 'default', 'paper'"):
        measure_similarity(model, loader, BERT, protocol="papre")
    with pytest.raises(ValueError, match="stacks is empty"):
        measure_similarity(model, loader, [])
    with pytest.raises(TypeError, match="the calibration loader yields Tensor"):
        measure_similarity(model, [torch.ones(2)], BERT)
    with pytest.raises(CalibrationError, match=r"holds no tensor, only \['text'\]"):
        measure_similarity(model, [{"text": ["a"]}], BERT)
