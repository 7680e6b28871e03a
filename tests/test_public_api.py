"""What a user may import is listed once, can be imported, is documented and is annotated."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import hf_mpruner

INIT = Path(hf_mpruner.__file__)


def find_own_functions(public: Any) -> Iterator[tuple[str, FunctionType]]:
    """The public function itself, or the public methods and properties that a class of ours defines, with `__init__`."""
    if inspect.isfunction(public):
        yield public.__name__, public
        return
    generated = {"__init__"} if dataclasses.is_dataclass(public) else set()
    for name, member in vars(public).items():
        if (name.startswith("_") and name != "__init__") or name in generated:
            continue
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function):
            yield f"{public.__name__}.{name}", function


def test_the_three_lists_of_public_names_agree() -> None:
    imported = {
        alias.name: node.module.removeprefix("hf_mpruner.")
        for node in ast.walk(ast.parse(INIT.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hf_mpruner.")
        for alias in node.names
    }
    assert imported == hf_mpruner._MODULE_OF
    assert sorted(hf_mpruner.__all__) == sorted(imported)


def test_dir_lists_every_public_name() -> None:
    assert set(hf_mpruner.__all__) <= set(dir(hf_mpruner))


def test_an_unknown_name_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(AttributeError, match=r"module 'hf_mpruner' has no attribute 'prune'.*prune_"):
        hf_mpruner.prune  # noqa: B018 - reading the attribute is the test


def test_a_module_is_an_attribute_of_the_package() -> None:
    assert hf_mpruner.errors.MPrunerError is hf_mpruner.MPrunerError


@pytest.mark.parametrize("name", hf_mpruner.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    public = getattr(hf_mpruner, name)
    # dataclass writes its signature where a docstring is missing.
    doc = public.__doc__ or ""
    assert doc, f"{name} has no docstring"
    assert not doc.startswith(f"{name}("), f"{name} has only the docstring that dataclass made"
    bare = [label for label, f in find_own_functions(public) if not f.__doc__ and not label.endswith(".__init__")]
    assert not bare, f"no docstring: {bare}"


@pytest.mark.parametrize("name", hf_mpruner.__all__)
def test_a_public_name_is_annotated(name: str) -> None:
    for label, function in find_own_functions(getattr(hf_mpruner, name)):
        signature = inspect.signature(function)
        bare = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.annotation is parameter.empty and parameter.name not in {"self", "cls"}
        ]
        assert not bare, f"{label}: no annotation on {bare}"
        assert signature.return_annotation is not signature.empty, f"{label}: no return annotation"


@pytest.mark.parametrize("name", hf_mpruner.__all__)
def test_a_public_name_lives_where_the_list_says(name: str) -> None:
    assert getattr(hf_mpruner, name).__module__.split(".")[:2] == ["hf_mpruner", hf_mpruner._MODULE_OF[name]]
