"""Custom model classes whose builds depend on how many blocks there are: what no family of transformers does so plainly."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

CUSTOM_STACK = "layers"


class CustomConfig(PreTrainedConfig):
    model_type = "custom_kit"

    def __init__(self, num_hidden_layers=4, fewest=1, hidden_size=16, vocab_size=99, **kwargs):
        self.num_hidden_layers, self.fewest = num_hidden_layers, fewest
        self.hidden_size, self.vocab_size = hidden_size, vocab_size
        super().__init__(**kwargs)


class CustomBlock(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.dense = nn.Linear(size, size)

    def forward(self, hidden_states):
        return hidden_states + torch.tanh(self.dense(hidden_states))


class CustomModel(PreTrainedModel):
    """A classifier; with fewer than `config.fewest` blocks each of them is twice as wide, so such cuts are refused."""

    config_class = CustomConfig
    main_input_name = "input_ids"

    def __init__(self, config):
        super().__init__(config)
        size, short = config.hidden_size, config.num_hidden_layers < config.fewest
        self.embed = nn.Embedding(config.vocab_size, 2 * size if short else size)
        self.layers = nn.ModuleList(CustomBlock(2 * size if short else size) for _ in range(config.num_hidden_layers))
        self.head = nn.Linear(2 * size if short else size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden_states = self.embed(input_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        logits = self.head(hidden_states.mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def make_custom(model_class=CustomModel, seed=0, **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(CustomConfig(num_labels=2, **config)).eval()
