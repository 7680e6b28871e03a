"""The divergence from the teacher against its definition, with masks and counts."""

from __future__ import annotations

import pytest
import torch

from hf_mpruner.recovery.distillation import divergence, hidden_difference, kind_of


def by_hand(student, teacher, t):
    p, q = (teacher / t).softmax(-1), (student / t).softmax(-1)
    return t * t * float((p * (p / q).log()).sum())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("items", [None, 7])
def test_masked_tokens_do_not_count(causal, items):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 4, 5)
    labels = torch.tensor([[1, 2, -100, 3], [-100, 1, 1, -100]])
    shift = int(causal)
    chosen = [(b, t) for b in range(2) for t in range(4 - shift) if labels[b, t + shift] != -100]
    expected = sum(by_hand(student[c], teacher[c], 2.0) for c in chosen) / (items or len(chosen))
    found = divergence(student, teacher, labels, temperature=2.0, num_items_in_batch=items, causal=causal)
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_examples_are_averaged_and_the_same_logits_give_zero():
    student, teacher = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    expected = sum(by_hand(student[i], teacher[i], 3.0) for i in range(3)) / 3
    assert float(divergence(student, teacher, torch.zeros(3), temperature=3.0)) == pytest.approx(expected, abs=1e-5)
    assert float(divergence(student, student, temperature=3.0)) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match=r"shape \(3, 5\)"):
        divergence(student, teacher[:2], temperature=3.0)


def test_labels_that_are_true_or_false_each_are_averaged():
    student, teacher = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)).double()
    p, q = (teacher / 2).sigmoid(), (student / 2).sigmoid()
    expected = 4 * float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean())
    assert float(divergence(student, teacher, temperature=2.0, kind="bernoulli")) == pytest.approx(expected, abs=1e-6)
    assert float(divergence(teacher, teacher, temperature=2.0, kind="bernoulli")) == pytest.approx(0.0, abs=1e-6)


def test_numbers_are_compared_by_their_squared_difference():
    student, teacher = torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(2))
    expected = float((student - teacher).square().mean())
    assert float(divergence(student, teacher, temperature=9.0, kind="gaussian")) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("problem", "classes", "labels", "kind"),
    [
        (None, 3, torch.zeros(2, dtype=torch.long), "categorical"),
        ("single_label_classification", 3, torch.zeros(2, dtype=torch.long), "categorical"),
        ("multi_label_classification", 3, None, "bernoulli"),
        (None, 3, torch.zeros(2, 3), "bernoulli"),
        ("regression", 3, torch.zeros(2, 3), "gaussian"),
        (None, 1, torch.zeros(2), "gaussian"),
    ],
)
def test_what_logits_mean_follows_the_problem(problem, classes, labels, kind):
    assert kind_of(problem, torch.zeros(2, classes), labels) == kind


def test_hidden_states_are_compared_where_positions_are_real():
    torch.manual_seed(0)
    student, teacher = ({"a.0": torch.randn(2, 3, 4), "a.1": torch.randn(2, 3, 4)} for _ in range(2))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    real = [(0, 0), (0, 1), (1, 0)]
    expected = [sum(float((student[n][p] - teacher[n][p]).square().mean()) for p in real) / 3 for n in student]
    found = hidden_difference(student, teacher, dict.fromkeys(student, mask))
    assert float(found) == pytest.approx(sum(expected) / 2, abs=1e-6)
    everywhere = [float((student[n] - teacher[n]).square().mean()) for n in student]
    assert float(hidden_difference(student, teacher, {})) == pytest.approx(sum(everywhere) / 2, abs=1e-6)
