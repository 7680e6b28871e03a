"""Which criterion leaves the better model? All of them at three depths, before and after the same recovery, over seeds.

    python reproduce/quality.py ENCODER DATA --name encoder
    python reproduce/quality.py DECODER DATA --name decoder --task text-generation
    python reproduce/quality.py --page

The model is a folder; DATA holds `train` and `test` as parquet, with `text` and, for classification, `label`. An encoder is
first fine-tuned as a classifier, uncut, and kept in `--work`. Every finished part is kept there, too: a run that was killed
goes on. Results go to `--output_dir/NAME`; `--page` writes docs/quality.md from all results that lie there, so that no number
on it is typed by hand. Parts run in `--processes` processes of one thread each, so that their number changes no figure but
seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.utils import logging as chatter

from hf_mpruner import Comparison, PruningConfig, compare_criteria
from hf_mpruner.criteria import known_criteria
from hf_mpruner.report.words import counted
from hf_mpruner.storage import new_folder, write_json, write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "reproduce" / "results" / "quality"
PAGE = ROOT / "docs" / "quality.md"
SETTING = "setting.json"
TASKS = ("text-classification", "text-generation")
# What takes so many passes that it is a process's work of its own; the others go together.
DEAR = ("greedy_loss", "output_change", "metric_drop", "loss", "laco")
BASELINES = ("tail", "alternate", "random")
# Task -> what fits a machine of two cores in three quarters of an hour, where nothing else is asked for.
DEFAULTS: dict[str, dict[str, Any]] = {
    "text-classification": {
        "train": 800, "test": 1050, "max_length": 64, "calibration_samples": 128, "batch_size": 32, "max_steps": -1,
        "learning_rate": 2e-4,
    },
    "text-generation": {
        "train": 1024, "test": 256, "max_length": 128, "calibration_samples": 64, "batch_size": 8, "max_steps": 50,
        "learning_rate": 2e-4,
    },
}  # fmt: skip


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of right answers."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def read_rows(args: argparse.Namespace, split: str, number: int) -> Dataset:
    """Model-ready rows in a fixed random order: texts cut to `max_length` tokens, or blocks of so many tokens."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = load_dataset("parquet", data_files=str(Path(args.data) / f"{split}.parquet"))["train"].shuffle(seed=0)

    def encode(some: dict[str, list[Any]]) -> dict[str, Any]:
        return {
            **tokenizer(some["text"], truncation=True, max_length=args.max_length),
            "labels": some["label"],
        }

    def cut(some: dict[str, list[Any]]) -> dict[str, Any]:
        texts = tokenizer(some["text"], return_attention_mask=False, verbose=False)["input_ids"]
        size = args.max_length
        blocks = [ids[i : i + size] for ids in texts for i in range(0, len(ids) - size + 1, size)]
        return {"input_ids": blocks, "labels": blocks}

    if args.task == "text-classification":
        return rows.select(range(min(number, len(rows)))).map(encode, batched=True, remove_columns=rows.column_names)
    rows = rows.select(range(min(len(rows), max(64, number // 4))))  # a text has many blocks
    blocks = rows.map(cut, batched=True, remove_columns=rows.column_names).shuffle(seed=0)  # of one text each
    return blocks.select(range(min(number, len(blocks))))


def make_maker(args: argparse.Namespace, train: Dataset, test: Dataset) -> Callable[..., Trainer]:
    """A `make_trainer` for `compare_criteria`."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    classifies = args.task == "text-classification"
    kind: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM

    def make_trainer(path: str, seed: int, **more: Any) -> Trainer:
        model = kind.from_pretrained(path, dtype=torch.float32, **more)
        settings = TrainingArguments(
            str(args.work / "trainer"), seed=seed, max_steps=args.max_steps, learning_rate=args.learning_rate,
            per_device_train_batch_size=args.batch_size, per_device_eval_batch_size=args.batch_size, warmup_steps=0.1,
            report_to="none", save_strategy="no", logging_strategy="no", eval_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )  # fmt: skip
        trainer = Trainer(
            model, settings, train_dataset=train, eval_dataset=test, processing_class=tokenizer,
            compute_metrics=accuracy if classifies else None, data_collator=None if classifies else default_data_collator,
        )  # fmt: skip
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        return trainer

    return make_trainer


def fine_tune(args: argparse.Namespace, folder: Path) -> None:
    """The uncut classifier, trained once and kept."""
    if args.task != "text-classification" or folder.is_dir():
        return
    rows = read_rows(args, "train", args.fit)
    set_seed(0)
    trainer = make_maker(args, rows, rows)(args.model, 0, num_labels=1 + max(rows["labels"]))
    trainer.args.num_train_epochs, trainer.args.max_steps = args.epochs, -1
    trainer.train()
    with new_folder(folder) as draft:
        trainer.save_model(str(draft))


def compare(args: argparse.Namespace, criteria: list[str], seeds: list[int]) -> Comparison:
    """The comparison, or a part of it, in the work folder."""
    disable_progress_bars()
    chatter.disable_progress_bar()
    classifies = args.task == "text-classification"
    train, test = read_rows(args, "train", args.train), read_rows(args, "test", args.test)
    # of what recovery trains on, too: neither has seen what judges
    calibration = read_rows(args, "train", args.fit if classifies else args.train)
    return compare_criteria(
        make_maker(args, train, test),
        args.work / "trained" if classifies else args.model,
        PruningConfig(
            metric="accuracy" if classifies else "loss",
            calibration_samples=args.calibration_samples,
            calibration_batch_size=args.batch_size,
            recovery_epochs=args.recovery_epochs,
        ),
        criteria=criteria,
        num_layers=args.num_layers,
        seeds=seeds,
        calibration=calibration,
        output_dir=args.work / "comparison",
    )


def parts_of(args: argparse.Namespace) -> list[tuple[list[str], int]]:
    """Criteria and a seed each for a process of its own; the longest first."""
    dear = [[name] for name in DEAR if name in args.criteria]
    cheap = [name for name in args.criteria if name not in DEAR]
    groups = [*dear, *([cheap[i::2] for i in range(2) if cheap[i::2]])]
    return [(group, seed) for group in groups for seed in range(args.seeds)]


def run_parts(args: argparse.Namespace, words: list[str]) -> None:
    """The parts of the comparison, each in a new process with one thread."""

    def run(part: tuple[list[str], int]) -> None:
        criteria, seed = part
        command = [sys.executable, __file__, *words, "--part", str(seed), "--criteria", *criteria]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(criteria)} with seed {seed} failed: {done.stderr[-2000:]}")
        print(f"{time.strftime('%H:%M:%S')} finished: {' '.join(criteria)}, seed {seed}", flush=True)

    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(run, parts_of(args)))


def write_results(args: argparse.Namespace, comparison: Comparison) -> None:
    """The table, the plots, JSON, and in what setting they were measured; no folder of this machine is named."""
    folder = args.output_dir / args.name
    folder.mkdir(parents=True, exist_ok=True)
    comparison.save(folder)
    write_text(folder / "table.md", comparison.to_markdown() + "\n")
    for kind in ("quality", "cost"):
        comparison.plot(folder / f"{kind}.png", kind=kind)  # type: ignore[arg-type]
    told = ("about", "task", "train", "test", "fit", "epochs", "max_length", "max_steps", "recovery_epochs", "batch_size",
            "learning_rate", "calibration_samples", "processes")  # fmt: skip
    setting = {name: getattr(args, name) for name in told}
    write_json(folder / SETTING, {"model": Path(args.model).name, "data": Path(args.data).name, **setting})


# -- the page -----------------------------------------------------------------------------------------------------------


def make_page(results: Path = RESULTS, page: Path = PAGE) -> str:
    """docs/quality.md, from the folders of results."""
    folders = sorted(file.parent for file in results.glob(f"*/{SETTING}"))
    parts = [
        "# Quality at equal depth",
        "Every criterion removes as many layers from the same model, which then recovers within the same budget. This page is "
        "made by `python reproduce/quality.py --page` from the results beside that script; no number here is typed by hand. "
        "How the figures are taken: [docs/comparison.md](comparison.md).",
    ]
    for folder in folders:
        comparison = Comparison.load(folder)
        setting = json.loads((folder / SETTING).read_text(encoding="utf-8"))
        beside = os.path.relpath(folder, page.parent)
        parts += [
            f"## {folder.name}",
            in_words(setting, comparison),
            "\n".join(f"- {line}" for line in findings(comparison)),
            comparison.to_markdown(),
            f"![{comparison.metric} against layers left]({beside}/quality.png)",
            f"![{comparison.metric} against seconds of scoring]({beside}/cost.png)",
        ]
    return "\n\n".join(parts) + "\n"


def in_words(setting: dict[str, Any], comparison: Comparison) -> str:
    """What was measured on what, in sentences."""
    model, versions = comparison.settings["model"], comparison.settings["versions"]
    number = setting["processes"]
    load = f"{number} processes of one thread side by side" if number > 1 else "one thread beside other work"
    steps = f"{setting['max_steps']} steps of {setting['batch_size']}"
    budget = steps if setting["max_steps"] > 0 else counted(setting["recovery_epochs"], "epoch")
    layers = " and ".join(f"{depth} layers" for depth in model["layers"].values())
    if setting["task"] == "text-classification":
        what = (
            f"`{setting['model']}` ({model['class']}, {layers}), {setting['about']}, is fine-tuned for "
            f"{counted(setting['epochs'], 'epoch')} on {setting['fit']:,} training rows of `{setting['data']}`, cut to "
            f"{setting['max_length']} tokens. What a cut leaves recovers for {budget} on "
            f"{setting['train']:,} of these rows, and is judged on {setting['test']:,} test rows."
        )
    else:
        what = (
            f"`{setting['model']}` ({model['class']}, {layers}), {setting['about']}, is judged by the "
            f"loss of the next token on {setting['test']:,} blocks of {setting['max_length']} tokens from test documents of "
            f"`{setting['data']}`. What a cut leaves recovers for {budget} on "
            f"{setting['train']:,} such blocks from training documents."
        )
    return (
        f"{what} AdamW, {setting['batch_size']} examples a step, a rate of {setting['learning_rate']:g} that decays to 0. Criteria "
        f"measure on {setting['calibration_samples']:,} training examples, others with each of {len(comparison.seeds)} seeds. "
        f"{model['dtype']} on {comparison.settings['device']}, {load}, so "
        f"seconds are those of a busy machine; torch {versions['torch']}, transformers {versions['transformers']}. Such small "
        "models on one kind of text need not speak for large ones."
    )


def findings(comparison: Comparison) -> list[str]:
    """What the figures say of each depth, and nothing else."""
    found = []
    uncut = comparison.uncut
    found.append(f"Uncut: {uncut.spread_before}; after the same training {uncut.spread_after}.")
    for target in comparison.targets:
        rows = [row for row in comparison.at(target) if row.spread_before is not None and row.spread_after is not None]
        if not rows:
            continue
        sign = 1 if comparison.greater_is_better else -1
        after = {row.criterion: sign * row.spread_after.mean for row in rows}  # type: ignore[union-attr]
        before = {row.criterion: sign * row.spread_before.mean for row in rows}  # type: ignore[union-attr]
        best, first = _best(after), _best(before)
        level = [row.criterion for row in rows if row.criterion not in best and _is_level(comparison, row)]
        of = {row.criterion: row for row in rows}
        # equal values share a place
        places = {name: 1 + sum(other > value for other in after.values()) for name, value in after.items()}
        shown = ", ".join(f"{name} {places[name]}" for name in ("cka", *BASELINES) if name in places)
        rest = f"Not told apart from it by these seeds: {', '.join(level)}." if level else "All others are behind it."
        found.append(
            f"{target} layers: best after recovery is {' = '.join(best)} ({of[best[0]].spread_after}). {rest} Before recovery "
            f"it is {' = '.join(first)} ({of[first[0]].spread_before}). Places after recovery, of {len(rows)}: {shown}."
        )
    return found


def _best(values: dict[str, float]) -> list[str]:
    """All that have the largest value."""
    return [name for name, value in values.items() if value == max(values.values())]


def _is_level(comparison: Comparison, row: Any) -> bool:
    """Whether the interval of the difference from the best row reaches 0."""
    gap = comparison.behind_best(row)
    return gap is None or gap.mean == 0 or gap.interval is None or gap.interval[0] <= 0


def read_arguments() -> argparse.Namespace:
    """What was typed, with the defaults of the task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of the model")
    parser.add_argument("data", nargs="?", help="folder with train.parquet and test.parquet")
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    parser.add_argument("--name", help="of the results (default: that of the model's folder)")
    parser.add_argument(
        "--about", default="a small model that was trained from scratch on Python source", help="the model in words"
    )
    parser.add_argument("--criteria", nargs="+", default=known_criteria(), help="default: all")
    parser.add_argument("--num_layers", nargs="+", default=["10", "8", "6"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--fit", type=int, default=4200, help="rows that the uncut classifier is trained on")
    parser.add_argument("--epochs", type=int, default=3, help="of that training")
    parser.add_argument("--train", type=int, help="rows, or blocks, of a recovery")
    parser.add_argument("--test", type=int, help="rows, or blocks, that judge")
    parser.add_argument("--recovery_epochs", type=int, default=1)
    parser.add_argument("--max_steps", type=int, help="of a recovery, instead of epochs")
    parser.add_argument("--max_length", type=int, help="tokens of a row, or of a block")
    parser.add_argument("--calibration_samples", type=int)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument(
        "--work", type=Path, help="for the classifier and unfinished work (default: runs/quality/NAME)"
    )
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="write docs/quality.md from the results, and nothing else")
    parser.add_argument("--page_file", type=Path, default=PAGE, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.page:
        return args
    if args.model is None or args.data is None:
        parser.error("name the folders of the model and of the data, or pass --page")
    for name, value in DEFAULTS[args.task].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.name = args.name or Path(args.model).name
    args.work = args.work or ROOT / "runs" / "quality" / args.name
    return args


def main() -> None:
    """Run what is missing, and print the table; or write the page."""
    args = read_arguments()
    if args.page:
        write_text(args.page_file, make_page(args.output_dir, args.page_file))
        print(f"Wrote {args.page_file}.")
        return
    if args.part is not None:
        compare(args, args.criteria, [args.part])
        return
    began = time.time()
    args.work.mkdir(parents=True, exist_ok=True)
    fine_tune(args, args.work / "trained")
    run_parts(args, sys.argv[1:])
    comparison = compare(args, args.criteria, list(range(args.seeds)))
    write_results(args, comparison)
    print(comparison)
    print(f"{(time.time() - began) / 60:.1f} minutes, and what was there before.")


if __name__ == "__main__":
    main()
