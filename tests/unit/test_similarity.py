"""`linear_cka` and the streaming accumulator against the equations, written with explicit centring matrices."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from hf_mpruner.errors import CalibrationError
from hf_mpruner.similarity import (
    PROTOCOLS,
    SimilarityAccumulator,
    SimilarityProtocol,
    centre_grams,
    centred_gram,
    feature_space_hsic,
    gram,
    gram_hsic,
    hsic,
    linear_cka,
    multiply_rows,
)

ESTIMATORS = ["unbiased", "biased"]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def related(rows: int, dims: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    """One feature matrix per layer, each a noisy image of the one before, with a large common activation."""
    layers = [normal(rows, dims[0], seed=seed)]
    for i, dim in enumerate(dims[1:], start=1):
        mixed = layers[-1] @ normal(layers[-1].shape[1], dim, seed=100 + i) / dim**0.5
        layers.append(mixed + 0.5 * normal(rows, dim, seed=200 + i + seed))
    return [x + 3 for x in layers]


def brute_hsic(x: Tensor, y: Tensor, estimator: str) -> float:
    """Equations 1-4 with H written out, or HSIC_1 of Song et al. 2012 term by term, in float64."""
    n = len(x)
    k, m = x.double() @ x.double().T, y.double() @ y.double().T
    one = torch.ones(n, 1, dtype=torch.float64)
    if estimator == "biased":
        h = torch.eye(n, dtype=torch.float64) - one @ one.T / n
        return (torch.trace(h @ k @ h @ h @ m @ h) / (n - 1) ** 2).item()
    k, m = k - torch.diag(k.diag()), m - torch.diag(m.diag())
    total = (one.T @ k @ one) * (one.T @ m @ one) / ((n - 1) * (n - 2))
    return ((torch.trace(k @ m) + total - 2 / (n - 2) * one.T @ k @ m @ one) / (n * (n - 3))).item()


def brute_cka(x: Tensor, y: Tensor, estimator: str) -> float:
    energy = brute_hsic(x, x, estimator) * brute_hsic(y, y, estimator)
    return brute_hsic(x, y, estimator) / energy**0.5


def brute_sums(batches: list[list[Tensor]], weights: list[float], estimator: str) -> Tensor:
    """Weighted HSICs of all pairs, normalised once."""
    depth = len(batches[0])
    sums = torch.zeros(depth, depth, dtype=torch.float64)
    for layers, weight in zip(batches, weights, strict=True):
        for i in range(depth):
            for j in range(depth):
                sums[i, j] += weight * brute_hsic(layers[i], layers[j], estimator)
    return sums / (sums.diag()[:, None] * sums.diag()[None, :]).sqrt()


# One pair of layers


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("rows", "dim"), [(12, 40), (40, 6)], ids=["gram", "feature_space"])
def test_cka_of_a_layer_with_itself_is_one(rows: int, dim: int, estimator: str) -> None:
    x = normal(rows, dim)
    assert linear_cka(x, x, estimator).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("rows", [9, 60], ids=["gram", "feature_space"])
def test_cka_is_symmetric_and_blind_to_rotation_scale_and_shift(rows: int, estimator: str) -> None:
    x, y = related(rows, (10, 14))
    rotation, _ = torch.linalg.qr(normal(14, 14, seed=5))
    value = linear_cka(x, y, estimator).item()
    assert linear_cka(y, x, estimator).item() == pytest.approx(value, abs=1e-12)
    assert linear_cka(x, -7.5 * (y @ rotation) + normal(1, 14), estimator).item() == pytest.approx(value, abs=1e-12)
    assert 0.1 < value < 0.999


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("rows", "dims"), [(4, (5, 3)), (11, (50, 30)), (64, (7, 90)), (90, (7, 20))])
def test_cka_equals_the_equations(rows: int, dims: tuple[int, int], estimator: str, dtype: torch.dtype) -> None:
    x, y = (features.to(dtype) for features in related(rows, dims))
    assert linear_cka(x, y, estimator).item() == pytest.approx(brute_cka(x, y, estimator), abs=1e-6)


@pytest.mark.parametrize(("estimator", "expected"), [("unbiased", 0.0), ("biased", 0.975)])
def test_cka_of_unrelated_features(estimator: str, expected: float) -> None:
    values = [
        linear_cka(normal(20, 768, seed=seed), normal(20, 768, seed=1000 + seed), estimator).item()
        for seed in range(40)
    ]
    assert sum(values) / len(values) == pytest.approx(expected, abs=0.02 if estimator == "unbiased" else 0.003)


def test_cka_has_a_gradient() -> None:
    x, y = related(8, (20, 20))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: linear_cka(x, y), (x,))


@pytest.mark.parametrize(
    ("x", "y", "estimator", "text"),
    [
        (
            normal(3, 5),
            normal(3, 5),
            "unbiased",
            r"3 rows are too few: estimator='unbiased' needs at least 4;.*biased",
        ),
        (normal(1, 5), normal(1, 5), "biased", r"1 rows are too few: estimator='biased' needs at least 2"),
        (normal(5, 2), normal(6, 2), "unbiased", r"x of shape \(5, 2\) and y of shape \(6, 2\)"),
        (normal(5, 2, 2), normal(5, 2), "unbiased", r"x of shape \(5, 2, 2\).*Flatten"),
        (normal(5, 2), normal(5, 2), "debiased", r"estimator='debiased' is not one of 'unbiased', 'biased'"),
        (normal(9, 2), torch.full((9, 2), 3.3), "unbiased", "all rows of y are equal"),
        (torch.full((9, 20), 3.3), normal(9, 20), "biased", "all rows of x are equal"),
        (normal(9, 2), normal(9, 2) / torch.zeros(9, 1), "unbiased", "y holds NaN or infinite"),
        (normal(5, 9) * float("nan"), normal(5, 9), "unbiased", "x holds NaN or infinite"),
    ],
)
def test_cka_refuses_what_it_cannot_measure(x: Tensor, y: Tensor, estimator: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        linear_cka(x, y, estimator)


# Gram matrices


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("rows", [6, 30])
def test_feature_space_gives_the_same_numbers_as_gram_matrices(rows: int, estimator: str) -> None:
    layers = related(rows, (12, 9, 15))
    grams = gram_hsic([centred_gram(x, None, estimator) for x in layers], torch.tensor([rows]), estimator)
    assert torch.allclose(feature_space_hsic(layers, estimator), grams, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("rows", "part"), [(40, 8), (25, 1 << 20), (400, 50)])
def test_both_roads_in_feature_space_give_the_same_numbers(
    rows: int, part: int, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram, "_PART", {"cpu": part})
    layers = related(rows, (12, 9, 15))
    both = []
    for road in (hsic._cross_energy_by_pairs, hsic._cross_energy_by_grams):
        monkeypatch.setattr(hsic, "_cross_energy", road)
        both.append(feature_space_hsic(layers, estimator))
    assert torch.allclose(*both, rtol=1e-9, atol=1e-9)
    assert both[0][0, 0, 2].item() == pytest.approx(brute_hsic(layers[0], layers[2], estimator), rel=1e-9)


def test_many_layers_are_not_compared_product_by_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hsic, "_cross_energy_by_pairs", lambda layers: pytest.fail("a matrix product a pair"))
    feature_space_hsic(related(20, (16,) * 64), "unbiased")
    monkeypatch.undo()
    monkeypatch.setattr(hsic, "_cross_energy_by_grams", lambda layers: pytest.fail("rows by rows by layers"))
    feature_space_hsic(related(400, (16, 16)), "unbiased")


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("part", [1, 64, 1 << 20])
def test_columns_in_parts_give_the_same_gram(part: int, estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = normal(3, 6, 50) + 5, torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) < 0.8
    expected = [centred_gram(x, None, estimator), centred_gram(x, mask, estimator)]
    monkeypatch.setattr(gram, "_PART", {"cpu": part})
    assert torch.allclose(centred_gram(x, None, estimator), expected[0], atol=1e-9)
    assert torch.allclose(centred_gram(x, mask, estimator), expected[1], atol=1e-9)
    assert torch.allclose(centred_gram(iter(x.split(7, 2)), mask, estimator), expected[1], atol=1e-9)
    constant = torch.cat([torch.full((1, 6, 50), 1 / 3), x[1:2]]).float()
    assert centred_gram(constant, None, estimator).any(1).tolist() == [False, True]


@pytest.mark.parametrize("columns", [2048, 2500])
def test_products_in_strips_are_the_products(columns: int) -> None:
    x = normal(1, 5, columns)
    assert torch.allclose(gram._products_in_strips(x), x @ x.transpose(1, 2), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_layers_that_are_centred_together_are_centred_alike(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [normal(2, 7, 5, seed=seed) for seed in range(3)]
    layers[1][0] = 1 / 3  # a constant group
    mask = torch.tensor([[True, False, True, True, True, False, True], [True] * 7])
    for row_mask in (None, mask):
        grams = [multiply_rows(x, row_mask) for x in layers]
        together = centre_grams(grams, row_mask, estimator)
        assert all(
            torch.equal(one, centred_gram(x, row_mask, estimator)) for one, x in zip(together, layers, strict=True)
        )
        monkeypatch.setattr(gram, "_SMALL", 0)
        assert all(map(torch.equal, centre_grams(grams, row_mask, estimator), together))
        monkeypatch.undo()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rows_that_do_not_count_may_hold_anything(estimator: str) -> None:
    x = normal(2, 7, 5)
    mask = torch.tensor([[True, False, True, True, True, False, True], [False, True, True, True, True, True, True]])
    x[~mask] = float("nan")
    grams = centred_gram(x, mask, estimator).view(2, 7, 7)
    for group in range(2):
        alone = centred_gram(x[group][mask[group]], None, estimator)
        assert torch.allclose(grams[group][mask[group]][:, mask[group]].flatten(), alone[0], atol=1e-12)
        assert not grams[group][~mask[group]].any()
        assert not grams[group][:, ~mask[group]].any()


def test_a_large_common_activation_costs_no_digits() -> None:
    x, y = normal(16, 300), normal(16, 300, seed=1) + normal(16, 300)
    far = [(x + 2000 * normal(300, seed=2)).float(), (y - 2000 * normal(300, seed=3)).float()]
    found = gram_hsic([centred_gram(z) for z in far], torch.tensor([16]), "unbiased")[0]
    cka = found[0, 1] / (found[0, 0] * found[1, 1]).sqrt()
    assert cka.item() == pytest.approx(brute_cka(x, y, "unbiased"), abs=2e-4)


def test_autocast_and_lowered_precision_do_not_reach_the_gram() -> None:
    x = normal(8, 256, dtype=torch.float32)
    expected = centred_gram(x)
    switch = torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    try:
        switch.fp32_precision = "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(centred_gram(x), expected)
            assert (x @ x.T).dtype == torch.bfloat16
        assert switch.fp32_precision == "bf16"
    finally:
        switch.fp32_precision = before


# Streams


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_stream_is_the_weighted_sum_of_its_batches(estimator: str) -> None:
    batches = [related(rows, (20, 6, 9), seed=rows) for rows in (8, 8, 5)]
    accumulator = SimilarityAccumulator(3, SimilarityProtocol(estimator=estimator))
    for layers in batches:
        accumulator.update(layers)
    matrix = accumulator.compute()
    assert torch.allclose(matrix.values, brute_sums(batches, [8, 8, 5], estimator), atol=1e-9)
    assert torch.equal(matrix.values, matrix.values.T)
    assert torch.equal(matrix.values.diag(), torch.ones(3, dtype=torch.float64))
    assert matrix.num_samples == 21
    assert matrix.protocol.estimator == estimator


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_float32_streams_agree_with_the_equations(estimator: str) -> None:
    batches = [[x.float() for x in related(rows, (400, 300, 500), seed=rows)] for rows in (16, 7)]
    accumulator = SimilarityAccumulator(3, SimilarityProtocol(estimator=estimator))
    for layers in batches:
        accumulator.update(layers)
    assert torch.allclose(accumulator.compute().values, brute_sums(batches, [16, 7], estimator), atol=1e-6)


def test_the_mean_of_ratios_is_a_mean_of_cka_values() -> None:
    batches = [related(rows, (20, 6), seed=rows) for rows in (9, 5)]
    accumulator = SimilarityAccumulator(2, SimilarityProtocol("biased", average="ratios"))
    for layers in batches:
        accumulator.update(layers)
    expected = sum(len(x) * brute_cka(x, y, "biased") for x, y in batches) / 14
    assert accumulator.compute().adjacent == pytest.approx([expected], abs=1e-9)


@pytest.mark.parametrize("protocol", ["default", "paper"])
def test_groups_with_masks_are_a_loop_over_their_own_rows(protocol: str) -> None:
    lengths = [9, 4, 7]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    layers = [torch.stack([related(9, (6, 5), seed=s)[layer] for s in range(3)]) for layer in range(2)]
    hidden = [x.masked_fill(~mask[..., None], float("nan")) for x in layers]
    grouped, looped = (SimilarityAccumulator(2, protocol) for _ in range(2))
    grouped.update(hidden, row_mask=mask, weights=[1, 2, 1])
    for i, length in enumerate(lengths):
        looped.update([x[i, :length] for x in layers], weights=[2 if i == 1 else 1])
    assert torch.allclose(grouped.compute().values, looped.compute().values, atol=1e-9)
    assert grouped.compute().num_samples == 4


def test_groups_count_once_each_by_default() -> None:
    accumulator = SimilarityAccumulator(2, "paper")
    accumulator.update([normal(3, 6, 5), normal(3, 6, 5, seed=1)])
    assert accumulator.compute().num_samples == 3


def test_gram_matrices_and_features_are_the_same_road() -> None:
    layers = related(7, (20, 12))
    by_features, by_grams = (SimilarityAccumulator(2) for _ in range(2))
    by_features.update(layers)
    by_grams.update_grams([centred_gram(x) for x in layers], torch.tensor([7]), weights=[7])
    assert by_features.compute() == by_grams.compute()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_merged_accumulators_equal_one(protocol: str) -> None:
    whole, left, right = (SimilarityAccumulator(2, protocol) for _ in range(3))
    for part, rows in ((left, 8), (right, 5), (right, 6)):
        for accumulator in (whole, part):
            accumulator.update(related(rows, (9, 12), seed=rows))
    summed = {name: tensor + right.state_dict()[name] for name, tensor in left.state_dict().items()}
    reduced = SimilarityAccumulator(2, protocol)
    reduced.load_state_dict(summed)
    left.merge(right)
    assert torch.allclose(left.compute().values, whole.compute().values, atol=1e-14)
    assert reduced.compute() == left.compute()
    assert left.compute().num_samples == 19


def test_a_state_is_a_copy() -> None:
    accumulator = SimilarityAccumulator(2)
    accumulator.update(related(8, (9, 12)))
    state = accumulator.state_dict()
    before = accumulator.compute()
    state["sums"].zero_()
    assert accumulator.compute() == before


def test_half_precision_features_are_widened_first() -> None:
    layers = [x.to(torch.bfloat16) for x in related(8, (40, 30))]
    narrow, wide = (SimilarityAccumulator(2) for _ in range(2))
    narrow.update(layers)
    wide.update([x.float() for x in layers])
    assert narrow.compute() == wide.compute()


# Refusals


@pytest.mark.parametrize(
    ("features", "error", "text"),
    [
        ([normal(3, 9), normal(3, 9)], CalibrationError, r"3 rows are too few: estimator='unbiased' needs at least 4"),
        ([normal(5, 9)], ValueError, "got 1 layers, but this accumulator compares 2"),
        ([normal(5, 9), normal(6, 9)], ValueError, r"\[\(5, 9\), \(6, 9\)\]"),
        ([normal(5), normal(5)], ValueError, r"\[\(5,\), \(5,\)\]"),
        ([normal(5, 9), normal(5, 9) / 0], CalibrationError, "block.1 puts out NaN or infinite"),
        ([normal(50, 9) / 0, normal(50, 9)], CalibrationError, "block.0 puts out NaN or infinite"),
        ([normal(5, 9), normal(5, 9).float() * 1e30], CalibrationError, "block.1 puts out NaN or infinite"),
    ],
)
def test_update_refuses_by_name(features: list[Tensor], error: type[Exception], text: str) -> None:
    accumulator = SimilarityAccumulator(2, layer_names=["block.0", "block.1"])
    with pytest.raises(error, match=text):
        accumulator.update(features)
    with pytest.raises(CalibrationError, match="no batch was added"):
        accumulator.compute()


def test_too_few_rows_behind_a_mask_are_refused() -> None:
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    with pytest.raises(CalibrationError, match="3 rows are too few"):
        SimilarityAccumulator(1).update([normal(2, 5, 4)], row_mask=mask)
    with pytest.raises(CalibrationError, match="3 rows are too few"):
        SimilarityAccumulator(1).update_grams([normal(2, 25)], mask.sum(1), weights=[1, 1])


@pytest.mark.parametrize("rows", [6, 60], ids=["gram", "feature_space"])
def test_a_constant_layer_is_refused_by_name(rows: int) -> None:
    accumulator = SimilarityAccumulator(2)
    accumulator.update([normal(rows, 9, dtype=torch.float32), torch.full((rows, 9), 3.3)])
    with pytest.raises(CalibrationError, match="layer 1 gives the same output for every row"):
        accumulator.compute()
    with pytest.raises(CalibrationError, match="layer 1 gives the same output for every row"):
        SimilarityAccumulator(2, "paper").update([normal(rows, 9), torch.full((rows, 9), 3.3)])


def test_what_does_not_fit_the_accumulator_is_refused() -> None:
    accumulator = SimilarityAccumulator(2)
    with pytest.raises(ValueError, match=re.escape("row_mask has shape (2, 4), but the groups and rows are (2, 5)")):
        accumulator.update([normal(2, 5, 3)] * 2, row_mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=re.escape("weights have shape (3,), but there are 2 groups")):
        accumulator.update([normal(2, 5, 3), normal(2, 5, 3)], weights=[1, 1, 1])
    with pytest.raises(ValueError, match=r"cannot merge 3 layers under .* into 2 layers"):
        accumulator.merge(SimilarityAccumulator(3))
    with pytest.raises(ValueError, match=r"cannot merge 2 layers under .*'biased'"):
        accumulator.merge(SimilarityAccumulator(2, "paper"))
    with pytest.raises(ValueError, match=r"sums of shape \(3, 3\), but the accumulator has 2 layers"):
        accumulator.load_state_dict(SimilarityAccumulator(3).state_dict())
    with pytest.raises(ValueError, match="num_layers=2 with 1 layer_names"):
        SimilarityAccumulator(2, layer_names=["only"])


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("estimator", "debiased", "'unbiased', 'biased'"),
        ("rows", "cls", "'examples', 'tokens', 'mean', 'first', 'last'"),
        ("token_groups", "sentence", "'example', 'batch'"),
        ("average", "mean", "'sums', 'ratios'"),
    ],
)
def test_a_protocol_refuses_unknown_values(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='{value}' is not one of {allowed}"):
        SimilarityProtocol(**{name: value})


def test_protocols_have_names() -> None:
    assert SimilarityProtocol.named("paper") == SimilarityProtocol("biased", "tokens", "example", "ratios")
    own = SimilarityProtocol(rows="mean")
    assert SimilarityProtocol.named(own) is own
    with pytest.raises(ValueError, match="protocol='papre' is not one of 'default', 'paper'"):
        SimilarityProtocol.named("papre")
