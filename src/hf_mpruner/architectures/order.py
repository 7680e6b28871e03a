"""Whether the entries of a list run one after the other: read from the code, since no build shows it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from .source import running_code


def find_side_by_side(owner: Any, path: str) -> str | None:
    """Find code that runs the entries of a list on one and the same input, as parallel branches or heads.

    Args:
        owner: the class that owns the list.
        path (`str`): of the list inside the class, e.g. `"branches"`.

    Returns:
        `str`: class, method and the call; `None` if there is no such code.

    Example:
        >>> class Branches:
        ...     def forward(self, x):
        ...         return sum(branch(x) for branch in self.branches)
        >>> find_side_by_side(Branches, "branches")
        'Branches.forward: branch(x)'
    """
    for name, tree in running_code(owner).items():
        for loop in ast.walk(tree):
            for variable, inside in _loops_over(loop, path):
                call = _parallel_call(variable, inside)
                if call is not None:
                    return f"{owner.__name__}.{name}: {ast.unparse(call)}"
    return None


def _loops_over(node: ast.AST, path: str) -> Iterator[tuple[str, list[ast.AST]]]:
    """Name of the loop variable that holds an entry of the list, and what the loop runs."""
    if isinstance(node, ast.For):
        loops, inside = [(node.target, node.iter)], list[ast.AST](node.body)
    elif isinstance(node, ast.ListComp | ast.GeneratorExp):
        loops, inside = [(part.target, part.iter) for part in node.generators], [node.elt]
    else:
        return
    for target, over in loops:
        if isinstance(over, ast.Call) and isinstance(over.func, ast.Name) and over.func.id == "zip":
            targets = target.elts if isinstance(target, ast.Tuple) else []
            names = [
                t.id
                for t, a in zip(targets, over.args, strict=False)
                if ast.unparse(a) == f"self.{path}" and isinstance(t, ast.Name)
            ]
            yield from ((name, inside) for name in names)
            continue
        if isinstance(over, ast.Call) and isinstance(over.func, ast.Name) and over.func.id == "enumerate":
            target = target.elts[-1] if isinstance(target, ast.Tuple) else target
            over = over.args[0]
        if isinstance(over, ast.Subscript):  # self.layers[: self.config.num_hidden_layers]
            over = over.value
        if isinstance(target, ast.Name) and ast.unparse(over) == f"self.{path}":
            yield target.id, inside


def _parallel_call(variable: str, inside: list[ast.AST]) -> ast.Call | None:
    """The call of an entry, if nothing that it is given is written in the loop."""
    nodes = [node for part in inside for node in ast.walk(part)]
    written = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == variable:
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            names = {part.id for value in given for part in ast.walk(value) if isinstance(part, ast.Name)}
            return None if names & written or not names else node
    return None
