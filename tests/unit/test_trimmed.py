"""A parameter with room for every layer loses the room of the removed ones, and its moments with it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import Adafactor, PreTrainedConfig, PreTrainedModel

from hf_mpruner.architectures import find_block_stacks, parameters_after
from hf_mpruner.cut import make_cut
from hf_mpruner.plan import PruningPlan
from hf_mpruner.recovery import WholeModel
from hf_mpruner.runtime import SingleProcess
from hf_mpruner.surgery import ModelEdit

WIDTH, VOCABULARY = 3, 7
KEPT = {"layers": [0, 2]}
ROOM = [0, 1, 2, 6, 7, 8]


class RoomyConfig(PreTrainedConfig):
    model_type = "roomy"
    num_hidden_layers: int = 4


class RoomyBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, extra):
        return x + self.linear(x + extra)


class RoomyModel(PreTrainedModel):
    """Every layer is given an embedding of its own, as in Gemma 3n."""

    config_class = RoomyConfig

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(RoomyBlock() for _ in range(config.num_hidden_layers))
        self.embed_tokens_per_layer = nn.Embedding(VOCABULARY, config.num_hidden_layers * WIDTH)
        self.post_init()

    def forward(self, ids):
        extra = self.embed_tokens_per_layer(ids).unflatten(-1, (-1, WIDTH))
        x = torch.ones(len(ids), WIDTH)
        for number, layer in enumerate(self.layers):
            x = layer(x, extra[:, number])
        return x


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RoomyModel(RoomyConfig())


def step(model, optimizer):
    model(torch.arange(VOCABULARY)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def everything(model, optimizer):
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, tuple):
        return all(map(equal, first, second))
    return first == second


def test_the_room_of_the_kept_layers_stays(model):
    weight = model.embed_tokens_per_layer.weight
    whole, size = weight.detach().clone(), sum(p.numel() for p in model.parameters())
    edit = ModelEdit(model, KEPT)
    promised = parameters_after(model, KEPT)[0]
    edit.apply()
    assert model.embed_tokens_per_layer.weight is weight
    assert torch.equal(weight, whole[:, ROOM])
    assert model.embed_tokens_per_layer.embedding_dim == 2 * WIDTH
    assert sum(p.numel() for p in model.parameters()) == size - edit.num_removed_parameters == promised
    fresh = RoomyModel(model.config)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(torch.arange(VOCABULARY)), model(torch.arange(VOCABULARY)))
    edit.undo()
    assert torch.equal(weight, whole)


@pytest.mark.parametrize("snapshot", ["cpu", "device"])
@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_training_goes_on_and_a_rollback_is_exact(model, name, snapshot):
    make = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
        "adafactor": lambda p: Adafactor(p, lr=0.1, scale_parameter=False, relative_step=False),
    }[name]
    optimizer = make(model.parameters())
    for _ in range(3):
        step(model, optimizer)
    before = everything(model, optimizer)
    moments = optimizer.state[model.embed_tokens_per_layer.weight]
    cut = make_cut(
        model,
        PruningPlan.from_kept(KEPT, find_block_stacks(model)),
        optimizer,
        None,
        runtime=SingleProcess(),
        snapshot=snapshot,
        snapshot_directory=None,
        trainable=WholeModel(),
    )
    if name == "adamw":
        after = optimizer.state[model.embed_tokens_per_layer.weight]["exp_avg"]
        assert torch.equal(after, moments["exp_avg"][:, ROOM])
    for _ in range(2):
        step(model, optimizer)
    cut.undo()
    assert equal(everything(model, optimizer), before)
