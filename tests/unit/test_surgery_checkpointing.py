"""Marks of activation checkpointing after a cut: those of a fresh small model; after an undo: the old ones."""

from __future__ import annotations

import pytest
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, T5Config, T5Model
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_mpruner.surgery import ModelEdit, mark_returned
from hf_mpruner.surgery.checkpointing import checkpointed_every

STACK = "encoder.layer"


def bert(layers=7):
    return BertModel(
        BertConfig(num_hidden_layers=layers, hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=9)
    )


def t5(encoder=5, decoder=4):
    return T5Model(
        T5Config(num_layers=encoder, num_decoder_layers=decoder, d_model=8, d_kv=4, d_ff=8, num_heads=2, vocab_size=9)
    )


def switch_on(model, every):
    model._set_gradient_checkpointing(True, checkpoint, every_n_layers=every)
    return model


def marks(model):
    return [m.gradient_checkpointing for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


@pytest.mark.parametrize("every", [1, 2, 3, 6, 7, 9])
@pytest.mark.parametrize("kept", [[0, 1, 2, 4], [0, 2, 4, 6], [1, 3], [6]])
def test_as_in_a_fresh_small_model_and_back(every, kept):
    model = switch_on(bert(), every)
    before = marks(model)
    edit = ModelEdit(model, {STACK: kept})
    assert marks(model) == before
    edit.apply()
    assert marks(model) == marks(switch_on(bert(len(kept)), every))
    edit.undo()
    assert marks(model) == before


def test_two_stacks_are_counted_through():
    model = switch_on(t5(), 2)
    before = marks(model)
    edit = ModelEdit(model, {"encoder.block": [0, 1, 3, 4], "decoder.block": [0, 3]})
    edit.apply()
    assert marks(model) == marks(switch_on(t5(4, 2), 2))
    edit.undo()
    assert marks(model) == before


@pytest.mark.parametrize("own", [[], [1, 2], [0, 1, 4], range(1, 7)])
def test_marks_of_ones_own_go_with_their_layers(own):
    model = bert()
    for layer in own:
        model.encoder.layer[layer].gradient_checkpointing = True
    assert checkpointed_every(model) == 0
    kept = [0, 2, 4]
    edit = ModelEdit(model, {STACK: kept})
    edit.apply()
    assert marks(model) == [layer in own for layer in kept]


@pytest.mark.parametrize("every", [1, 2])
def test_layers_that_come_back_after_it_was_switched_on(every):
    model = bert()
    edit = ModelEdit(model, {STACK: [3]})
    edit.apply()
    switch_on(model, every)
    edit.undo()
    mark_returned(model, every)
    assert marks(model) == marks(switch_on(bert(), every))
    assert all(layer._gradient_checkpointing_func is checkpoint for layer in model.encoder.layer)
    off = bert()
    mark_returned(off, every)
    assert marks(off) == [False] * 7
