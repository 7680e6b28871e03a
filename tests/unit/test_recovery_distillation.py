"""The divergence from the teacher against its definition, with masks and counts."""

from __future__ import annotations

import pytest
import torch

from hf_mpruner.recovery.distillation import divergence


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
