"""The walls of docs/architecture.md: who may import whom, how long a file may be, and what no module may touch."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "hf_mpruner"
PAGE = ROOT / "docs" / "architecture.md"
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 70
FILES = sorted(PACKAGE.rglob("*.py"))
# The package's own doors: `__init__` re-exports every floor, `__main__` starts the top one.
DOORS = {"__init__", "__main__"}
# torch and the standard library at the top of a file; matplotlib inside the function that draws, and for its types.
GROUND_IMPORTS = {"torch"}
GROUND_IMPORTS_DEFERRED = {"torch", "matplotlib"}


class Import(NamedTuple):
    """One import statement's target: the dotted module, its line, and whether importing the file runs it."""

    module: str
    line: int
    deferred: bool


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = ("hf_mpruner", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def noun_of(module: str) -> str:
    """`hf_mpruner.similarity.cka` belongs to `similarity`: the unit that the page places on a floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def read_floors(page: str) -> dict[str, tuple[int, int]]:
    """`{module: (floor, position from the left)}` of the page's block under "## Floors"."""
    block = re.search(r"^## Floors\n+```\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    assert block, f'{relative(PAGE)} has no block under "## Floors"'
    places = {}
    for row in block[1].splitlines():
        floor, _title, *modules = row.split()
        places.update({name: (int(floor), position) for position, name in enumerate(modules)})
    return places


FLOORS = read_floors(PAGE.read_text())


def is_deferred(node: ast.AST) -> bool:
    """Whether importing a file does not run what stands inside this node: functions and `if TYPE_CHECKING:`."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def find_imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """Every import of a file, at its top, inside functions and under TYPE_CHECKING, with relative ones resolved."""
    late = {id(node) for parent in ast.walk(tree) if is_deferred(parent) for node in ast.walk(parent)}
    for node in ast.walk(tree):
        deferred = id(node) in late
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, deferred)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            source = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from hf_mpruner import plan` names a module, `from hf_mpruner.plan import PruningPlan` does not.
                yield Import(f"{source}.{alias.name}" if source == "hf_mpruner" else source, node.lineno, deferred)


def imports_of(path: Path) -> list[Import]:
    return list(find_imports(ast.parse(path.read_text()), module_of(path), path.name == "__init__.py"))


def broken_floor(importer: str, imported: str, floors: dict[str, tuple[int, int]]) -> str:
    """Why module `importer` may not import `imported` (both dotted, of this package); empty if it may."""
    here, there = noun_of(importer), noun_of(imported)
    if here in {there, "__init__"} or imported == "hf_mpruner.__version__":
        return ""
    if here == "__main__":
        return "" if there == "cli" else "__main__ starts cli and nothing else"
    if there not in floors:
        return f"{imported!r} is no module of a floor: import a name from the module that defines it"
    (floor, position), (other_floor, other_position) = floors[here], floors[there]
    if other_floor > floor:
        return f"{here} (floor {floor}) imports {there} from above (floor {other_floor})"
    if other_floor == floor and other_position > position:
        return f"{here} imports {there}, which stands to its right on floor {floor}"
    return ""


def broken_ground(found: Import) -> str:
    """Why a module of floor 0 may not import this; empty if it may."""
    name = found.module.partition(".")[0]
    allowed = GROUND_IMPORTS_DEFERRED if found.deferred else GROUND_IMPORTS
    if name in allowed or name in sys.stdlib_module_names or name == "hf_mpruner":
        return ""
    return f"floor 0 imports torch and the standard library only, not {found.module}"


def find_cuda(tree: ast.Module) -> Iterator[int]:
    """Lines that touch `torch.cuda` or call `.cuda()`."""
    for node in ast.walk(tree):
        named = isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.cuda"
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"
        imported = isinstance(node, ast.Import) and any(alias.name.startswith("torch.cuda") for alias in node.names)
        taken = isinstance(node, ast.ImportFrom) and (
            (node.module or "").startswith("torch.cuda")
            or (node.module == "torch" and any(alias.name == "cuda" for alias in node.names))
        )
        if named or called or imported or taken:
            yield node.lineno


def find_long_functions(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {length} lines, {MAX_FUNCTION_LINES} are allowed"


@pytest.fixture(params=FILES, ids=relative)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_a_module_imports_only_from_below_or_from_its_left(path: Path) -> None:
    found = [i for i in imports_of(path) if i.module.partition(".")[0] == "hf_mpruner"]
    importer = module_of(path)
    broken = [f"{relative(path)}:{i.line} {why}" for i in found if (why := broken_floor(importer, i.module, FLOORS))]
    assert not broken, "\n".join(broken)


def test_the_ground_floor_imports_torch_and_the_standard_library(path: Path) -> None:
    if FLOORS.get(noun_of(module_of(path)), (None,))[0] == 0:
        broken = [f"{relative(path)}:{i.line} {why}" for i in imports_of(path) if (why := broken_ground(i))]
        assert not broken, "\n".join(broken)


def test_no_import_cycle() -> None:
    modules = {module_of(path) for path in FILES}
    graph: dict[str, set[str]] = {}
    for path in FILES:
        if (module := module_of(path)) != "hf_mpruner":
            graph[module] = {i.module for i in imports_of(path)} & modules - {module, "hf_mpruner"}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_the_page_and_the_package_name_the_same_modules() -> None:
    rows = set(re.findall(r"^\| `(\w+)/?` \|", PAGE.read_text(), re.MULTILINE))
    modules = {noun_of(module_of(path)) for path in FILES} - DOORS
    assert rows == set(FLOORS), "the table and the block of floors name different modules"
    assert modules == set(FLOORS), f"on one of the two only: {sorted(modules ^ set(FLOORS))}"


def test_mypy_is_strict_on_floors_0_to_2() -> None:
    setup = configparser.RawConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["mypy"]["strict"] == "True"
    (relaxed,) = (name.removeprefix("mypy-") for name in setup.sections() if name.startswith("mypy-hf_mpruner"))
    above = {f"hf_mpruner.{name}.*" for name, (floor, _) in FLOORS.items() if floor > 2}
    wrong = sorted(set(relaxed.split(",")) ^ above)
    assert not wrong, f"setup.cfg's second mypy section should name the modules of floors 3 to 5; correct {wrong}"


def test_no_module_touches_cuda(path: Path) -> None:
    lines = list(find_cuda(ast.parse(path.read_text())))
    assert not lines, f"{relative(path)}, lines {lines}: write torch.accelerator or .to(device)"


def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    lines, long = text.count("\n"), list(find_long_functions(ast.parse(text)))
    assert lines <= MAX_FILE_LINES, f"{relative(path)}: {lines} lines, {MAX_FILE_LINES} are allowed. Split it."
    assert not long, f"{relative(path)}: {long}"


# The checks above must be able to fail.
TOY_FLOORS = {"errors": (0, 0), "similarity": (0, 1), "plan": (2, 0), "engine": (4, 0)}


@pytest.mark.parametrize(
    ("importer", "imported", "why"),
    [
        ("hf_mpruner.similarity.cka", "hf_mpruner.errors", ""),
        ("hf_mpruner.errors", "hf_mpruner.similarity", "to its right on floor 0"),
        ("hf_mpruner.plan", "hf_mpruner.engine", "from above"),
        ("hf_mpruner.engine", "hf_mpruner.plan", ""),
        ("hf_mpruner.engine", "hf_mpruner.PruningPlan", "no module of a floor"),
        ("hf_mpruner.plan", "hf_mpruner.__version__", ""),
        ("hf_mpruner.__main__", "hf_mpruner.plan", "nothing else"),
    ],
)
def test_floor_rule(importer: str, imported: str, why: str) -> None:
    found = broken_floor(importer, imported, TOY_FLOORS)
    assert why in found
    assert bool(found) == bool(why)


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
from ..plan import A
if X:
    import torch.nn as nn
if TYPE_CHECKING:
    from PIL import Image
def f():
    from hf_mpruner import engine
"""
    found = list(find_imports(ast.parse(source), "hf_mpruner.similarity.cka", is_package=False))
    assert sorted(found) == [
        ("PIL", 6, True),
        ("hf_mpruner.engine", 8, True),
        ("hf_mpruner.plan", 2, False),
        ("torch.nn", 4, False),
    ]
    package = list(find_imports(ast.parse("from .cka import x"), "hf_mpruner.similarity", is_package=True))
    assert package == [("hf_mpruner.similarity.cka", 1, False)]


@pytest.mark.parametrize(
    ("found", "allowed"),
    [
        (Import("torch.nn", 1, False), True),
        (Import("json", 1, False), True),
        (Import("matplotlib.pyplot", 1, True), True),
        (Import("matplotlib.pyplot", 1, False), False),
        (Import("transformers", 1, True), False),
    ],
)
def test_ground_rule(found: Import, allowed: bool) -> None:
    assert (broken_ground(found) == "") == allowed


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("torch.cuda.synchronize()", True),
        ("model.cuda()", True),
        ("from torch import cuda", True),
        ("import torch.cuda.amp", True),
        ("with torch.backends.cuda.sdp_kernel(): ...", False),
        ('device = "cuda"', False),
    ],
)
def test_cuda_rule(source: str, found: bool) -> None:
    assert bool(list(find_cuda(ast.parse(source)))) == found


def test_length_rule() -> None:
    body = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
    assert list(find_long_functions(ast.parse(body))) == [
        f"line 1: f has {MAX_FUNCTION_LINES + 1} lines, 70 are allowed"
    ]
