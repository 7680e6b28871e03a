"""Three disjoint parts of one data set: who gets which example, and what is refused or told about sets given by hand."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Subset

from hf_mpruner.data import check_disjoint, size_parts, split_parts, warn_of_trained
from hf_mpruner.data.examples import find_overlap
from hf_mpruner.errors import CalibrationError


def rows(first, last, **more):
    return [{"input_ids": [i, i + 1, i * i], "labels": i % 2, **more} for i in range(first, last)]


class Drawn(TorchDataset):
    """Rows that are changed at random as they are read, as augmented pictures are."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        torch.randn(1), np.random.rand(), random.random()
        noise = torch.randn(3) + np.random.rand() + random.random()
        return {"pixel_values": noise + self.numbers[index], "labels": 0}


KINDS = {
    "list": lambda data: data,
    "datasets": Dataset.from_list,
    "torch": lambda data: Subset(data, range(len(data))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_example_is_in_one_part_and_the_parts_follow_from_the_seed(kind):
    data = KINDS[kind](rows(0, 100))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    parts = split_parts(data, seed=1, calibration=15, choosing=20)
    assert torch.equal(torch.get_rng_state(), before)
    found = [[part[i]["input_ids"][0] for i in range(len(part))] for part in parts]
    assert [len(part) for part in found] == [15, 20, 65]
    assert sorted(number for part in found for number in part) == list(range(100))
    assert all(part == sorted(part) for part in found), "in the order of the data set"
    assert isinstance(parts.judging, Dataset if kind == "datasets" else Subset)
    torch.manual_seed(99)
    again, other = (split_parts(data, seed=seed, calibration=15, choosing=20) for seed in (1, 2))
    assert [[part[i]["input_ids"][0] for i in range(len(part))] for part in again] == found
    assert [other.judging[i]["input_ids"][0] for i in range(65)] != found[2]
    assert found[2] != list(range(35, 100)), "drawn at random, not cut from the end"


def test_parts_that_nobody_asked_for_are_none():
    parts = split_parts(rows(0, 10), seed=0, calibration=10, choosing=0)
    assert (len(parts.calibration), parts.choosing, parts.judging) == (10, None, None)


def test_what_cannot_be_split_is_refused():
    for stream in (IterableDataset.from_generator(lambda: iter(rows(0, 9))), iter(rows(0, 9)), {"a": rows(0, 9)}):
        with pytest.raises(CalibrationError, match=r"calibration=\.\.\., choosing=\.\.\. and judging=\.\.\."):
            split_parts(stream, seed=0, calibration=1, choosing=1)
    with pytest.raises(ValueError, match="7 examples for calibration and 4 for choosing cannot be taken from 10"):
        split_parts(rows(0, 10), seed=0, calibration=7, choosing=4)


@pytest.mark.parametrize(
    ("total", "asked", "sizes"),
    [
        (1_000, (True, True, True), (200, 200)),
        (10_000, (True, True, True), (512, 512)),
        (10_000, (True, False, True), (512, 0)),
        (600, (True, True, False), (300, 300)),
        (600, (False, True, False), (0, 512)),
        (600, (False, False, True), (0, 0)),
        (3, (True, True, True), (1, 1)),
    ],
)
def test_sizes(total, asked, sizes):
    calibration, choosing, judging = asked
    assert size_parts(total, 512, calibration=calibration, choosing=choosing, judging=judging) == sizes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other_kind", KINDS)
def test_equal_rows_are_found_whatever_holds_them(kind, other_kind):
    first, second = KINDS[kind](rows(0, 40, idx=1)), KINDS[other_kind](rows(33, 80, idx=2))
    assert find_overlap(first, second) == find_overlap(second, first) == (7, 40, False, 0.0)


def test_subsets_of_one_data_set_are_compared_by_their_indices():
    data = rows(0, 5) * 20  # equal rows at other places are other examples
    first, second = Subset(data, range(50)), Subset(Subset(data, range(40, 100)), range(60))
    assert find_overlap(first, second) == (10, 50, False, 0.0)
    assert find_overlap(Subset(data, range(50)), Subset(data, range(50, 100))).rows == 0


def test_what_is_drawn_while_a_row_is_read_does_not_hide_it_nor_touch_the_random_state():
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert find_overlap(Drawn(list(range(20))), Drawn(list(range(15, 50)))) == (5, 20, False, 0.0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_rows_that_are_objects_are_not_all_taken_for_equal():
    assert (
        find_overlap([np.datetime64(i, "D") for i in range(9)], [np.datetime64(i, "D") for i in range(7, 20)]).rows
        == 2
    )
    assert find_overlap([slice(i) for i in range(9)], [slice(i) for i in range(7, 20)]).rows == 2


def test_of_many_rows_a_sample_is_compared_and_scaled_up(monkeypatch):
    monkeypatch.setattr("hf_mpruner.data.examples._COMPARED_SLOWLY", 200)
    first, second = rows(0, 600), rows(300, 900)
    found = find_overlap(first, second)
    assert (found.of, found.sampled) == (600, True)
    assert 200 < found.rows < 400, "300 are shared"
    assert find_overlap(first, second) == found, "drawn alike each time"
    assert find_overlap(first, rows(600, 1_200)).rows == 0


def test_sets_given_by_hand_must_share_no_example(caplog):
    data = rows(0, 300)
    with pytest.raises(CalibrationError, match="calibration and judging are the same data set"):
        check_disjoint({"calibration": data, "choosing": None, "judging": data})
    with pytest.raises(CalibrationError, match="choosing and judging share 10 of 100 examples"):
        check_disjoint({"choosing": Subset(data, range(100)), "judging": Subset(data, range(90, 300))})
    texts = Dataset.from_list([{"text": f"text {i}", "label": 0} for i in range(300)])
    with pytest.raises(CalibrationError, match="calibration and judging share 50 of 100"):
        check_disjoint({"calibration": texts.select(range(100)), "judging": texts.select(range(50, 200))})
    assert not caplog.records
    check_disjoint({"calibration": data[:100], "choosing": data[100:200], "judging": data[200:], "stream": iter(data)})
    assert not caplog.records


def test_a_few_equal_rows_may_be_coincidence_and_are_told(caplog):
    data = rows(0, 600)
    with caplog.at_level(logging.WARNING):
        check_disjoint({"choosing": data[:300], "judging": data[297:]})
    assert "3 of 300 examples of choosing and judging are equal" in caplog.text
    with pytest.raises(CalibrationError, match="share 4 of 300"):
        check_disjoint({"choosing": data[:300], "judging": data[296:]})
    caplog.clear()
    check_disjoint({"choosing": data[:20], "judging": data[19:]})
    assert "1 of 20 examples" in caplog.text


def test_rows_that_a_set_repeats_are_in_the_parts_of_a_split_too(caplog):
    data = rows(0, 60) * 5
    parts = split_parts(data, seed=0, calibration=50, choosing=0)
    apart = [[part[i] for i in range(len(part))] for part in (parts.calibration, parts.judging)]
    assert find_overlap(*apart).rows == 50
    check_disjoint({"calibration": apart[0], "judging": apart[1]})
    assert "50 of 50 examples of calibration and judging are equal" in caplog.text


def test_examples_that_are_trained_on_are_counted(caplog):
    warn_of_trained(rows(0, 200), rows(200, 300))
    warn_of_trained(iter(rows(0, 200)), rows(0, 100))
    warn_of_trained(None, rows(0, 100))
    assert not caplog.records
    warn_of_trained(rows(0, 200), rows(180, 280))
    assert "20 of the 100 examples that judge are also trained on" in caplog.text


def test_large_rows_of_any_form_are_compared_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr("hf_mpruner.data.examples._BYTES_AT_ONCE", 10_000)
    pixels = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    stored = Dataset.from_dict({"pixel_values": pixels[:8].numpy(), "labels": [0] * 8})
    given = [{"pixel_values": row, "labels": 1} for row in pixels[5:]]
    assert find_overlap(stored, given) == find_overlap(stored.with_format("torch"), given) == (3, 7, False, 0.0)
    changed = stored.with_transform(lambda batch: {"pixel_values": [torch.rand(3) for _ in batch["labels"]]})
    assert find_overlap(changed, stored.select(range(4))).rows == 4, "as they are stored"
