"""Similarities against a shuffled null: what unrelated and equal layers get, and how sure it is."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from hf_mpruner.errors import CalibrationError
from hf_mpruner.similarity import SimilarityAccumulator, SimilarityMatrix, SimilarityProtocol, linear_cka
from hf_mpruner.similarity.null import other_order

ESTIMATORS = ("unbiased", "biased")


def measured(batches, protocol=None, seed=0, grouped=False, masks=None):
    accumulator = SimilarityAccumulator(len(batches[0]), protocol or SimilarityProtocol(), null_seed=seed)
    for place, features in enumerate(batches):
        accumulator.update(features, None if masks is None else masks[place])
    return accumulator.compute()


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_no_row_that_counts_keeps_its_place_and_all_of_them_are_one_cycle():
    mask = torch.tensor([[True] * 6, [True, False, True, True, False, True], [False] * 6, [True, True] + [False] * 4])
    for seed in range(20):
        order = other_order(mask, seed)
        for one, counts in zip(order.tolist(), mask.tolist(), strict=True):
            assert sorted(one) == list(range(6))
            rows = [row for row in range(6) if counts[row]]
            assert all((one[row] != row) == counts[row] for row in range(6))
            if rows:
                seen, at = [], rows[0]
                while at not in seen:
                    seen.append(at)
                    at = one[at]
                assert sorted(seen) == rows


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_unrelated_features_are_at_zero_and_copies_at_one_at_few_rows(estimator):
    batches = []
    for seed in range(24):
        one, other = draw(8, 512, seed=seed), draw(8, 512, seed=1000 + seed)
        batches.append([one, other, one + 1e-4 * draw(8, 512, seed=2000 + seed)])
    matrix = measured(batches, SimilarityProtocol(estimator=estimator))
    calibrated = matrix.calibrated
    assert abs(matrix.values[0, 1] - (0.98 if estimator == "biased" else 0.0)) < 0.04
    assert abs(calibrated.values[0, 1]) < 0.1
    assert calibrated.evidence()[0, 1] < 0.05
    assert calibrated.values[0, 2] > 0.9999
    assert calibrated.evidence()[0, 2] > 0.999
    assert torch.equal(calibrated.values.diagonal(), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("average", ["sums", "ratios"])
@pytest.mark.parametrize("rows", [7, 40])  # by Gram matrices and in feature space
def test_the_null_is_the_similarity_with_rows_in_another_order(estimator, average, rows):
    batches = [[draw(rows, 12, seed=seed), draw(rows, 12, seed=seed).relu()] for seed in range(3)]
    matrix = measured(batches, SimilarityProtocol(estimator=estimator, average=average), seed=5)
    sums, nulls = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for features in batches:
        order = other_order(torch.ones(1, rows, dtype=torch.bool), 5)[0]
        for i, j in itertools.product(range(2), range(2)):
            x, y = features[i].double(), features[j].double()
            weight = rows if average == "ratios" else rows * float(norm(x, estimator) * norm(y, estimator))
            sums[i, j] += weight * linear_cka(x, y, estimator)
            nulls[i, j] += weight * (linear_cka(x, y[order], estimator) + linear_cka(x[order], y, estimator)) / 2
    scale = (sums.diagonal()[:, None] * sums.diagonal()).sqrt()
    expected = (sums - nulls) / (scale - nulls)
    assert torch.allclose(matrix.calibrated.values, expected, atol=1e-5)
    assert torch.allclose(matrix.values, sums / scale, atol=1e-5)


def norm(x, estimator):
    """Square root of a layer's HSIC with itself, by the definition."""
    n = len(x)
    gram = x @ x.T
    if estimator == "biased":
        centre = torch.eye(n, dtype=x.dtype) - 1 / n
        return ((centre @ gram @ centre).square().sum() / (n - 1) ** 2).sqrt()
    gram = gram - gram.diag().diag()
    one = gram.sum(1)
    hsic = (gram.square().sum() + one.sum() ** 2 / ((n - 1) * (n - 2)) - 2 * one.square().sum() / (n - 2)) / (
        n * (n - 3)
    )
    return hsic.sqrt()


def test_masked_rows_are_shuffled_among_those_that_count():
    features = [draw(3, 9, 6, seed=1), draw(3, 9, 6, seed=2)]
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, :4] = mask[2, 6:] = False
    protocol = SimilarityProtocol("biased", rows="tokens", token_groups="example", average="ratios")
    found = measured([features], protocol, masks=[mask]).calibrated
    spoilt = [torch.where(mask.unsqueeze(2), x, 1e6) for x in features]
    assert torch.allclose(found.values, measured([spoilt], protocol, masks=[mask]).calibrated.values, atol=1e-6)
    assert found.num_groups == 3


def test_nothing_changes_where_no_null_is_asked_for():
    batches = [[draw(9, 5, seed=seed), draw(9, 5, seed=seed + 50)] for seed in range(4)]
    plain = SimilarityAccumulator(2)
    with_null = SimilarityAccumulator(2, null_seed=0)
    for features in batches:
        plain.update(features)
        with_null.update(features)
    assert plain.state_dict().keys() == {"sums", "moments", "weight", "num_groups"}
    assert plain.compute().calibrated is None
    assert "calibrated" not in plain.compute().to_dict()
    assert torch.allclose(plain.compute().values, with_null.compute().values, atol=1e-12)
    assert torch.equal(plain.compute().errors, with_null.compute().errors)


def test_sums_of_several_processes_add_up():
    batches = [[draw(9, 5, seed=seed), draw(9, 5, seed=seed + 50)] for seed in range(6)]
    parts = [SimilarityAccumulator(2, null_seed=0) for _ in range(2)]
    for place, features in enumerate(batches):
        parts[place % 2].update(features)
    whole = SimilarityAccumulator(2, null_seed=0)
    added = {name: total + parts[1].state_dict()[name] for name, total in parts[0].state_dict().items()}
    whole.load_state_dict(added)
    parts[0].merge(parts[1])
    assert torch.equal(whole.compute().calibrated.values, parts[0].compute().calibrated.values)
    assert torch.equal(whole.compute().calibrated.errors, parts[0].compute().calibrated.errors)
    with pytest.raises(ValueError, match="null_seed"):
        parts[0].merge(SimilarityAccumulator(2))


def test_files_keep_it():
    batches = [[draw(9, 5, seed=seed), draw(9, 5, seed=seed + 50)] for seed in range(3)]
    matrix = measured(batches)
    read = SimilarityMatrix.from_dict(json.loads(json.dumps(matrix.to_dict())))
    assert torch.equal(read.calibrated.values, matrix.calibrated.values)
    assert torch.equal(read.calibrated.evidence(), matrix.calibrated.evidence())
    single = measured(batches[:1])
    assert single.calibrated.errors is None
    assert torch.equal(single.calibrated.evidence(), single.calibrated.values)


def test_two_rows_that_change_places_tell_nothing():
    with pytest.raises(CalibrationError, match="Pass a larger calibration_batch_size, or estimator='unbiased'"):
        measured([[draw(2, 5, seed=1), draw(2, 5, seed=2)]], SimilarityProtocol(estimator="biased"))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_lower_end_is_above_the_truth_as_seldom_as_was_said(estimator):
    """The truth is the calibrated similarity of very many groups of the same kind."""
    protocol, runs = SimilarityProtocol(estimator, rows="tokens", token_groups="example"), 200

    def found(number, seed):
        x = draw(number, 16, 24, seed=seed)
        return measured([[x, x + 0.7 * draw(number, 16, 24, seed=seed + 10**6)]], protocol, seed=seed).calibrated

    truth = float(found(4000, 10**7).values[0, 1])
    several = [found(16, seed) for seed in range(runs)]
    above = sum(float(one.evidence()[0, 1]) > truth for one in several) / runs
    assert 0.01 <= above <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
    values = torch.stack([one.values[0, 1] for one in several])
    errors = torch.stack([one.errors[0, 1] for one in several])
    assert abs(float(errors.mean() / values.std()) - 1) < 0.2
