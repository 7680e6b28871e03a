"""What is cut inside of what trains, and batches as the transformers model takes them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_mpruner import errors
from hf_mpruner.subject import check_surroundings, find_pretrained, trained_whole
from hf_mpruner.trainers import FeatureBatches, unflatten


class Saved(nn.Module):
    """A module that saves what it holds, as the models of sentence-transformers do."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def save_pretrained(self, folder):
        raise AssertionError("nothing is saved here")


def test_the_one_transformers_model_is_found(make_bert):
    model = make_bert()
    assert find_pretrained(model) is model  # and not model.bert, which is one, too
    assert find_pretrained(Saved(deep=nn.Sequential(nn.Linear(2, 2), model))) is model


def test_none_or_two_are_named(make_bert):
    with pytest.raises(errors.UnsupportedArchitectureError, match="Saved holds no transformers model"):
        find_pretrained(Saved(head=nn.Linear(2, 2)))
    two = Saved(query=make_bert(), document=nn.Sequential(make_bert()))
    with pytest.raises(errors.UnsupportedArchitectureError, match=r"'query' \(Bert.*'document\.0' \(Bert.*prune_"):
        find_pretrained(two)


def test_a_module_that_does_not_save_is_not_looked_into(make_bert):
    plain = nn.Sequential(make_bert())
    assert find_pretrained(plain) is plain


def test_a_loss_with_weights_trains_beside_the_model():
    model = Saved(body=nn.Linear(2, 2))
    loss = nn.Module()
    loss.model = model
    assert trained_whole(SimpleNamespace(model=model)) is model
    assert trained_whole(SimpleNamespace(model=model, loss=loss)) is model
    loss.classifier = nn.Linear(2, 3)
    for given in (loss, {"first": loss}):
        whole = trained_whole(SimpleNamespace(model=model, loss=given))
        names = [name for name, _ in whole.named_parameters()]
        assert names == [
            "model.body.weight", "model.body.bias", "loss.0.classifier.weight", "loss.0.classifier.bias",
        ]  # fmt: skip
    loss.classifier.requires_grad_(False)
    assert trained_whole(SimpleNamespace(model=model, loss=loss)) is model


def test_a_config_of_its_own_around_the_model_is_refused(make_bert):
    model, other = make_bert(), make_bert()
    head = nn.Linear(2, 2)
    whole = Saved(body=model, head=head)
    head.config = model.config
    check_surroundings(whole, model)
    head.config = other.config
    with pytest.raises(errors.UnsupportedArchitectureError, match=r"'head' \(Linear\) keeps a config of its own"):
        check_surroundings(whole, model)


def test_only_a_row_without_a_mask_is_taken_apart():
    ids = torch.tensor([[5, 6, 7, 8, 9, 4]])
    flat = {
        "input_ids": ids,
        "position_ids": torch.tensor([[0, 1, 0, 1, 2, 0]]),
        "labels": ids,
        "cu_seq_lens_q": torch.tensor([0, 2, 5, 6]),
        "max_length_q": 3,
        "extra": 1,
    }
    apart = unflatten(flat)
    assert set(apart) == {"input_ids", "attention_mask", "extra"}
    assert apart["input_ids"].tolist() == [[5, 6, 0], [7, 8, 9], [4, 0, 0]]
    assert apart["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    for batch in (
        {**flat, "attention_mask": torch.ones_like(ids)},
        {"input_ids": ids},
        {"input_ids": ids.view(2, 3), "position_ids": flat["position_ids"].view(2, 3)},
    ):
        assert unflatten(batch) is batch


def test_pairs_of_a_cross_encoder_are_the_first_column_with_each_other():
    def split(inputs):
        return list(inputs.values()), None

    def encode(pairs):
        return {"input_ids": pairs, "modality": "text"}

    batch = {"q": ["a", "b"], "d": ["c", "d"], "many": [["e", "f"], ["g"]], "prompt": "p", "dataset_name": "n"}
    found = list(FeatureBatches([batch], split, encode, {"input_ids"}))
    assert found == [
        {"input_ids": [("a", "c"), ("b", "d")]},
        {"input_ids": [("a", "e"), ("a", "f"), ("b", "g")]},
    ]
