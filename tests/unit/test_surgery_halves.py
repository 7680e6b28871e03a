"""Halves of blocks that leave for good: where a model's code reads its config, and refused everywhere else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig

from custom_kit import CUSTOM_STACK, CustomModel, make_custom
from hf_mpruner import apply_plan_
from hf_mpruner.architectures import find_block_stacks
from hf_mpruner.errors import PlanMismatchError, UnsupportedArchitectureError
from hf_mpruner.halves import measure_halves
from hf_mpruner.plan import PruningPlan
from hf_mpruner.surgery import drop_halves_

pytestmark = pytest.mark.skipif(
    not hasattr(PreTrainedConfig, "per_layer_config"), reason="this transformers has no settings of single layers"
)

IDS = torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(1))
INPUTS = {"input_ids": IDS}


class Mixer(nn.Module):
    """Each position gets something of the mean of all."""

    def __init__(self, size):
        super().__init__()
        self.value, self.out = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, hidden_states):
        return self.out(torch.tanh(self.value(hidden_states)) + hidden_states.mean(1, keepdim=True))


class Forward(nn.Module):
    """Each position by itself."""

    def __init__(self, size):
        super().__init__()
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, hidden_states):
        return self.down(torch.relu(self.up(hidden_states)))


class Nothing(nn.Module):
    """Stands where a half was."""

    def forward(self, hidden_states):
        return torch.zeros_like(hidden_states)


class Honest(nn.Module):
    """Reads from its config which halves it has."""

    def __init__(self, config, layer):
        super().__init__()
        skip = getattr(config.per_layer_config[layer], "skip", [])
        size = config.hidden_size
        self.has_attention = "attention" not in skip
        self.norm = nn.LayerNorm(size) if self.has_attention else nn.Identity()
        self.attention = Mixer(size) if self.has_attention else Nothing()
        self.ff = None if "mlp" in skip else Forward(size)

    def forward(self, hidden_states):
        hidden_states = hidden_states + self.attention(self.norm(hidden_states))
        return hidden_states if self.ff is None else hidden_states + self.ff(hidden_states)


class HonestModel(CustomModel):
    """A model of a version of transformers to come."""

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(Honest(config, layer) for layer in range(config.num_hidden_layers))
        self.post_init()


class Cheat(Honest):
    """Leaves out what it is told to, and does something else in its place."""

    def forward(self, hidden_states):
        hidden_states = super().forward(hidden_states)
        return hidden_states if self.has_attention else hidden_states * 2


class CheatingModel(HonestModel):
    """Its config says what the blocks are, and they are something else."""

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(Cheat(config, layer) for layer in range(config.num_hidden_layers))
        self.post_init()


def state_of(model):
    return (
        {name: weight.clone() for name, weight in model.state_dict().items()},
        [(name, id(module)) for name, module in model.named_modules()],
        model.config.to_dict(),
        {name: sorted(vars(module)) for name, module in model.named_modules()},
    )


def assert_same(one, other):
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert one[1:] == other[1:]


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def written_out(model, without):
    """The model's arithmetic by hand, without some halves: {layer: kinds}."""
    with torch.no_grad():
        hidden = model.embed(IDS)
        for layer, block in enumerate(model.layers):
            if "attention" not in without.get(layer, ()):
                hidden = hidden + block.attention(block.norm(hidden))
            if "feed_forward" not in without.get(layer, ()):
                hidden = hidden + block.ff(hidden)
        return model.head(hidden.mean(1))


CHOICES = [
    {1: ["attention"]},
    {0: ["feed_forward"], 3: ["feed_forward"]},
    {0: ["attention"], 2: ["attention", "feed_forward"]},
]


@pytest.mark.parametrize("halves", CHOICES)
def test_halves_leave_are_saved_and_come_back(halves, tmp_path):
    model = make_custom(HonestModel)
    before, whole = state_of(model), logits(model)
    wanted = written_out(model, halves)
    edit = drop_halves_(model, {CUSTOM_STACK: halves}, INPUTS)
    assert torch.equal(logits(model), wanted)
    assert not torch.equal(wanted, whole)
    gone = before[0].keys() - model.state_dict().keys()
    parts = {"attention": ("attention.", "norm."), "feed_forward": ("ff.",)}
    prefixes = tuple(
        f"layers.{layer}.{part}" for layer, kinds in halves.items() for kind in kinds for part in parts[kind]
    )
    assert gone == {name for name in before[0] if name.startswith(prefixes)}
    assert gone
    copy.deepcopy(model).save_pretrained(tmp_path)  # saving writes into the config
    loaded, info = HonestModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(loaded.eval()), wanted)
    edit.undo()
    assert_same(state_of(model), before)
    assert torch.equal(logits(model), whole)


def test_what_can_be_dropped_is_said_by_measuring():
    stack = measure_halves(make_custom(HonestModel), [INPUTS]).stacks[CUSTOM_STACK]
    assert stack.skips == {"attention": "attention", "feed_forward": "mlp"}
    assert stack.note == "Can be dropped for good: attention, feed_forward."


def test_a_second_half_can_go_later_and_other_settings_stay():
    model = make_custom(HonestModel)
    drop_halves_(model, {CUSTOM_STACK: {1: ["attention"]}}, INPUTS)
    whole = logits(model)
    # a stack whose blocks are of several kinds is refused: which half is which was found in whole ones
    with pytest.raises(UnsupportedArchitectureError, match="block 1 cannot be told apart"):
        drop_halves_(model, {CUSTOM_STACK: {2: ["attention"]}}, INPUTS)
    assert torch.equal(logits(model), whole)


def test_settings_of_layers_follow_when_layers_are_cut_afterwards():
    model = make_custom(HonestModel)
    halves = {2: ["attention"]}
    drop_halves_(model, {CUSTOM_STACK: halves}, INPUTS)
    plan = PruningPlan.from_kept({CUSTOM_STACK: [0, 2, 3]}, find_block_stacks(model))
    apply_plan_(model, plan, verify="full", inputs=INPUTS)
    assert [block.has_attention for block in model.layers] == [True, False, True]
    assert model.config.per_layer_config[1].skip == ["attention"]


# -- refused ----------------------------------------------------------------------------------------------------------


def make_llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2)).eval()


@pytest.mark.parametrize(
    ("make", "halves", "error", "message"),
    [
        (make_llama, {"model.layers": {1: ["attention"]}}, UnsupportedArchitectureError,
         r"Measured, not done: transformers \S+ builds every LlamaDecoderLayer of model_type 'llama' whole"),
        (lambda: make_custom(HonestModel), {CUSTOM_STACK: {1: ["mlp"]}}, PlanMismatchError,
         "no half 'mlp': name one of attention, feed_forward"),
        (lambda: make_custom(HonestModel), {CUSTOM_STACK: {4: ["attention"]}}, PlanMismatchError, "no layer 4"),
        (lambda: make_custom(HonestModel), {"blocks": {1: ["attention"]}}, PlanMismatchError, "stacks are: layers"),
        (lambda: make_custom(CheatingModel), {CUSTOM_STACK: {1: ["attention"]}}, UnsupportedArchitectureError,
         "could not be proved right: it is not the whole model with them silent"),
        (make_custom, {CUSTOM_STACK: {1: ["attention"]}}, UnsupportedArchitectureError, "cannot be told apart"),
    ],
)  # fmt: skip
def test_what_cannot_be_dropped_is_refused_and_changes_nothing(make, halves, error, message):
    model = make()
    before = state_of(model)
    with pytest.raises(error, match=message):
        drop_halves_(model, halves, INPUTS)
    assert_same(state_of(model), before)


def test_an_edit_leaves_training_flags_and_the_random_state():
    model = make_custom(HonestModel).train()
    drawn = torch.get_rng_state()
    drop_halves_(model, {CUSTOM_STACK: {1: ["attention"]}}, INPUTS)
    assert model.training
    assert all(block.training for block in model.layers)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert copy.deepcopy(model).eval()(IDS).logits.shape == (3, 2)
