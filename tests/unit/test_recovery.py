"""What trains after a cut: the neighbours of the gaps and the head, by the flags of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_mpruner.recovery import freeze_untouched_, touched_layers

STACK = "bert.encoder.layer"


@pytest.mark.parametrize(
    ("depth", "kept", "touched"),
    [
        (12, [0, 1, 4, 7, 8], [1, 2, 3, 4]),
        (12, [0, 5, 11], [0, 1, 2]),
        (6, [0, 1, 2, 3, 4], [4]),
        (6, [1, 2, 3, 4, 5], [0]),
        (6, [0, 1, 3, 4, 5], [1, 2]),
        (6, [2], [0]),
        (6, [0, 1, 2, 3, 4, 5], []),
        (1, [0], []),
    ],
)
def test_touched_layers_stand_beside_a_gap(depth: int, kept: list[int], touched: list[int]) -> None:
    assert touched_layers(depth, kept) == touched


def test_touched_layers_follow_their_definition() -> None:
    """Against the definition, for every choice of layers of a stack of 7."""
    depth = 7
    for bits in range(1, 2**depth):
        kept = [i for i in range(depth) if bits >> i & 1]
        original = set()
        for gone in set(range(depth)) - set(kept):
            original |= {
                max((i for i in kept if i < gone), default=None),
                min((i for i in kept if i > gone), default=None),
            }
        assert touched_layers(depth, kept) == [place for place, layer in enumerate(kept) if layer in original]


@pytest.mark.parametrize("kept", [[], [0, 0], [1, 0], [0, 4], [-1, 0]], ids=str)
def test_an_impossible_choice_is_refused(kept: list[int]) -> None:
    text = rf"kept=\[{', '.join(map(str, kept))}\] is no ascending choice of layers of a stack of 4.*from 0 to 3"
    with pytest.raises(ValueError, match=text):
        touched_layers(4, kept)


def trainable(model: nn.Module) -> set[str]:
    return {name for name, param in model.named_parameters() if param.requires_grad}


def flags(model: nn.Module) -> list[bool]:
    return [param.requires_grad for param in model.parameters()]


def test_touched_blocks_and_the_head_train(make_bert: Callable[..., Any]) -> None:
    model = make_bert()
    before = flags(model)
    frozen = freeze_untouched_(model, {STACK: [1, 2]})
    for name, param in model.named_parameters():
        assert param.requires_grad == name.startswith((f"{STACK}.1.", f"{STACK}.2.", "classifier.")), name
    frozen.undo()
    assert flags(model) == before
    frozen.undo()
    assert flags(model) == before


def test_frozen_weights_do_not_move_and_the_others_do(make_bert: Callable[..., Any]) -> None:
    """What the reference code meant by `module.requires_grad = False`, which freezes nothing."""
    model = make_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    rows = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([1])}
    model(**rows).loss.backward()  # a gradient that is left over must not move a frozen weight
    freeze_untouched_(model, {STACK: [3]})
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        model(**rows).loss.backward()
    moved = {name for name, param in model.named_parameters() if not torch.equal(param, before[name])}
    assert moved == trainable(model)


def test_block_1_is_not_block_10(make_bert: Callable[..., Any]) -> None:
    model = make_bert(num_hidden_layers=11)
    freeze_untouched_(model, {STACK: [1]})
    assert {name.split(".")[3] for name in trainable(model) if name.startswith(STACK)} == {"1"}


def test_what_the_user_froze_stays_frozen(make_bert: Callable[..., Any]) -> None:
    model = make_bert()
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[1].attention.requires_grad_(False)
    before = flags(model)
    frozen = freeze_untouched_(model, {STACK: [1, 2]})
    assert not any(".1.attention." in name for name in trainable(model))
    assert any(".1.output." in name for name in trainable(model))
    frozen.undo()
    assert flags(model) == before


SIZES: dict[str, Any] = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def make_t5(**settings: Any) -> T5ForConditionalGeneration:
    config = T5Config(**SIZES, d_model=8, d_kv=4, d_ff=8, num_layers=3, num_heads=2, decoder_start_token_id=0)
    config.update(settings)
    return T5ForConditionalGeneration(config)


def make_llama(**settings: Any) -> LlamaForCausalLM:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3}
    return LlamaForCausalLM(LlamaConfig(**SIZES, **sizes, **settings))


def make_bart() -> BartForConditionalGeneration:
    sizes = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return BartForConditionalGeneration(
        BartConfig(**SIZES, **sizes, **heads, decoder_start_token_id=0, forced_eos_token_id=None)
    )


def make_gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**SIZES, n_embd=8, n_layer=3, n_head=2))


def make_bare_bert() -> BertModel:
    return BertModel(BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=3, num_attention_heads=2))


@pytest.mark.parametrize(
    ("make", "touched", "prefixes"),
    [
        pytest.param(make_llama, {"model.layers": [1]}, ("model.layers.1.", "lm_head."), id="free head"),
        pytest.param(
            lambda: make_llama(tie_word_embeddings=True), {"model.layers": [1]}, ("model.layers.1.",), id="tied head"
        ),
        pytest.param(make_gpt2, {"transformer.h": [0, 2]}, ("transformer.h.0.", "transformer.h.2."), id="gpt2, tied"),
        pytest.param(
            make_bart,
            {"model.encoder.layers": [0], "model.decoder.layers": [2]},
            ("model.encoder.layers.0.", "model.decoder.layers.2."),
            id="two stacks, tied",
        ),
        pytest.param(
            make_t5,
            {"encoder.block": [0], "decoder.block": [1]},
            ("encoder.block.0.", "decoder.block.1."),
            id="its own base",
        ),
        pytest.param(make_bare_bert, {"encoder.layer": [2]}, ("encoder.layer.2.",), id="no head"),
    ],
)
def test_the_head_is_what_lies_outside_the_base_and_is_not_shared_with_it(
    make: Callable[[], nn.Module], touched: dict[str, list[int]], prefixes: tuple[str, ...]
) -> None:
    model = make()
    before = flags(model)
    frozen = freeze_untouched_(model, touched)
    assert trainable(model) == {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    frozen.undo()
    assert flags(model) == before


def test_a_weight_shared_by_a_touched_and_an_untouched_block_is_frozen() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    model.blocks[2].weight = model.blocks[0].weight
    freeze_untouched_(model, {"blocks": [2]})
    assert flags(model) == [False, False, False, False, True]


def test_freezing_everything_is_refused_and_changes_nothing() -> None:
    model = make_bare_bert()
    before = flags(model)
    with pytest.raises(ValueError, match=r"leave nothing to train in BertModel: touched={'encoder.layer': \[\]}"):
        freeze_untouched_(model, {"encoder.layer": []})
    assert flags(model) == before


@pytest.mark.parametrize("position", [3, -1])
def test_a_block_that_does_not_exist_is_refused(position: int) -> None:
    model = make_bare_bert()
    before = flags(model)
    with pytest.raises(ValueError, match=f"touched names block {position} of 'encoder.layer', which has 3 blocks"):
        freeze_untouched_(model, {"encoder.layer": [position]})
    assert flags(model) == before
