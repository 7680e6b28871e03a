"""The pages do what they say: python blocks run, command lines parse or run, links and files exist.

Convention: the ```python blocks of a page run in order, in one namespace, in an empty folder, offline; a command line
that starts with `hf-mpruner` runs the same way, and one that starts a script of examples/ must parse. A block after
`<!-- not run: reason -->` does not run: its python must compile and its command lines must parse.
"""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hf_mpruner import cli
from hf_mpruner.cli.parser import Parser

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / folder / "README.md" for folder in ("examples", "model_cards", "reproduce")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCED = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n+)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
NAMED_FILE = re.compile(
    r"\b(?:benchmarks|docs|examples|model_cards|reproduce|src|tests)/[\w./-]+\.(?:py|md|json|png|svg)\b"
)


class Block(NamedTuple):
    """A fenced block of a page. `reason` says why it is not run; empty: it is."""

    page: str
    line: int
    language: str
    code: str
    reason: str


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def find_blocks(page: str, text: str) -> list[Block]:
    found = []
    for match in FENCED.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(page, line, match["language"], match["code"], match["reason"] or ""))
    return found


def find_commands(block: Block) -> list[list[str]]:
    """The `hf-mpruner ...` lines of a shell block as argument lists, without the program's name."""
    lines = block.code.replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0] == "hf-mpruner"]


def find_example_calls(block: Block) -> list[list[str]]:
    """The lines that start a script of examples/, whatever starts it, as its path and its arguments."""
    lines = [
        shlex.split(line.removeprefix("$ "), comments=True) for line in block.code.replace("\\\n", " ").splitlines()
    ]
    return [
        line[number:]
        for line in lines
        for number, word in enumerate(line)
        if word.startswith("examples/") and word.endswith(".py")
    ]


TEXTS = {name_of(path): path.read_text() for path in PAGES}
SHELLS = {"bash", "sh", "console", "shell"}
BLOCKS = [block for page, text in TEXTS.items() for block in find_blocks(page, text)]
COMMANDS = [
    pytest.param(command, block.reason, id=f"{block.page}:{block.line}:{' '.join(command)[:60]}")
    for block in BLOCKS
    if block.language in SHELLS
    for command in find_commands(block)
]


EXAMPLE_CALLS = [
    pytest.param(call, id=f"{block.page}:{block.line}:{' '.join(call)[:80]}")
    for block in BLOCKS
    if block.language in SHELLS
    for call in find_example_calls(block)
]


@pytest.mark.parametrize("page", TEXTS)
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in BLOCKS:
        if block.page == page and block.language == "python":
            # Empty lines in front make a traceback name the page's own line.
            code = compile("\n" * (block.line - 1) + block.code, ROOT / page, "exec")
            if not block.reason:
                exec(code, namespace)


@pytest.mark.parametrize(("command", "reason"), COMMANDS)
def test_commands_run_or_parse(
    command: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason:
        parser = Parser(prog="hf-mpruner")
        import_module(f"hf_mpruner.cli.{command[0]}").add_arguments(parser)
        parser.parse_args(command[1:])
    else:
        monkeypatch.chdir(tmp_path)
        assert cli.main(command) == 0


@pytest.mark.parametrize("call", EXAMPLE_CALLS)
def test_example_commands_parse(call: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    script, *arguments = call
    assert (ROOT / script).is_file()
    import_module(Path(script).stem).parse_options(arguments)


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_named_files_exist(page: str) -> None:
    linked = {(ROOT / page).parent / target for target in LINK.findall(TEXTS[page])}
    named = {ROOT / target for target in NAMED_FILE.findall(TEXTS[page])}
    missing = {name_of(path.resolve()) for path in linked | named if not path.exists()}
    assert not missing, f"{page} names files that do not exist: {sorted(missing)}"


@pytest.mark.parametrize("page", TEXTS)
def test_every_fence_is_read(page: str) -> None:
    fences = re.findall(r"^\s*```", TEXTS[page], re.MULTILINE)
    assert len(fences) == 2 * len(find_blocks(page, TEXTS[page])), "a fence is indented, or never closed"


def test_readme_sets_up_with_two_commands_that_install_the_same() -> None:
    section = re.search(r"^## Set up\n(.*?)^## ", TEXTS["README.md"], re.DOTALL | re.MULTILINE)
    assert section
    blocks = [block.code.strip() for block in find_blocks("README.md", section[1])]
    assert len(blocks) == 2
    assert all("\n" not in block for block in blocks)
    quickstart, test = (block.rpartition(" && ") for block in blocks)
    assert quickstart[0] == test[0]
    assert quickstart[2] == ".venv/bin/python examples/quickstart.py"
    assert test[2].startswith(".venv/bin/python -m pytest")


# The reader of pages must be able to see what is there.
TOY_PAGE = """
```python
x = 1
```

<!-- not run: downloads a model -->
```bash
$ hf-mpruner inspect bert-base-uncased \\
    --json  # a comment
ls
```
"""


def test_blocks_and_commands_are_found() -> None:
    code, shell = find_blocks("toy", TOY_PAGE)
    assert code == Block("toy", 3, "python", "x = 1\n", "")
    assert (shell.language, shell.reason) == ("bash", "downloads a model")
    assert find_commands(shell) == [["inspect", "bert-base-uncased", "--json"]]
    started = Block("toy", 1, "bash", "A=b torchrun --nproc_per_node 2 examples/x.py --offline  # c\n", "")
    assert find_example_calls(started) == [["examples/x.py", "--offline"]]
