"""Train and prune the models of the examples offline, and keep what says so: cards, reports, plans and plots, no weights.

    python reproduce/model_cards.py --output_dir model_cards

Each model is made by a script of examples/ in a process of its own, as its README.md says. With `--run_dir` what the
scripts wrote stays there, weights too, and a second call trains only what is missing. `--render_only` writes cards, plots
and pages again from the reports that lie in the output folder, after a change of their template, say.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hf_mpruner import PruningConfig, PruningReport
from hf_mpruner.artifacts import write_pages
from hf_mpruner.card import ModelFacts

ROOT = Path(__file__).parents[1]
PRINTED = "printed.txt"
# Of a model's folder; weights and tokenizers stay where they are.
KEPT = (
    "config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "pruning_config.json",
    "pruning_plan.json",
    "report.json",
)


@dataclass(frozen=True)
class Source:
    """Where a card's model comes from.

    Args:
        title (`str`): heading of the card.
        script (`str`): of examples/.
        arguments (`tuple[str, ...]`): it is called with.
        task (`str`): what the model does, as the end of a sentence.
    """

    title: str
    script: str
    arguments: tuple[str, ...]
    task: str

    @property
    def command(self) -> str:
        """What makes the model."""
        return " ".join(["python", f"examples/{self.script}", *self.arguments])


SOURCES = {
    "vit-digits": Source(
        "ViT on handwritten digits, pruned",
        "quickstart.py",
        (),
        "says which digit an image of 8 x 8 pixels shows (scikit-learn's `load_digits`)",
    ),
    "bert-docstrings": Source(
        "BERT on docstrings, pruned",
        "text_classification.py",
        ("--offline",),
        "says which package of Python's standard library a docstring is from",
    ),
    "t5-character-names": Source(
        "T5 on names of characters, pruned",
        "question_generation.py",
        ("--offline",),
        "writes what a Unicode character is put together of, from its name (Python's `unicodedata`)",
    ),
    "resnet-digits": Source(
        "ResNet on handwritten digits, pruned",
        "image_classification.py",
        ("--offline",),
        "says which digit an image shows (scikit-learn's `load_digits`, enlarged to 32 x 32 pixels)",
    ),
    "llama-python-source": Source(
        "Llama on Python source, pruned",
        "causal_lm.py",
        ("--offline",),
        "continues the source code of Python's standard library",
    ),
}


def make(source: Source, folder: Path, run: Path) -> None:
    """Run the script, unless `run` has its model, and copy what is kept into a new folder."""
    if not (run / "model" / "report.json").is_file():
        words = [sys.executable, str(ROOT / "examples" / source.script), *source.arguments, "--output_dir", str(run)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{source.command} failed:\n{done.stderr[-3000:]}")
        run.joinpath(PRINTED).write_text(done.stdout, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in KEPT:
        if (run / "model" / name).is_file():
            shutil.copy(run / "model" / name, folder / name)
    # What follows the table, which is in the card, without the line that names a folder of this machine.
    printed = run.joinpath(PRINTED).read_text(encoding="utf-8").replace(f"loading {run / 'model'}", "loading it")
    lines = printed[printed.index("\nround ") + 1 :].partition("\n\n")[2].splitlines()
    kept = [line for line in lines if str(run) not in line]
    folder.joinpath(PRINTED).write_text("\n".join(kept).strip() + "\n", encoding="utf-8")


def tested(folder: Path) -> list[str]:
    """What the script printed of the test set, which decided nothing."""
    return re.findall(
        r"^(?:\w+ on \d+ test .*|.*that neither training nor pruning saw: .*|perplexity: .*)$",
        folder.joinpath(PRINTED).read_text(encoding="utf-8"),
        re.MULTILINE,
    )


def render(name: str, folder: Path) -> None:
    """Card, page and plots from the report of a folder."""
    source = SOURCES[name]
    introduction = [
        f"# {source.title}",
        f"It {source.task}. The model was trained from random weights, by the script that also pruned it:",
        f"```bash\n{source.command}\n```",
        "The numbers below are of the examples that judged the rounds. On test examples that decided nothing:",
        "\n".join(f"- {line}" for line in tested(folder)),
        "The uncut model is small and trained for a minute, so part of what a round gains is more training. The weights "
        f"are not kept: the command writes them into `OUTPUT_DIR/model`. What it printed after the table below is in [{PRINTED}]({PRINTED}).",
    ]
    write_pages(
        folder,
        PruningReport.load(folder),
        ModelFacts.of_folder(folder),
        config=PruningConfig.from_pretrained(folder),
        title=source.title,
        present="\n\n".join(introduction) + "\n",
    )


def index(output: Path) -> str:
    """The README.md of the output folder: a row for each report."""
    rows = []
    for name, source in SOURCES.items():
        report = PruningReport.load(output / name)
        before, after, metric = report.before, report.after, report.record.metric
        if before is None or after is None:
            sys.exit(f"{output / name / 'report.json'} measures nothing before or after.")
        layers = "; ".join(f"{stack.depth} -> {len(stack.kept)}" for stack in report.plan.stacks.values())
        verdicts = [round_.verdict for round_ in report.rounds]
        rows.append(
            f"| [{name}]({name}/README.md) | {layers} | {before.parameters:,} -> {after.parameters:,} "
            f"| {metric} {before.metric:.4f} -> {after.metric:.4f} "
            f"| {verdicts.count('accepted')} of {len(verdicts)} | `{source.command}` |"
        )
    return "\n".join(
        [
            "# Model cards",
            "",
            "Models that the scripts of [examples](../examples/README.md) have made, offline, and what hf_mpruner wrote of",
            "each: a card, the plan, the report as JSON and as a page, plots; no weights. All of it is made again by",
            "`make model_cards`: five minutes of one core, if it has nothing else to do.",
            "",
            "| model | layers of each stack | parameters | judged by | rounds accepted | made by |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "A round's judge is a validation set; each card also has the numbers of a test set that decided nothing. These",
            "models are tiny and trained for a minute: they show what is measured and written down, not how far a",
            "pretrained model can be cut. Times and latencies are rough: nothing kept the machine idle.",
            "",
        ]
    )


def main() -> None:
    """Make or read the models, then write their pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "model_cards")
    parser.add_argument("--run_dir", type=Path, help="where the scripts write (default: a folder that is deleted)")
    parser.add_argument(
        "--only", nargs="*", choices=SOURCES, default=list(SOURCES), metavar="NAME", help="some models"
    )
    parser.add_argument("--render_only", action="store_true", help="make no model, read the reports that are there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.only:
            folder = options.output_dir / name
            if not options.render_only:
                make(SOURCES[name], folder, (options.run_dir or Path(temporary)).resolve() / name)
            render(name, folder)
            print(f"{name}\n{PruningReport.load(folder)}\n", flush=True)
    options.output_dir.joinpath("README.md").write_text(index(options.output_dir), encoding="utf-8")


if __name__ == "__main__":
    main()
