"""`optimizer.pt` numbers parameters by their place: after a cut the places are those of a fresh small model."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from hf_mpruner.optimizer import OptimizerEdit
from hf_mpruner.surgery import ModelEdit

KEPT = {"encoder.block": [1, 3], "decoder.block": [2, 3]}  # both first blocks go, which own the relative bias


def make_t5(layers: int = 4) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 4, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(
        T5Config(num_layers=layers, num_decoder_layers=layers, decoder_start_token_id=0, **sizes)
    )


def groups_of(model):
    """As the Trainer splits them, and named."""
    groups = []
    for matrices in (True, False):
        named = [(name, p) for name, p in model.named_parameters() if (p.dim() > 1) == matrices]
        decay = {"weight_decay": 0.01 if matrices else 0.0}
        groups.append({"params": [p for _, p in named], "param_names": [name for name, _ in named], **decay})
    return groups


def step(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 30, (4, 6), generator=generator)
    model(input_ids=ids, labels=ids.flip(1)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def names_in(model, optimizer):
    names = {id(p): n for n, p in model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def cut(model, optimizer):
    edit = ModelEdit(model, KEPT)
    optimizer_edit = OptimizerEdit(optimizer, None, edit.removed_parameters, edit.trims, model)
    edit.apply()
    optimizer_edit.apply()
    return edit, optimizer_edit


def test_the_order_is_that_of_a_fresh_small_model_which_then_trains_the_same():
    model = make_t5()
    optimizer = torch.optim.AdamW(groups_of(model)[::-1], lr=0.01)
    step(model, optimizer, 0)
    cut(model, optimizer)
    fresh = make_t5(2)
    fresh_optimizer = torch.optim.AdamW(groups_of(fresh)[::-1], lr=0.01)
    assert names_in(model, optimizer) == names_in(fresh, fresh_optimizer)

    fresh.load_state_dict(model.state_dict())
    fresh_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (1, 2):
        step(model, optimizer, seed)
        step(fresh, fresh_optimizer, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_undo_brings_the_order_back_with_names_and_state():
    model = make_t5()
    optimizer = torch.optim.AdamW(groups_of(model), lr=0.01)
    step(model, optimizer, 0)
    before, names = copy.deepcopy(optimizer.state_dict()), names_in(model, optimizer)
    edit, optimizer_edit = cut(model, optimizer)
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    moved = names_in(model, optimizer)[0].index(bias)
    assert "relative_attention_bias" in optimizer.param_groups[0]["param_names"][moved]
    optimizer_edit.undo()
    edit.undo()
    assert names_in(model, optimizer) == names
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()
    for place, values in before["state"].items():
        assert all(torch.equal(after["state"][place][key], value) for key, value in values.items())


@pytest.mark.parametrize("given_model", [True, False])
def test_a_group_in_an_order_of_its_own_keeps_it(given_model):
    model = make_t5()
    params = list(model.parameters())[::-1] if given_model else list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=0.1)
    edit = ModelEdit(model, KEPT)
    optimizer_edit = OptimizerEdit(
        optimizer, None, edit.removed_parameters, edit.trims, model if given_model else None
    )
    edit.apply()
    optimizer_edit.apply()
    removed = set(edit.removed_parameters)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in params if p not in removed]
