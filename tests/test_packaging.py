"""setup.cfg declares what the code imports, and every version that is written twice is written the same."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest

import hf_mpruner

ROOT = Path(__file__).parents[1]
SETUP = configparser.RawConfigParser()
SETUP.read(ROOT / "setup.cfg")
# Where the name to import is not the name to install.
INSTALLED_AS = {"PIL": "pillow", "yaml": "pyyaml"}
USER_EXTRAS = ("plots", "vision", "peft", "evaluate", "trainers")


def read_requirements(section: str, key: str) -> dict[str, str]:
    """`{project: version specifier}` of one list in setup.cfg."""
    rows = SETUP[section][key].split()
    return dict(re.findall(r"^([\w-]+)(?:\[.*\])?(.*)$", "\n".join(rows), re.MULTILINE))


def find_foreign_imports() -> set[str]:
    """Top-level names of everything that src imports from outside of itself and the standard library."""
    found: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module or "")
    return {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names) - {"hf_mpruner"}


def test_every_import_is_declared() -> None:
    declared = set(read_requirements("options", "install_requires"))
    for extra in USER_EXTRAS:
        declared |= set(read_requirements("options.extras_require", extra))
    assert {INSTALLED_AS.get(name, name) for name in find_foreign_imports()} <= declared


def test_every_requirement_has_a_lower_bound() -> None:
    for name, version in read_requirements("options", "install_requires").items():
        assert version.startswith(">="), f"{name}{version}"


@pytest.mark.parametrize("tool", ["ruff"])
def test_pre_commit_and_dev_pin_the_same_version(tool: str) -> None:
    pins = set(re.findall(rf"\b{tool}(==[\w.]+)", (ROOT / ".pre-commit-config.yaml").read_text()))
    assert pins == {read_requirements("options.extras_require", "dev")[tool]}


def test_every_hook_is_pinned() -> None:
    lines = re.findall(r"additional_dependencies: \[(.*)\]", (ROOT / ".pre-commit-config.yaml").read_text())
    assert lines
    assert all("==" in line or line == "*hooks" for line in lines)


def test_readme_lists_what_is_declared() -> None:
    rows = re.findall(
        r"^\| ([\w-]+)(?: \(extra `\w+`\))? \| ([<>=][^|]*) \|", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    declared = {"python": SETUP["options"]["python_requires"], **read_requirements("options", "install_requires")}
    for extra in USER_EXTRAS:
        declared |= read_requirements("options.extras_require", extra)
    assert dict(rows) == declared


def test_the_changelog_ends_at_this_version() -> None:
    versions = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == hf_mpruner.__version__
