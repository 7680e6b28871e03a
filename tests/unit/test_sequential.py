"""Standard errors of similarities, and a measurement that stops once its clusters are settled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_mpruner.architectures.stack import BlockStack, ConfigField
from hf_mpruner.cli import settled
from hf_mpruner.clusters import compared_pairs, find_clusters
from hf_mpruner.config import PruningConfig
from hf_mpruner.features import measure_similarity
from hf_mpruner.oneshot import prune_
from hf_mpruner.runtime import SingleProcess
from hf_mpruner.sequential import SequentialStop
from hf_mpruner.similarity import Sampling, SimilarityAccumulator, SimilarityMatrix, SimilarityProtocol
from hf_mpruner.similarity.spread import interval, second_moments, standard_errors
from trainer_kit import STACK as BERT
from trainer_kit import Rows

STACK = BlockStack("blocks", "Mix", 4, ConfigField("num_hidden_layers"))


class Mixes(nn.Module):
    """Blocks that put out `x @ mix`, each from the batch itself: the similarities of unlimited data are known."""

    def __init__(self, steps: list[float], dim: int = 12, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        mixes = [torch.randn(dim, dim, generator=generator)]
        for step in steps:
            mixes.append(mixes[-1] + step * torch.randn(dim, dim, generator=generator))
        self.mixes = torch.stack(mixes) / dim**0.5
        self.blocks = nn.ModuleList(nn.Identity() for _ in mixes)
        self.num_batches = 0

    def forward(self, x: Tensor) -> None:
        self.num_batches += 1
        for block, mix in zip(self.blocks, self.mixes, strict=True):
            block((x @ mix).unsqueeze(1))

    def truth(self) -> Tensor:
        """CKA of Gaussian inputs of unit covariance: HSIC(i, j) is the squared norm of A_i^T A_j."""
        covariances = torch.einsum("lab,mac->lmbc", self.mixes.double(), self.mixes.double())
        energy = covariances.square().sum((2, 3))
        return energy / (energy.diag()[:, None] * energy.diag()[None, :]).sqrt()


class Source:
    """Batches of Gaussian rows, as many as are asked for; counts those that were drawn."""

    def __init__(self, seed: int, num_batches: int = 200, rows: int = 16, dim: int = 12) -> None:
        self.seed, self.num_batches, self.rows, self.dim = seed, num_batches, rows, dim

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.num_batches):
            yield {"x": torch.randn(self.rows, self.dim, generator=generator)}


def runs(matrix: SimilarityMatrix | Tensor, rule: SequentialStop) -> list[tuple[int, ...]]:
    return [found.layers for found in find_clusters(matrix, rule.threshold, rule.linkage)]


# Standard errors


@pytest.mark.parametrize("average", ["sums", "ratios"])
def test_a_standard_error_is_that_of_the_groups_one_by_one(average: str) -> None:
    """Against a jackknife by groups, which agrees with the delta method to first order; ragged groups."""
    torch.manual_seed(0)
    model, sizes = Mixes([0.2, 0.3, 0.4]), [16] * 150 + [7] * 50
    batches = [[x @ mix for mix in model.mixes] for x in (torch.randn(size, 12) for size in sizes)]
    protocol = SimilarityProtocol(average=average)  # type: ignore[arg-type]
    each = []
    whole = SimilarityAccumulator(4, protocol)
    for layers in batches:
        one = SimilarityAccumulator(4, protocol)
        one.update(layers)
        whole.merge(one)
        each.append(one)
    matrix = whole.compute()
    without = torch.stack([whole.since(one).compute().values for one in each])
    count = len(sizes)
    jackknife = ((count - 1) / count * (without - without.mean(0)).square().sum(0)).sqrt()
    assert matrix.errors is not None
    assert matrix.num_groups == count
    assert torch.allclose(matrix.errors, jackknife, rtol=0.04)
    assert matrix.errors[0, 3] > 0.001


def test_standard_errors_are_the_written_out_residuals() -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 3, 5, dtype=torch.float64)
    hsic, weights = x @ x.transpose(1, 2), torch.rand(9, dtype=torch.float64)
    sums = (hsic * weights.view(-1, 1, 1)).sum(0)
    found = standard_errors(sums, second_moments(hsic, weights), 9)
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        cka = sums[i, j] / (sums[i, i] * sums[j, j]).sqrt()
        residuals = [
            w * (h[i, j] / (sums[i, i] * sums[j, j]).sqrt() - cka / 2 * (h[i, i] / sums[i, i] + h[j, j] / sums[j, j]))
            for h, w in zip(hsic, weights, strict=True)
        ]
        assert sum(residuals).item() == pytest.approx(0, abs=1e-12)  # type: ignore[union-attr]
        assert found[i, j].item() == pytest.approx((9 / 8 * sum(u**2 for u in residuals)).sqrt().item(), rel=0.01)  # type: ignore[union-attr]


@pytest.mark.parametrize(("rows", "groups"), [(8, 12), (24, 20)])
def test_intervals_hold_the_truth_as_often_as_they_say(rows: int, groups: int) -> None:
    """Known truth; standard errors that are half or twice the right ones hold it 67 or 99.9 times of 100."""
    model, generator = Mixes([0.2, 0.3, 0.4]), torch.Generator().manual_seed(1)
    truth, held, errors, values = model.truth(), [], [], []
    pairs = torch.triu_indices(4, 4, 1)
    for _ in range(200):
        x = torch.randn(groups, rows, 12, generator=generator)
        accumulator = SimilarityAccumulator(4)
        accumulator.update([x @ mix for mix in model.mixes])
        matrix = accumulator.compute()
        ends = matrix.interval()
        assert ends is not None
        assert matrix.errors is not None
        held.append(((ends[0] <= truth) & (truth <= ends[1]))[pairs[0], pairs[1]])
        errors.append(matrix.errors)
        values.append(matrix.values)
    assert 0.91 <= torch.stack(held).double().mean() <= 0.98
    ratio = torch.stack(errors).square().mean(0).sqrt() / torch.stack(values).std(0)
    assert ratio[pairs[0], pairs[1]].min() > 0.8
    assert ratio[pairs[0], pairs[1]].max() < 1.2


def test_merged_sums_have_the_standard_errors_of_all_batches() -> None:
    batches = [[x @ mix for mix in Mixes([0.2]).mixes] for x in torch.randn(6, 9, 12, generator=torch.manual_seed(0))]
    whole, left, right = (SimilarityAccumulator(2) for _ in range(3))
    for i, layers in enumerate(batches):
        whole.update(layers)
        (left if i < 4 else right).update(layers)
    left.merge(right)
    assert left.num_groups == 6
    assert torch.allclose(left.compute().errors, whole.compute().errors, rtol=0.01)  # type: ignore[arg-type]
    assert torch.equal(left.compute().values, whole.compute().values) or torch.allclose(
        left.compute().values, whole.compute().values
    )


def test_equal_layers_are_settled_by_any_batches() -> None:
    """Two blocks that put out the same: similarity 1, standard error 0 but for rounding, no NaN."""
    x = torch.randn(10, 8, 5, generator=torch.manual_seed(0))
    accumulator = SimilarityAccumulator(2)
    accumulator.update([x, 3 * x])
    matrix = accumulator.compute()
    ends = matrix.interval(0.9999)
    assert ends is not None
    assert ends[0][0, 1] > 0.999999
    assert SequentialStop(0.999).open_pairs(matrix, 1, 1) == ()


def test_no_interval_of_few_batches() -> None:
    accumulator = SimilarityAccumulator(2)
    for seed in range(7):
        x = torch.randn(8, 5, generator=torch.manual_seed(seed))
        accumulator.update([x, x.sin()])
        matrix = accumulator.compute()
        assert (matrix.errors is None) == (seed == 0)
        assert matrix.interval() is None
    assert SequentialStop(0.5).open_pairs(matrix, 1, 1) is None
    with pytest.raises(ValueError, match=r"confidence=95 is not between 0 and 1"):
        matrix.interval(95)


def test_the_interval_is_wider_below() -> None:
    low, high = interval(torch.tensor([0.99]), torch.tensor([0.004]), 10, 0.025)
    assert 0.99 - low.item() > high.item() - 0.99
    assert high.item() == pytest.approx(0.99 + 2.262 * 0.004, abs=1e-4)


# The rule


def test_compared_pairs_are_those_that_the_clusters_came_of() -> None:
    torch.manual_seed(0)
    for linkage in ("anchor", "chain"):
        for _ in range(20):
            values = torch.rand(7, 7)
            values = ((values + values.T) / 2).fill_diagonal_(1.0)
            clusters = find_clusters(values, 0.5, linkage)  # type: ignore[arg-type]
            pairs = compared_pairs(clusters, linkage)  # type: ignore[arg-type]
            assert [layer for _, layer in pairs] == list(range(1, 7))
            blurred = torch.full((7, 7), float("inf"))
            for i, j in pairs:
                blurred[i, j] = values[i, j]
            # no other similarity was looked at
            assert find_clusters(blurred, 0.5, linkage) == clusters  # type: ignore[arg-type]


def test_looks_come_at_multiples_of_the_number_of_processes() -> None:
    marks = SequentialStop().marks(8)
    assert [next(marks) for _ in range(5)] == [8, 16, 24, 32, 48]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"threshold": 98.0}, r"threshold=98.0 is outside 0..1"),
        ({"error_rate": 5}, r"error_rate=5 is not between 0 and 1"),
        ({"error_rate": 0.0}, r"error_rate=0.0 is not between 0 and 1"),
        ({"linkage": "ward"}, r"linkage='ward' is not one of"),
    ],
)
def test_a_rule_that_is_none_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SequentialStop(**values)


# Measuring


@pytest.mark.parametrize("linkage", ["anchor", "chain"])
def test_it_stops_early_with_the_right_clusters(linkage: str) -> None:
    model = Mixes([0.1, 0.9, 0.1])
    rule = SequentialStop(threshold=0.9, linkage=linkage)  # type: ignore[arg-type]
    truth = model.truth()
    assert runs(truth, rule) == [(0, 1), (2, 3)]
    wrong = total = 0
    for seed in range(24):
        matrix = measure_similarity(model, Source(seed), [STACK], stop=rule)["blocks"]
        assert matrix.sampling is not None
        assert matrix.sampling.ending == "settled"
        assert matrix.num_samples < 200 * 16
        wrong += runs(matrix, rule) != [(0, 1), (2, 3)]
        total += matrix.num_samples // 16
    assert wrong <= 4  # 5 % of 24 is 1.2; more than 4 have a probability of 0.6 %
    assert model.num_batches == total  # what is not needed is not run


def test_a_pair_at_the_threshold_stays_open() -> None:
    model = Mixes([0.1, 0.9, 0.1])
    rule = SequentialStop(threshold=round(model.truth()[0, 1].item(), 4))
    matrix = measure_similarity(model, Source(3, num_batches=60), [STACK], stop=rule)["blocks"]
    assert matrix.num_samples == 60 * 16
    assert matrix.sampling is not None
    assert matrix.sampling.ending == "all used"
    assert (0, 1) in matrix.sampling.open_pairs
    assert "open: 0-1" in str(matrix)


def test_without_a_rule_every_example_counts() -> None:
    plain = measure_similarity(Mixes([0.1, 0.9, 0.1]), Source(0, num_batches=30), [STACK])["blocks"]
    assert (plain.num_samples, plain.sampling) == (480, None)
    rule = SequentialStop(threshold=0.9)
    stopped = measure_similarity(Mixes([0.1, 0.9, 0.1]), Source(0, num_batches=30), [STACK], stop=rule)["blocks"]
    again = measure_similarity(Mixes([0.1, 0.9, 0.1]), Source(0), [STACK], max_samples=stopped.num_samples)["blocks"]
    assert torch.equal(stopped.values, again.values)


def test_batches_in_a_sorted_order_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """Layers agree on six inputs, loud in the second class of examples alone, and see others of the rest."""
    model = Mixes([0.05, 0.05, 0.05])
    model.mixes[:2, 9:] = model.mixes[2:, 6:9] = 0
    rows = torch.randn(60 * 16, 12, generator=torch.manual_seed(0))
    rows[: 6 * 16, :6] *= 0.01
    rows[6 * 16 :, :6] *= 8
    data = [{"x": row} for row in rows]
    rule = SequentialStop(threshold=0.2)
    in_order = DataLoader(data, batch_size=16)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        matrix = measure_similarity(model, in_order, [STACK], stop=rule)["blocks"]
    assert matrix.sampling is not None
    assert matrix.sampling.ending == "order"
    assert matrix.num_samples == matrix.sampling.num_available == 960
    assert "this DataLoader keeps the order of its data set" in caplog.text
    assert "The first and the second half of the calibration batches differ" in caplog.text
    caplog.clear()
    mixed = DataLoader(data, batch_size=16, shuffle=True, generator=torch.manual_seed(0))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        matrix = measure_similarity(model, mixed, [STACK], stop=rule)["blocks"]
    assert matrix.sampling == Sampling(0.2, "anchor", 0.05, "settled", (), 960)
    assert matrix.num_samples < 960
    assert not caplog.text


def test_too_few_batches_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        matrix = measure_similarity(
            Mixes([0.1, 0.9, 0.1]), Source(0, num_batches=6), [STACK], stop=SequentialStop(0.9)
        )["blocks"]
    assert matrix.sampling == Sampling(0.9, "anchor", 0.05, "all used")
    assert "6 batches are too few to settle clusters at an error rate" in caplog.text


def test_how_it_ended_survives_a_file(tmp_path: Path) -> None:
    matrix = measure_similarity(Mixes([0.1, 0.9, 0.1]), Source(0), [STACK], stop=SequentialStop(0.9))["blocks"]
    matrix.save(tmp_path / "matrix.json")
    loaded = SimilarityMatrix.load(tmp_path / "matrix.json")
    assert loaded == matrix
    assert loaded.sampling == matrix.sampling
    assert str(loaded).splitlines()[-1] == "clusters at 0.9 (anchor, error rate 0.05): settled"
    assert loaded != replace(matrix, errors=None)
    old = {key: value for key, value in matrix.to_dict().items() if key not in ("errors", "num_groups", "sampling")}
    assert SimilarityMatrix.from_dict(old).interval() is None
    with pytest.raises(ValueError, match=r"errors have shape \(2, 2\)"):
        replace(matrix, errors=torch.eye(2))


# Several processes


class Thread(SingleProcess):
    """One of several processes that are threads here, with a meeting of all for each gather."""

    def __init__(self, rank: int, world_size: int, barrier: threading.Barrier, table: list[Any]) -> None:
        self.rank, self.world_size, self.barrier, self.table = rank, world_size, barrier, table
        self.equal_forwards = world_size == 3  # one of the tests: those of FSDP

    def gather(self, value: Any) -> list[Any]:
        self.table[self.rank] = value
        self.barrier.wait(60)
        found = list(self.table)
        self.barrier.wait(60)
        return found

    def together(self, what: str) -> AbstractContextManager[None]:
        return nullcontext()


def measure_in(world_size: int, loader: Any, rule: SequentialStop) -> list[tuple[SimilarityMatrix, int]]:
    """The matrix that each of several processes gets, and how many batches it ran."""
    barrier, table = threading.Barrier(world_size), [None] * world_size

    def work(rank: int) -> tuple[SimilarityMatrix, int]:
        model, runtime = Mixes([0.1, 0.9, 0.1]), Thread(rank, world_size, barrier, table)
        matrix = measure_similarity(model, loader, [STACK], stop=rule, runtime=runtime)["blocks"]
        return matrix, model.num_batches

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(work, range(world_size)))


@pytest.mark.parametrize(("world_size", "sampled"), [(2, True), (3, False)])
def test_processes_stop_at_the_same_look(world_size: int, sampled: bool) -> None:
    """A sample whose batches can be told apart is split, any other loader is read by all."""
    batches, rule = list(Source(5, num_batches=50)), SequentialStop(0.9)
    loader: Any = batches
    if sampled:
        rows = [{"x": row} for batch in batches for row in batch["x"]]
        loader = DataLoader(rows, batch_sampler=[list(range(i, i + 16)) for i in range(0, 800, 16)])  # type: ignore[arg-type]
    found = measure_in(world_size, loader, rule)
    (first, count), *others = found
    assert first.sampling is not None
    assert first.sampling.ending == "settled"
    assert first.num_groups < 50
    assert first.num_groups == count * world_size
    for matrix, one in others:
        assert matrix == first
        assert one == count
    alone = measure_similarity(Mixes([0.1, 0.9, 0.1]), loader, [STACK], max_samples=first.num_samples)["blocks"]
    assert torch.allclose(first.values, alone.values)
    assert torch.allclose(first.errors, alone.errors, rtol=0.01)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampled", [True, False])
def test_processes_that_never_settle_measure_everything(sampled: bool) -> None:
    """13 batches on two processes: the last one is of the first process alone."""
    batches = list(Source(5, num_batches=13))
    loader: Any = batches
    if sampled:
        rows = [{"x": row} for batch in batches for row in batch["x"]]
        loader = DataLoader(rows, batch_sampler=[list(range(i, i + 16)) for i in range(0, 13 * 16, 16)])  # type: ignore[arg-type]
    truth = Mixes([0.1, 0.9, 0.1]).truth()
    found = measure_in(2, loader, SequentialStop(round(truth[0, 1].item(), 4)))
    assert [count for _, count in found] == [7, 6]
    assert found[0][0] == found[1][0]
    assert found[0][0].num_groups == 13
    assert found[0][0].sampling is not None
    assert found[0][0].sampling.ending == "all used"


# From the config to the table


def test_the_config_makes_the_rule_or_refuses() -> None:
    assert PruningConfig().stop is None
    config = PruningConfig(threshold=0.95, linkage="chain", similarity_error_rate=0.01)
    assert config.stop == SequentialStop(0.95, "chain", 0.01)
    assert PruningConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=r"similarity_error_rate=5 is not between 0 and 1"):
        PruningConfig(similarity_error_rate=5)
    with pytest.raises(ValueError, match=r"similarity_error_rate=0.05 is about the clusters at a threshold"):
        PruningConfig(similarity_error_rate=0.05, target_num_layers=[2])


def test_a_run_measures_no_more_than_it_needs(make_bert: Any) -> None:
    sizes = {"calibration_samples": 240, "calibration_batch_size": 8}
    config = PruningConfig(threshold=0.0, similarity_error_rate=0.05, **sizes)  # type: ignore[arg-type]
    report = prune_(make_bert(), config, calibration=Rows(240, 0))
    measured = SimilarityMatrix.from_dict(report.record.rounds[0].similarity[BERT])
    assert measured.sampling == Sampling(0.0, "anchor", 0.05, "settled", (), 240)
    assert measured.num_samples < 240
    assert measured.interval() is not None


def test_the_table_has_intervals_and_says_how_it_ended() -> None:
    rule = SequentialStop(0.9)
    matrix = measure_similarity(Mixes([0.1, 0.9, 0.1]), Source(0), [STACK], stop=rule)["blocks"]
    ends = matrix.interval()
    assert ends is not None
    line = next(line for line in settled.neighbours(matrix).splitlines() if "0 - 1" in line)
    assert line.split() == [
        "0",
        "-",
        "1",
        f"{matrix.adjacent[0]:.4f}",
        f"{ends[0][0, 1]:.4f}",
        "..",
        f"{ends[1][0, 1]:.4f}",
    ]
    assert settled.endings({"blocks": matrix}) == [
        "blocks: clusters at 0.9 (anchor, error rate 0.05): settled; other thresholds are not settled"
    ]
    assert settled.intervals({"blocks": matrix})["blocks"][1] == [ends[0][1, 2].item(), ends[1][1, 2].item()]  # type: ignore[index]
    few = replace(matrix, num_groups=3, sampling=None)
    assert "interval" not in settled.neighbours(few)
    assert settled.endings({"blocks": few}) == []
    assert settled.intervals({"blocks": few}) == {"blocks": None}
