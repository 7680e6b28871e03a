"""Layers that reuse the keys of earlier ones, and layers that put theirs out for nobody."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from hf_mpruner.architectures import find_block_stacks
from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.surgery import ModelEdit

STACK = "model.layers"
SIZES = {
    "num_hidden_layers": 6, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "global_head_dim": 8, "vocab_size": 9, "vocab_size_per_layer_input": 9,
    "hidden_size_per_layer_input": 4, "sliding_window": 4,
}  # fmt: skip


def gemma4(types, shared=0):
    config = Gemma4TextConfig(**SIZES, layer_types=types, num_kv_shared_layers=shared)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Gemma4ForCausalLM(config).eval()


def stores(model):
    return [layer.self_attn.store_full_length_kv for layer in model.get_submodule(STACK)]


@pytest.mark.parametrize("kept", [[0, 5], [5], [1, 3, 5]])
def test_keys_that_no_layer_reads_pin_no_layer(kept, tmp_path):
    """In transformers 5.24 the last layer of each kind puts them out, even if no layer reuses them."""
    model = gemma4(["sliding_attention"] * 5 + ["full_attention"])
    assert set(find_block_stacks(model)[0].pinned) <= {5}
    before = stores(model)
    edit = ModelEdit(model, {STACK: kept})
    edit.apply()
    model.save_pretrained(tmp_path)
    reloaded = Gemma4ForCausalLM.from_pretrained(tmp_path).eval()
    assert stores(model) == stores(reloaded)
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reloaded(ids).logits)
    assert torch.equal(model.generate(ids, max_new_tokens=2), reloaded.generate(ids, max_new_tokens=2))
    edit.undo()
    assert stores(model) == before


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ([4, 5], r"num_kv_shared_layers = 2 would be true of all 2 layers that stay"),
        ([5], r"num_kv_shared_layers = 2 would be true of all 1 layers that stay"),
        ([0, 1, 3, 4, 5], "value of 'self_attn.store_full_length_kv' of layer 0 is False and would be True"),
    ],
)
def test_layers_whose_keys_others_reuse_stay(kept, text):
    model = gemma4(["sliding_attention", "full_attention"] * 3, shared=2)
    with pytest.raises(UnsupportedArchitectureError, match=text):
        ModelEdit(model, {STACK: kept})
