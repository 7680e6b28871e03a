"""The commands that print the pages' figures run; what they print depends on the machine and is not looked at closely."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]

SMALL = {
    "benchmarks/analysis_overhead.py": "--layers 2 --hidden 64 --batch 8 --length 8 --repeats 1 --repeats_others 1 --threads 1",
    "benchmarks/cut.py": "--layers 2 --hidden 64 --runs 1",
    "benchmarks/cut_proof.py": "--models bert --runs 1",
    "benchmarks/floor.py": "--layers 2 --hidden 64 --batch 4 --length 8 --depths 2 --side 64 --megabytes 1 --repeats 1",
    "benchmarks/growth.py": "--protocols default --curves batches --divide 8 --repeats 1",
    "benchmarks/import_time.py": "--runs 1",
    "benchmarks/latency.py": "--layers 2 --hidden 64 --batches 2 --length 8 --repeats 1",
    "benchmarks/memory.py": "--layers 2 --hidden 64 --batch 4 --lengths 8 16 --num_batches 1 2",
    "benchmarks/neuron_cka.py": "--neurons 16 --samples 32 --wide 64 --runs 1",
    "benchmarks/slicing.py": "--gb 0.01 --shard_gb 0.004 --hidden 128 --vocab 400 --runs 1",
    "benchmarks/snapshot.py": "--layers 2 --runs 1",
    "benchmarks/sparsity.py": "--layers 2 --hidden 64 --batch 4 --length 8 --samples 8 --repeats 1",
    "benchmarks/two_processes.py": "--layers 2 --hidden 64 --batch 4 --length 8 --num_batches 2 --runs 1",
    "benchmarks/width.py": "--layers 2 --hidden 64 --batch 2 --length 8 --runs 1 --fraction 0.5",
}
SHARED = {"measure.py", "models.py", "run.py"}

PAPERS = {
    "reproduce/higgins.py": "--seeds 2 --hidden 16 --rounds 3 --epochs 2",
    "reproduce/mipp.py": "--seeds 2 --neural_seeds 1 --sparsities 0.5 --confidences 0.5 0.99 --mlp 8 --cnn 3 4 --dense 6 "
    "--epochs 1 --epochs_again 1 --fit_epochs 2 --fit_epochs_per_neuron 1",
}


def run(script: str, *words: object, codes: tuple[int, ...] = (0,)) -> str:
    command = [sys.executable, str(ROOT / script), *map(str, words)]
    source = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode in codes, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", SMALL)
def test_a_benchmark_prints_figures_and_writes_them(script: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    printed = run(script, *SMALL[script].split(), "--json", file)
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert figures["ratios"] or figures["tables"]
    assert all(f"{ratio['name']}: " in printed for ratio in figures["ratios"])
    assert {"processor", "cores", "memory_gb", "device"} <= set(figures["machine"])
    assert "torch" in figures["versions"]


def test_every_benchmark_is_run_here_by_one_command_and_named_on_the_page() -> None:
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - SHARED
    assert {f"benchmarks/{name}" for name in scripts} == set(SMALL)
    assert {f"{name}.py" for name in benchmark_module("run").BENCHMARKS} == scripts
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert {name for name in scripts if f"`{name}`" not in page} == set()


def benchmark_module(name: str) -> ModuleType:
    """A module of benchmarks/, which finds its neighbours."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def test_sides_take_turns_and_ratios_are_of_pairs() -> None:
    measure, order = benchmark_module("measure"), []
    times = measure.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warm_up=1)
    assert [len(t.wall) for t in times.values()] == [3, 3]
    assert order == ["b", "a", "a", "b", "b", "a", "a", "b"]
    found = measure.ratio([2.0, 30.0, 8.0], [1.0, 10.0, 8.0])
    assert (found.median, found.low, found.high) == (2.0, 1.5, 2.5)
    assert measure.ratio([3.0], [2.0]) == measure.Ratio(1.5, 1.5, 1.5)
    assert measure.exponent([2, 4, 8], [12, 48, 192]) == pytest.approx(2)
    assert [measure.shown(x) for x in (0.01234567, 1.05, 12345.6, 7, True, "x")] == [
        "0.01235",
        "1.050",
        "12,346",
        "7",
        "True",
        "x",
    ]


def test_the_page_of_results_says_which_bounds_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = benchmark_module("measure")
    monkeypatch.setattr(sys, "argv", ["latency.py", "--json", str(tmp_path / "latency.json")])
    results = measure.Results("A title.\n\nMore.", argparse.ArgumentParser())
    results.ratio("fast", measure.Ratio(1.02, 1.01, 1.03), at_most=1.05)
    results.ratio("slow", measure.Ratio(1.2, 1.1, 1.3), at_most=1.05)
    results.table("seconds", [{"side": "a", "s": 0.5}])
    results.finish()
    (tmp_path / "growth.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"growth\.json"):
        benchmark_module("run").page(tmp_path)
    (tmp_path / "growth.json").unlink()
    page = benchmark_module("run").page(tmp_path)
    assert "| latency | fast | 1.020 (1.010 to 1.030), <= 1.050: yes |" in page
    assert "| latency | slow | 1.200 (1.100 to 1.300), <= 1.050: NO |" in page
    assert "| a | 0.5000 |" in page


@pytest.mark.slow
def test_one_command_runs_them_and_says_what_failed(tmp_path: Path) -> None:
    words = ["--only", "neuron_cka", "--results", tmp_path, "--words"]
    printed = run("benchmarks/run.py", *words, SMALL["benchmarks/neuron_cka.py"])
    assert "the same order" in printed
    before = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "search / closed form" in before
    run("benchmarks/run.py", *words, "--no_such_flag", codes=(1,))
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == before


@pytest.mark.slow
def test_the_figures_of_pages_on_a_model_and_data_of_ones_own(tmp_path: Path) -> None:
    from datasets import Dataset

    from tasks_kit import save_models, zen_lines

    save_models(tmp_path)
    rows = [{"text": line, "label": i % 3} for i, line in enumerate(zen_lines() * 4)]
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        Dataset.from_list(rows).to_parquet(tmp_path / "data" / f"{split}.parquet")
    small = ["--num_samples", 64, "--num_sentences", 16, "--batch_sizes", 16, 32, "--max_length", 16]
    # 1: the figures of trained models do not hold for one that was never trained
    words = [tmp_path / "fill-mask", tmp_path / "data", *small, "--num_orders", 2, "--num_seeds", 3]
    assert any(character.isdigit() for character in run("reproduce/similarity.py", *words, codes=(0, 1)))
    words = ["--model", tmp_path / "fill-mask", "--data", tmp_path / "data", "--runs", 2, "--num_samples", 16]
    found = run("reproduce/early_stop.py", *words, "--num_batches", 12, "--max_length", 16, codes=(0, 1))
    assert "16 examples, at 0.99" in found
    words = ["--model", tmp_path / "fill-mask", "--data", tmp_path / "data", "--runs", 3, "--num_samples", 32]
    found = run("reproduce/shuffled_null.py", *words, "--max_length", 16, codes=(0, 1))
    assert "3. neighbours, 32 examples in batches of 32" in found
    printed = run(
        "reproduce/recovery.py", tmp_path / "fill-mask", tmp_path / "data", "--train", 48, "--test", 32, "--epochs", 1
    )
    assert "lora" in printed.lower()


@pytest.mark.slow
@pytest.mark.parametrize("script", PAPERS)
def test_a_papers_experiment_leaves_its_page_and_computes_no_cell_twice(script: str, tmp_path: Path) -> None:
    words = [*PAPERS[script].split(), "--output_dir", tmp_path, "--processes", 2]
    first = run(script, *words)
    pages = {path.name: path.read_text() for path in (tmp_path / "results.json", tmp_path / "table.md")}
    assert "## Beside the paper" in pages["table.md"]
    for picture in re.findall(r"\(([^)]*\.png)\)", pages["table.md"]):
        assert (tmp_path / picture).stat().st_size > 1000
    cells = sorted((tmp_path / "cells").iterdir())
    assert all(f"{path.stem}: " in first for path in cells)
    cells[0].unlink()
    again = run(script, *words)
    assert [path.stem for path in cells if f"{path.stem}: " in again] == [cells[0].stem]
    figures = json.loads((tmp_path / "results.json").read_text())
    assert figures["claims"] == json.loads(pages["results.json"])["claims"], (
        "a cell computed again has the same figures"
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
def test_quality_at_equal_depth_on_a_model_and_data_of_ones_own(task: str, tmp_path: Path) -> None:
    from datasets import Dataset

    from hf_mpruner import Comparison
    from tasks_kit import save_models, zen_lines

    save_models(tmp_path)
    (tmp_path / "data").mkdir()
    for split, lines in {"train": zen_lines()[:14] * 4, "test": zen_lines()[14:] * 8}.items():
        rows = [{"text": line, "label": i % 3} for i, line in enumerate(lines)]
        Dataset.from_list(rows).to_parquet(tmp_path / "data" / f"{split}.parquet")
    model = {"text-classification": "fill-mask"}.get(task, task)
    small = ["--criteria", "loss", "tail", "--num_layers", 3, "--seeds", 2, "--fit", 48, "--epochs", 1, "--train", 32]
    small += ["--test", 24, "--max_length", 8, "--calibration_samples", 8, "--batch_size", 8, "--max_steps", 2]
    where = ["--work", tmp_path / "work", "--output_dir", tmp_path / "results"]
    run("reproduce/quality.py", tmp_path / model, tmp_path / "data", "--task", task, "--name", "tiny", *small, *where)
    comparison = Comparison.load(tmp_path / "results" / "tiny")
    assert [row.criterion for row in comparison.rows] == ["loss", "tail"]
    assert all(len(row.after) == 2 and not row.failed for row in comparison.rows)
    assert str(tmp_path) not in (tmp_path / "results" / "tiny" / "setting.json").read_text()
    run("reproduce/quality.py", "--page", "--output_dir", tmp_path / "results", "--page_file", tmp_path / "quality.md")
    assert comparison.to_markdown() in (tmp_path / "quality.md").read_text()


@pytest.mark.slow
def test_runs_on_real_candidates_leave_their_page_and_count_nothing_twice(tmp_path: Path) -> None:
    small = (
        "--layers 4 --hidden 16 --originals 200 --train 256 --pool 400 --steps 30 --recovery_steps 2 --sizes 160 200 "
    )
    small += "--calibration_samples 32 --repetitions 5 --bootstrap_repetitions 2 --strength 0.3"
    small += " --ways layers search --metrics accuracy loss macro_f1"
    words = [*small.split(), "--budgets", 0.1, 0.3, "--loss_budgets", 0.3, "--output_dir", tmp_path]
    # 1: so few runs may break a promise
    first = run("reproduce/guarantee/promise.py", *words, codes=(0, 1))
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["results"]) == {"accuracy", "loss", "macro_f1"}
    runs = results["results"]["accuracy"]["search"]["runs"]["200"]
    assert set(runs) >= {f"{b} {rule}" for b in (0.1, 0.3) for rule in ("plain", "each round alone", "promise")}
    assert runs["0.3 promise"]["removed"] <= runs["0.3 each round alone"]["removed"] <= runs["0.3 plain"]["removed"]
    page = (tmp_path / "table.md").read_text()
    assert "the promise holds in" in page
    assert (tmp_path / "accuracy-search.png").stat().st_size > 1000
    (tmp_path / "loss" / "cells" / "layers-160.json").unlink()
    again = run("reproduce/guarantee/promise.py", *words, codes=(0, 1))
    assert first.count("layers-160: ") == 3
    assert len(re.findall(r"^[a-z_0-9-]+: [0-9.]+ s$", again, re.M)) == again.count("layers-160: ") == 1
    assert (tmp_path / "table.md").read_text() == page


@pytest.mark.slow
def test_the_coverage_of_bounds_is_counted_and_no_cell_twice(tmp_path: Path) -> None:
    words = ["--repetitions", 10, "--sizes", 120, "--num_batches", 20, "--processes", 2, "--output_dir", tmp_path]
    first = run("reproduce/guarantee/coverage.py", *words)
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    cells = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["cells"]
    for kind in ("shares", "means", "metrics", "rounds"):
        assert sum(name.startswith(f"{kind}-") for name in cells) >= 3
    assert page.count("| 120 |") == sum(name.endswith("-120") for name in cells)
    (tmp_path / "cells" / "means-symmetric-120.json").unlink()
    again = run("reproduce/guarantee/coverage.py", *words)
    assert first.count(" s\n") == len(cells)
    assert again.count(" s\n") == 1
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["cells"] == cells


@pytest.mark.slow
@pytest.mark.parametrize("task", ["digits", "text-classification", "text-generation"])
def test_auto_beside_fixed_thresholds_leaves_its_page_and_runs_nothing_twice(task: str, tmp_path: Path) -> None:
    from datasets import Dataset

    from tasks_kit import save_models, zen_lines

    words = "--thresholds 0.9 --seeds 1 --criteria tail --calibration_samples 16 --max_metric_drop 5"
    small: list[object] = [*words.split()]
    small += ["--work", tmp_path / "work", "--output_dir", tmp_path / "results", "--batch_size", 4, "--train", 24]
    if task == "digits":
        small += ["--digits", "--layers", 4, "--hidden", 16, "--steps", 20, "--judge", 200, "--unseen", 60]
    else:
        save_models(tmp_path)
        (tmp_path / "data").mkdir()
        lines = {"train": zen_lines()[:14], "validation": zen_lines()[14:17], "test": zen_lines()[17:]}
        for split, some in lines.items():
            rows = [{"text": line, "label": i % 3} for i, line in enumerate(some * 40)]
            Dataset.from_list(rows).to_parquet(tmp_path / "data" / f"{split}.parquet")
        model = {"text-classification": "fill-mask"}.get(task, task)
        small += ["--model", tmp_path / model, "--data", tmp_path / "data", "--task", task, "--max_length", 8]
        small += ["--judge", 100, "--unseen", 60, "--fit", 48, "--epochs", 1, "--batch_size", 1]
    first = run("reproduce/guarantee/auto.py", *small)
    assert "minutes of training" in first
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert set(results["runs"]) == {"auto promised", "auto", "default 0.9", "paper 0.9"}
    (one,) = results["runs"]["auto promised"]
    assert one["removed"] > 0
    assert one["recoveries"] == len(one["rounds"]) > 0
    assert results["mixture"][0]["says"].startswith(f"{one['layers'] - one['removed']} layers: mixture behind")
    assert str(tmp_path) not in (tmp_path / "results" / "table.md").read_text()
    again = run("reproduce/guarantee/auto.py", *small)
    assert "minutes of training" not in again
    assert json.loads((tmp_path / "results" / "results.json").read_text()) == results


def test_the_page_of_reproduce_names_every_script_and_every_result() -> None:
    page = (ROOT / "reproduce" / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in (ROOT / "reproduce").glob("*.py")}
    scripts |= {f"guarantee/{path.name}" for path in (ROOT / "reproduce" / "guarantee").glob("*.py")}
    assert {name for name in scripts if f"`{name}`" not in page} == set()
    tables = {
        path.relative_to(ROOT / "reproduce").as_posix() for path in (ROOT / "reproduce").glob("results/**/table.md")
    }
    assert {name for name in tables if f"({name})" not in page} == set()
