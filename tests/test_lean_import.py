"""Importing us costs nothing that was not asked for. Seconds are printed by benchmarks/import_time.py, not asserted."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hf_mpruner.cli import COMMANDS

# What transformers.Trainer itself may load; our callback adds nobody of its own choice to the list.
HEAVY = {
    "accelerate",
    "datasets",
    "evaluate",
    "matplotlib",
    "pandas",
    "peft",
    "PIL",
    "sklearn",
    "torch",
    "transformers",
}


_QUIET_HELP = (
    "keep, sys.stdout = sys.stdout, sys.stderr; from hf_mpruner.cli import main; main({!r}); sys.stdout = keep"
)


def modules_after(*lines: str) -> list[set[str]]:
    """Run the lines in one fresh interpreter and give the modules that are loaded after each of them."""
    report = "print(*sys.modules, sep=' ')"
    code = "\n".join(["import sys", *(f"{line}\n{report}" for line in lines)])
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [set(row.split()) for row in done.stdout.splitlines()]


def packages(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def test_import_hf_mpruner_loads_itself_alone() -> None:
    (loaded,) = modules_after("import hf_mpruner")
    assert not packages(loaded) & HEAVY
    assert {module for module in loaded if module.startswith("hf_mpruner")} == {"hf_mpruner"}


def test_reading_an_error_loads_no_torch() -> None:
    (loaded,) = modules_after("from hf_mpruner import MPrunerError")
    assert not packages(loaded) & HEAVY


def test_the_callback_adds_no_package_to_the_trainer() -> None:
    before, after = modules_after("from transformers import Trainer", "from hf_mpruner import LayerPruningCallback")
    added = packages(after) - packages(before) - set(sys.stdlib_module_names)
    assert added == {"hf_mpruner"}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    words = [*([command] if command else []), "--help"]
    before, after = modules_after("import os", f"sys.stderr = open(os.devnull, 'w'); {_QUIET_HELP.format(words)}")
    assert "hf_mpruner.cli" in after
    assert not packages(after - before) & HEAVY
