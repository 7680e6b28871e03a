"""Read what the proof cannot see: code that computes with a layer's number, or with how many there are, as it runs.

Two builds of a model show every attribute, but not `if idx == self.num_layers // 2:` inside a `forward`. Such code gives
another model when a layer before it goes, though saving and loading agree. So the source of the classes around and in
the stack is parsed. Arithmetic and comparisons with these numbers are evaluated for every cut (`position.py`); where that
is not possible they refuse the stack. Indexing (`self.layers[i]`, `config.layer_types[i]`) is no arithmetic and is fine.
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
from .position import PositionCode, compile_position
from .reference import ModuleDescription, config_nodes
from .rules import ALL, BLOCK_COUNTS, FOLLOWS, POSITION_ATTRIBUTES
from .stack import BlockStack

POSITIONS = frozenset(POSITION_ATTRIBUTES)
# Nothing in these modules knows a particular architecture.
_COMMON_CODE = ("torch.", "transformers.modeling_utils", "transformers.modeling_layers", "transformers.generation.")


def find_position_code(
    blueprint: Blueprint, stack: BlockStack, without_last: Mapping[str, ModuleDescription]
) -> tuple[tuple[PositionCode, ...], dict[int, str]]:
    """Find code that computes with the number of a layer of a stack, or with the number of layers.

    Args:
        blueprint (`Blueprint`): the model rebuilt from its config.
        stack (`BlockStack`): the stack in question.
        without_last (`Mapping[str, ModuleDescription]`): description of the build with one block fewer.

    Returns:
        `tuple[tuple[PositionCode, ...], dict[int, str]]`: expressions that every cut must leave as they are for the
        layers that stay; and layers that must stay because of code that was read by a person, each with the reason.

    Raises:
        UnsupportedArchitectureError: there is such code that nobody read and that cannot be evaluated, with class,
            method and expression of the first find.
    """
    codes: list[PositionCode] = []
    pinned: dict[int, str] = {}
    reviewed = blueprint.rules.reviewed_code
    for text, code in _finds(blueprint, stack, without_last):
        known = reviewed.get(text) or reviewed.get(f"*{text[text.index('.') :]}")
        if known is not None and known.switch and not _setting(blueprint, known.switch):
            continue
        if known is not None and known.pins != ALL:
            pinned |= dict.fromkeys(range(_number(blueprint, known.pins)), known.reason)
        elif known is None and code is not None:
            codes.append(code)
        else:
            raise UnsupportedArchitectureError(
                f"{stack.path!r}: the model computes with a layer's number, or with how many there are, as it runs: {text}"
                + (f" ({known.reason})" if known else "")
            )
    return tuple(dict.fromkeys(codes)), pinned


def _finds(
    blueprint: Blueprint, stack: BlockStack, without_last: Mapping[str, ModuleDescription]
) -> Iterator[tuple[str, PositionCode | None]]:
    """Text of each suspicious expression, and the expression itself if it can be evaluated."""
    parts = stack.path.split(".")
    for length in range(len(parts)):
        path, inner = ".".join(parts[:length]), ".".join(parts[length:])
        module = blueprint.reference.get_submodule(path)
        owner: Any = type(module)
        copies = _count_copies(blueprint.modules[path], without_last.get(path), stack.depth)
        counts = frozenset(_names_of_count(blueprint, stack) | copies)
        for text, expression, counters in _computations(owner, counts, inner):
            readable = _has_config_of(module, blueprint, stack)
            yield text, compile_position(text, path, expression, dict(counters), counts, [f"self.{inner}"], readable)
    for module in blueprint.reference.get_submodule(stack.path).modules():
        positions = frozenset(blueprint.rules.positions.keys() & vars(module).keys())
        counts = frozenset(
            name for name, value in vars(module).items() if name in BLOCK_COUNTS and value == stack.depth
        )
        kind: Any = type(module)
        for text, expression, _ in _computations(kind, positions | counts, "") if positions or counts else ():
            readable = _has_config_of(module, blueprint, stack)
            yield text, compile_position(text, None, expression, dict.fromkeys(positions, 0), counts, [], readable)


def _has_config_of(module: Any, blueprint: Blueprint, stack: BlockStack) -> bool:
    """Whether `self.config` in a module is the config that holds the count, and not one around it."""
    return type(vars(module).get("config")) is type(config_nodes(blueprint.config)[stack.count.node])


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


def _count_copies(whole: ModuleDescription, shorter: ModuleDescription | None, depth: int) -> set[str]:
    """Attributes of a module that hold the count."""
    if shorter is None:
        return set()
    return {n for n, value in whole.values.items() if value == depth and shorter.values.get(n) == depth - 1}


@cache
def _computations(
    owner: Any, attributes: frozenset[str], path: str
) -> tuple[tuple[str, ast.expr, tuple[tuple[str, int], ...]], ...]:
    """Arithmetic and comparisons in a class with some attributes, or with the counter of a loop over its list `path`.

    Each with its text, and with the names that hold a layer's number in it.
    """
    return tuple(
        (f"{owner.__name__}.{name}: {ast.unparse(expression)}", expression, counters)
        for name, tree in running_code(owner).items()
        for expression, counters in _Suspects(attributes, path).search(tree)
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
        self.starts: dict[str, int | None] = {}  # where counters begin, None for nobody knows

    def search(
        self, node: ast.AST, counters: frozenset[str] = frozenset()
    ) -> Iterator[tuple[ast.expr, tuple[tuple[str, int], ...]]]:
        """Outermost arithmetic expressions and comparisons; `counters` are the names that hold a layer's number.

        Yields each with the counters that count from 0 to the last layer; others make it impossible to evaluate.
        """
        operands: list[ast.expr] = []
        if isinstance(node, ast.Compare) and _asks_known_list(node):
            return
        if isinstance(node, ast.BinOp) and not isinstance(node.left, ast.List):  # `[None] * n` only allocates
            operands = [node.left, node.right]
        elif isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        elif (
            isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and self._is_number(node.operand, counters)
        ):
            operands = [node.operand]  # `if not idx:`
        elif isinstance(node, ast.If | ast.IfExp | ast.While) and self._is_number(node.test, counters):
            yield node.test, self.counting(counters)
        if isinstance(node, ast.expr) and any(self._holds_number(operand, counters) for operand in operands):
            yield node, self.counting(counters)
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
        start = _first_number(loop.iter)
        if _calls(loop.iter, "enumerate") and isinstance(target, ast.Tuple):
            target = target.elts[0]
        elif not _calls(loop.iter, "range"):
            return counters
        if not isinstance(target, ast.Name):
            return counters
        self.starts[target.id] = start
        return counters | {target.id}

    def counting(self, counters: frozenset[str]) -> tuple[tuple[str, int], ...]:
        """The counters whose beginning is known, with it."""
        return tuple((name, start) for name in sorted(counters) if (start := self.starts.get(name)) is not None)

    def _is_number(self, node: ast.expr, counters: frozenset[str]) -> bool:
        """Whether an expression is a layer's number and nothing else."""
        return (isinstance(node, ast.Name) and node.id in counters) or (
            isinstance(node, ast.Attribute) and _is_self(node.value) and node.attr in self.attributes & POSITIONS
        )

    def _is_list(self, node: ast.AST) -> bool:
        """Whether an expression is the list: `self.<path>`, or its last name on something else than `self`."""
        if not isinstance(node, ast.Attribute) or not self.path:
            return False
        name = ast.unparse(node)
        last = self.path.rpartition(".")[2]
        return name == f"self.{self.path}" or (not name.startswith("self.") and name.endswith(f".{last}"))


def _first_number(loop: ast.Call) -> int | None:
    """Number that a counting loop gives to the first layer, if that is plain to see."""
    if _has_lower_bound(loop.args[0]):
        return None
    if _calls(loop, "enumerate"):
        given = [*loop.args[1:], *(keyword.value for keyword in loop.keywords)]
        if not given:
            return 0
        return given[0].value if isinstance(given[0], ast.Constant) and type(given[0].value) is int else None
    return 0 if len(loop.args) == 1 and not loop.keywords else None


def _has_lower_bound(node: ast.AST) -> bool:
    """Whether something is taken from a list from another place on than the first: `layers[1:]`, `reversed(layers)`."""
    return any(
        (isinstance(part, ast.Slice) and (part.lower is not None or part.step is not None))
        or (isinstance(part, ast.Call) and not _calls(part, "zip") and not _calls(part, "len"))
        for part in ast.walk(node)
    )


def _asks_known_list(node: ast.Compare) -> bool:
    """Whether this is `number in self.config.<list>` with a list of layer numbers that a cut rewrites."""
    lists = (part.attr for side in node.comparators for part in ast.walk(side) if isinstance(part, ast.Attribute))
    return all(isinstance(op, ast.In | ast.NotIn) for op in node.ops) and any(
        name in FOLLOWS and FOLLOWS[name].kind in ("indices", "outputs", "inputs") for name in lists
    )


def _calls(node: ast.Call, function: str) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id == function
