"""What a user says about a model type of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedConfig, PreTrainedModel

from hf_mpruner import find_block_stacks, register_architecture
from hf_mpruner.architectures import examine
from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.surgery import ModelEdit


class CustomConfig(PreTrainedConfig):
    model_type = "custom_for_registry"
    num_layers: int = 4
    num_heads: int = 3
    dilations: list[int] | None = None
    skips: list[int] | None = None
    taps: list[int] | None = None


class CustomBlock(nn.Module):
    def __init__(self, config, number):
        super().__init__()
        self.slot = number
        self.linear = nn.Linear(2, 2)

    def forward(self, x, store):
        store[self.slot] = x
        return x + self.linear(x)


class CustomModel(PreTrainedModel):
    config_class = CustomConfig

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(CustomBlock(config, number) for number in range(config.num_layers))
        self.heads = nn.ModuleList(CustomBlock(config, 0) for _ in range(config.num_heads))
        self.post_init()

    def forward(self, x):
        store = {}
        for number, layer in enumerate(self.layers):
            x = layer(x, store) * (self.config.dilations[number] if self.config.dilations else 1)
            if self.config.skips and number in self.config.skips:
                x = x + 1
            if store[number + 0] is None:
                return x
        return x


@pytest.fixture(autouse=True)
def _nothing_stays_registered() -> Iterator[None]:
    yield
    register_architecture("custom_for_registry")
    register_architecture("bert")


CODE = ["CustomModel.forward: number + 0", "CustomModel.forward: number in self.config.skips"]


def test_a_custom_model_is_refused_with_what_is_not_known_and_registered():
    torch.manual_seed(0)
    model = CustomModel(CustomConfig(dilations=[1, 2, 3, 4], skips=[1, 3])).eval()
    found = examine(model)
    assert "layers" not in {stack.path for stack in found.stacks}
    assert any("config.dilations has one entry for each of the 4 layers" in reason for reason in found.refusals)
    register_architecture(
        "custom_for_registry",
        per_layer_lists=["dilations"],
        layer_indices=["skips"],
        position_attributes=["slot"],
        harmless_code=CODE,
        not_blocks=["num_heads"],
        pinned={"num_layers": [-1]},
    )
    (stack,) = find_block_stacks(model)
    assert (stack.path, stack.pinned) == ("layers", {3: "register_architecture says that it must stay"})
    x = torch.randn(3, 2)
    edit = ModelEdit(model, {"layers": [0, 1, 3]})
    edit.apply()
    assert (model.config.dilations, model.config.skips) == ([1, 2, 4], [1, 2])
    assert [layer.slot for layer in model.layers] == [0, 1, 2]
    fresh = CustomModel(CustomConfig.from_dict(model.config.to_dict())).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


class Indexed(CustomModel):
    """Reads its list by layer number already when it is built, and keeps nothing of it."""

    def __init__(self, config):
        super().__init__(config)
        assert all(config.dilations[number] for number in range(config.num_layers))


def test_a_list_that_is_read_by_layer_number_at_the_start_is_not_taken_for_another():
    model = Indexed(CustomConfig(dilations=[1, 2, 3, 4]))
    reasons = examine(model).refusals
    assert any("config.dilations has one entry for each of the 4 layers" in reason for reason in reasons)


def test_what_is_registered_is_for_its_type_alone():
    register_architecture("custom_for_registry", not_blocks=["num_hidden_layers"])
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "vocab_size": 9, "intermediate_size": 8}
    model = BertModel(BertConfig(num_hidden_layers=3, **sizes))
    assert find_block_stacks(model)[0].depth == 3
    register_architecture("bert", not_blocks=["num_hidden_layers"])
    with pytest.raises(
        UnsupportedArchitectureError, match="counts no blocks in a row: registered for this model type"
    ):
        find_block_stacks(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_type": ""}, r"model_type='' is no name\. Pass config\.model_type"),
        ({"model_type": CustomModel}, "is no name"),
        (
            {"model_type": "x", "layer_indices": "skips"},
            r"layer_indices='skips' is a single string\. Pass a list of names: layer_indices=\['skips'\]",
        ),
    ],
)
def test_a_wrong_registration_says_what_to_type(arguments, message):
    with pytest.raises(TypeError, match=message):
        register_architecture(**arguments)
