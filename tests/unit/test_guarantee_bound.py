from __future__ import annotations

import json
import math

import pytest
import torch

from hf_mpruner.errors import MPrunerError
from hf_mpruner.guarantee import (
    NUM_RESAMPLES,
    DropBound,
    Outcomes,
    bound_drop,
    check_outcomes,
    promise,
    resample_indices,
    smallest_sample,
)


def binary(worse: int, better: int, same: int) -> tuple[Outcomes, Outcomes]:
    before = (1,) * worse + (0,) * better + (1,) * same
    after = (0,) * worse + (1,) * better + (1,) * same
    num = len(before)
    return tuple(Outcomes("binary", values, sum(values) / num, num) for values in (before, after))


def test_a_lower_share_of_right_answers_is_a_drop_and_so_is_a_higher_one_of_errors() -> None:
    before, after = binary(worse=9, better=2, same=989)
    bound = bound_drop(before, after, greater_is_better=True, max_drop=0.02, level=0.05)
    assert bound.drop == pytest.approx(0.007)
    assert bound.counts == {"worse": 9, "better": 2, "same": 989}
    assert bound.drop < bound.upper <= 0.02
    assert bound.holds
    errors = [Outcomes("binary", tuple(1 - v for v in o.values), 1 - o.value, 1000) for o in (before, after)]
    other = bound_drop(*errors, greater_is_better=False, max_drop=0.02, level=0.05)
    assert (other.upper, other.counts, other.p_value) == (bound.upper, bound.counts, bound.p_value)
    assert bound_drop(after, before, greater_is_better=True, max_drop=0.02, level=0.05).drop == -bound.drop


def test_a_bound_is_the_same_after_json() -> None:
    bound = bound_drop(*binary(9, 2, 989), greater_is_better=True, max_drop=0.02, level=0.05)
    assert DropBound.from_dict(json.loads(json.dumps(bound.to_dict()))) == bound


@pytest.mark.parametrize(("worse", "better", "same"), [(6, 1, 493), (0, 0, 800), (12, 3, 485)])
def test_as_many_examples_as_are_said_to_be_needed_are_enough(worse: int, better: int, same: int) -> None:
    words = {"greater_is_better": True, "max_drop": 0.025, "level": 0.05}
    bound = bound_drop(*binary(worse, better, same), **words)
    assert bound.needed is not None
    more = bound.needed / bound.num_examples
    more_worse, more_better = round(more * worse), round(more * better)
    larger = bound_drop(*binary(more_worse, more_better, bound.needed - more_worse - more_better), **words)
    if bound.holds:
        assert larger.upper - larger.drop == pytest.approx((bound.upper - bound.drop) / 2, rel=0.15)
    else:
        assert larger.upper < 0.025 * 1.02
        fewer = round(0.85 * more * worse), round(0.85 * more * better)
        fewer_same = round(0.85 * bound.needed) - sum(fewer)
        assert not bound_drop(*binary(*fewer, fewer_same), **words).holds


def test_no_number_of_examples_helps_a_drop_above_the_budget() -> None:
    assert bound_drop(*binary(60, 0, 940), greater_is_better=True, max_drop=0.05, level=0.05).needed is None


def test_resamples_are_the_same_for_every_model_and_differ_from_each_other() -> None:
    first, again = list(resample_indices(7, 3)), list(resample_indices(7, 3))
    assert len(first) == NUM_RESAMPLES
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].dtype == torch.int64
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], next(resample_indices(7, 4)))
    counts = torch.cat(first).bincount(minlength=7)
    assert counts.min() > 0.9 * NUM_RESAMPLES


def test_too_few_examples_are_refused_with_the_number_that_would_do() -> None:
    need = smallest_sample(0.05, 0.05)
    ones = Outcomes("binary", (1,) * (need - 1), 1.0, need - 1)
    with pytest.raises(MPrunerError, match=f"at least {need}"):
        check_outcomes(ones, max_drop=0.05, level=0.05)
    assert not bound_drop(ones, ones, greater_is_better=True, max_drop=0.05, level=0.05).holds
    ones = Outcomes("binary", (1,) * need, 1.0, need)
    check_outcomes(ones, max_drop=0.05, level=0.05)
    assert bound_drop(ones, ones, greater_is_better=True, max_drop=0.05, level=0.05).holds
    few = Outcomes("values", (1.0, 2.0, 3.0), 2.0, 96, unit="batches")
    with pytest.raises(MPrunerError, match="per_device_eval_batch_size"):
        bound_drop(few, few, greater_is_better=False, max_drop=0.05, level=0.05)


def test_the_sentence_says_what_is_promised() -> None:
    bound = bound_drop(*binary(9, 1, 1990), greater_is_better=True, max_drop=0.01, level=0.05)
    words = {"confidence": 0.95, "max_drop": 0.01, "num_tests": 3}
    said = promise("accuracy", bound, greater_is_better=True, **words)
    assert said.startswith(
        "With probability 95 % or more the accuracy of the model is at most 0.010 lower than that of the uncut model, on "
        "examples like the 2,000 that judged it (exact paired test; 3 rounds were judged and paid for); the measured drop "
        "is 0.004, its bound 0.0"
    )
    assert f"About {bound.needed:,} examples would halve the distance between the two." in said
    assert "higher" in promise("loss", bound, greater_is_better=False, **words)
    assert "uncut" in promise("accuracy", None, greater_is_better=True, **words)
    printed = float(said.split("its bound ")[1].split()[0].rstrip("."))
    assert printed >= bound.upper
    assert math.isclose(printed, bound.upper, abs_tol=0.001)
