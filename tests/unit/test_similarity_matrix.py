"""A matrix prints, saves, loads and draws itself, and refuses what is none."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_mpruner.similarity import PROTOCOLS, SimilarityMatrix, SimilarityProtocol


def make_matrix(depth: int = 3, path: str = "bert.encoder.layer", **changes: Any) -> SimilarityMatrix:
    distance = (torch.arange(depth)[:, None] - torch.arange(depth)[None, :]).abs()
    described = {"protocol": PROTOCOLS["paper"], "num_samples": 64, "path": path, **changes}
    return SimilarityMatrix(torch.exp(-distance.double() / 7), **described)


def test_layers_are_numbered_and_adjacent_pairs_read_off() -> None:
    matrix = make_matrix(depth=4)
    assert matrix.layers == (0, 1, 2, 3)
    assert matrix.adjacent == pytest.approx([torch.tensor(-1 / 7).exp().item()] * 3)


def test_values_are_a_copy() -> None:
    values = torch.eye(2)
    matrix = SimilarityMatrix(values, SimilarityProtocol(), num_samples=8)
    values.zero_()
    assert torch.equal(matrix.values, torch.eye(2, dtype=torch.float64))


def test_equality_is_by_value() -> None:
    assert make_matrix() == make_matrix()
    assert hash(make_matrix()) == hash(make_matrix())
    for other in (make_matrix(path="x"), make_matrix(num_samples=1), make_matrix(layers=("a", "b", "c"))):
        assert make_matrix() != other
    assert make_matrix() != SimilarityMatrix(torch.eye(3), PROTOCOLS["paper"], 64, "bert.encoder.layer")
    assert make_matrix() != "matrix"


def test_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    matrix = make_matrix(layers=(0, 5, "last"))
    matrix.save(tmp_path / "matrix.json")
    assert SimilarityMatrix.load(str(tmp_path / "matrix.json")) == matrix
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.json"]
    assert json.loads((tmp_path / "matrix.json").read_text())["protocol"]["estimator"] == "biased"


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "matrix.json"
    make_matrix().save(target)
    before = target.read_text()
    with pytest.raises(TypeError, match="not JSON serializable"):
        make_matrix(path=Path("x")).save(target)
    assert target.read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_the_table_shows_every_value() -> None:
    text = str(make_matrix(layers=(0, 1, 10)))
    assert text.splitlines()[0] == (
        "CKA of 3 layers of bert.encoder.layer: biased, rows: tokens of each example, mean of ratios, 64 samples"
    )
    assert text.splitlines()[2] == "    0  1.000 0.867 0.751"
    assert text.splitlines()[1].split() == ["0", "1", "10"]


@pytest.mark.parametrize(
    ("values", "layers", "text"),
    [
        (torch.ones(2, 3), (), r"values have shape \(2, 3\)"),
        (torch.ones(0, 0), (), r"values have shape \(0, 0\)"),
        (torch.ones(2), (), r"values have shape \(2,\)"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), (), r"values\[0, 1\] is nan"),
        (torch.eye(2), (1, 2, 3), r"3 labels in layers=\(1, 2, 3\) for a matrix of 2 layers"),
    ],
)
def test_what_is_no_matrix_is_refused(values: torch.Tensor, layers: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SimilarityMatrix(values, SimilarityProtocol(), num_samples=8, layers=layers)


def test_a_file_that_holds_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="no entry num_samples, protocol, values; found"):
        SimilarityMatrix.from_dict({"path": "", "layers": []})


@pytest.mark.parametrize("depth", [2, 12, 40])
def test_a_heat_map_is_written_and_labelled(depth: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ax = make_matrix(depth).plot(tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("layer", "layer", "bert.encoder.layer")
    numbers = [text.get_text() for text in ax.texts if text.get_text().startswith((".", "1"))]
    assert len(numbers) == (depth**2 if depth <= 16 else 0)


def test_a_heat_map_uses_the_axes_and_the_title_given() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    ax = figure.add_subplot()
    assert make_matrix().plot(ax, title="before") is ax
    assert ax.get_title() == "before"
    assert make_matrix().plot().figure is not figure


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_backend(), pyplot.get_fignums()
    make_matrix().plot(tmp_path / "map.png")
    assert (pyplot.get_backend(), pyplot.get_fignums()) == before


def test_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r"pip install hf_mpruner\[plots\]"):
        make_matrix().plot()
