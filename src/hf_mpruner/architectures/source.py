"""Read what the proof cannot see: code that computes with a layer's number, or with how many there are, as it runs.

Two builds of a model show every attribute, but not `if idx == self.num_layers // 2:` inside a `forward`. Such code gives
another model when a layer before it goes, though saving and loading agree. So the source of the classes around and in
the stack is parsed, and arithmetic or comparisons with these numbers refuse the stack. Indexing (`self.layers[i]`,
`config.layer_types[i]`) is no arithmetic and is fine.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from ..errors import UnsupportedArchitectureError
from .blueprint import Blueprint
from .reference import ModuleDescription, config_nodes
from .rules import ALL, FOLLOWS, POSITION_ATTRIBUTES, REVIEWED_CODE
from .stack import BlockStack

# Nothing in these modules knows a particular architecture.
_COMMON_CODE = ("torch.", "transformers.modeling_utils", "transformers.modeling_layers", "transformers.generation.")


def find_position_code(
    blueprint: Blueprint, stack: BlockStack, without_last: Mapping[str, ModuleDescription]
) -> dict[int, str]:
    """Find code that computes with the number of a layer of a stack, or with the number of layers.

    Args:
        blueprint (`Blueprint`): the model rebuilt from its config.
        stack (`BlockStack`): the stack in question.
        without_last (`Mapping[str, ModuleDescription]`): description of the build without the stack's last layer.

    Returns:
        `dict[int, str]`: layers that must stay because of code that was read by a person, each with the reason.

    Raises:
        UnsupportedArchitectureError: there is such code that nobody read, or that depends on every layer's number,
            with class, method and expression of the first find.
    """
    pinned: dict[int, str] = {}
    for find in _finds(blueprint, stack, without_last):
        known = REVIEWED_CODE.get(find)
        if known is not None and known.switch and not _setting(blueprint, known.switch):
            continue
        if known is None or known.pins == ALL:
            raise UnsupportedArchitectureError(
                f"{stack.path!r}: the model computes with a layer's number, or with how many there are, as it runs: {find}"
                + (f" ({known.reason})" if known else "")
            )
        pinned |= dict.fromkeys(range(_number(blueprint, known.pins)), known.reason)
    return pinned


def _finds(blueprint: Blueprint, stack: BlockStack, without_last: Mapping[str, ModuleDescription]) -> Iterator[str]:
    parts = stack.path.split(".")
    for length in range(len(parts)):
        path = ".".join(parts[:length])
        owner: Any = type(blueprint.reference.get_submodule(path))
        counts = _names_of_count(blueprint, stack) | _count_copies(
            blueprint.modules[path], without_last[path], stack.depth
        )
        yield from _computations(owner, frozenset(counts), ".".join(parts[length:]))
    for module in blueprint.reference.get_submodule(stack.path).modules():
        positions = frozenset(POSITION_ATTRIBUTES.keys() & vars(module).keys())
        kind: Any = type(module)
        yield from _computations(kind, positions, "") if positions else ()


def _setting(blueprint: Blueprint, name: str) -> Any:
    """A config value, from whichever part of the config has it switched on."""
    return next((vars(node)[name] for node in config_nodes(blueprint.config).values() if vars(node).get(name)), None)


def _number(blueprint: Blueprint, pins: int | str) -> int:
    value = _setting(blueprint, pins) if isinstance(pins, str) else pins
    return len(value) if isinstance(value, list | tuple) else int(value or 0)


def _names_of_count(blueprint: Blueprint, stack: BlockStack) -> set[str]:
    """The config field that holds the count, and its aliases. Entries of `depths` have no name of their own."""
    if stack.count.index is not None:
        return set()
    aliases = config_nodes(blueprint.config)[stack.count.node].attribute_map
    return {stack.count.name} | {alias for alias, name in aliases.items() if name == stack.count.name}


def _count_copies(whole: ModuleDescription, shorter: ModuleDescription, depth: int) -> set[str]:
    """Attributes of a module that hold the count."""
    return {n for n, value in whole.values.items() if value == depth and shorter.values.get(n) == depth - 1}


@cache
def _computations(owner: Any, attributes: frozenset[str], path: str) -> tuple[str, ...]:
    """Arithmetic and comparisons in a class with some attributes, or with the counter of a loop over its list `path`."""
    return tuple(
        f"{owner.__name__}.{name}: {ast.unparse(expression)}"
        for name, tree in running_code(owner).items()
        for expression in _Suspects(attributes, path).search(tree)
    )


@cache
def running_code(owner: Any) -> dict[str, ast.AST]:
    """`forward` and the methods it calls, parsed; without those whose source cannot be read."""
    code: dict[str, ast.AST] = {}
    waiting = ["forward"]
    while waiting:
        name = waiting.pop()
        method = inspect.getattr_static(owner, name, None)
        function = inspect.unwrap(getattr(method, "__func__", method)) if callable(method) else None
        if name in code or not inspect.isfunction(function) or function.__module__.startswith(_COMMON_CODE):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, SyntaxError):
            continue
        code[name] = tree
        waiting += [
            node.func.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_self(node.func.value)
        ]
    return code


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


class _Suspects:
    """Search for expressions that compute with the number of a layer or with the number of layers."""

    def __init__(self, attributes: frozenset[str], path: str) -> None:
        self.attributes = attributes
        self.path = path

    def search(self, node: ast.AST, counters: frozenset[str] = frozenset()) -> Iterator[ast.expr]:
        """Outermost arithmetic expressions and comparisons; `counters` are the names that hold a layer's number."""
        operands: list[ast.expr] = []
        if isinstance(node, ast.Compare) and _asks_known_list(node):
            return
        if isinstance(node, ast.BinOp) and not isinstance(node.left, ast.List):  # `[None] * n` only allocates
            operands = [node.left, node.right]
        elif isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        if isinstance(node, ast.expr) and any(self._holds_number(operand, counters) for operand in operands):
            yield node
            return
        for loop in [node] if isinstance(node, ast.For) else getattr(node, "generators", ()):
            counters = self._inside(loop, counters)
        for child in ast.iter_child_nodes(node):
            yield from self.search(child, counters)

    def _holds_number(self, node: ast.AST, counters: frozenset[str]) -> bool:
        if isinstance(node, ast.Subscript):  # what a list holds at a number is another matter
            return self._holds_number(node.value, counters)
        if isinstance(node, ast.Attribute) and node.attr in self.attributes:
            return True
        if isinstance(node, ast.Name) and node.id in counters:
            return True
        if isinstance(node, ast.Call) and _calls(node, "len") and any(map(self._is_list, node.args)):
            return True
        return any(self._holds_number(child, counters) for child in ast.iter_child_nodes(node))

    def _inside(self, loop: ast.For | ast.comprehension, counters: frozenset[str]) -> frozenset[str]:
        """Names that hold a layer's number inside a loop."""
        rebound = {part.id for part in ast.walk(loop.target) if isinstance(part, ast.Name)}
        counters -= rebound
        parts = list(ast.walk(loop.iter))
        counts = any(isinstance(part, ast.Attribute) and part.attr in self.attributes for part in parts)
        if not isinstance(loop.iter, ast.Call) or not (counts or any(map(self._is_list, parts))):
            return counters
        target = loop.target
        if _calls(loop.iter, "enumerate") and isinstance(target, ast.Tuple):
            target = target.elts[0]
        elif not _calls(loop.iter, "range"):
            return counters
        return counters | {target.id} if isinstance(target, ast.Name) else counters

    def _is_list(self, node: ast.AST) -> bool:
        """Whether an expression is the list: `self.<path>`, or its last name on something else than `self`."""
        if not isinstance(node, ast.Attribute) or not self.path:
            return False
        name = ast.unparse(node)
        last = self.path.rpartition(".")[2]
        return name == f"self.{self.path}" or (not name.startswith("self.") and name.endswith(f".{last}"))


def _asks_known_list(node: ast.Compare) -> bool:
    """Whether this is `number in self.config.<list>` with a list of layer numbers that a cut rewrites."""
    lists = (part.attr for side in node.comparators for part in ast.walk(side) if isinstance(part, ast.Attribute))
    return all(isinstance(op, ast.In | ast.NotIn) for op in node.ops) and any(
        name in FOLLOWS and FOLLOWS[name].kind in ("indices", "outputs", "inputs") for name in lists
    )


def _calls(node: ast.Call, function: str) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id == function
