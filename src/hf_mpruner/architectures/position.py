"""`PositionCode`: an expression of a model's code that computes with a layer's number, evaluated before and after a cut.

`if idx == 0:`, `i % 2`, `layer_idx + 1 == self.config.num_hidden_layers // 2`: what such code does to the layers that stay
must be the same with their new numbers.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

from transformers import PreTrainedConfig

from .reference import ModuleDescription

_FUNCTIONS = {"range": range, "len": len, "int": int, "max": max, "min": min, "abs": abs, "bool": bool}
_PLAIN = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.Constant,
    ast.Tuple,
    ast.List,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.expr_context,
)


@dataclass(frozen=True)
class PositionCode:
    """An expression in a layer's number `i` and the number of layers `n`.

    Args:
        text (`str`): class, method and expression, for messages.
        owner (`str`): path of the module whose attributes the expression reads, `None` for a module in the blocks.
        code: the compiled expression.
        constants (`Mapping[str, tuple[str, str]]`): by name in the code, `("self" or "config", attribute)`.
    """

    text: str
    owner: str | None
    code: CodeType = field(repr=False, compare=False)
    constants: Mapping[str, tuple[str, str]] = field(default_factory=dict, compare=False)

    def value(self, layer: int, depth: int, build: Build) -> Any:
        """What the expression gives for one layer of a build.

        Args:
            layer (`int`): number of the layer in that build.
            depth (`int`): number of layers in that build.
            build (`Build`): where the constants are read.

        Returns:
            The value, or the name of the error that it ends in.
        """
        names: dict[str, Any] = {"i": layer, "n": depth}
        for name, (source, attribute) in self.constants.items():
            if source == "config":
                names[name] = getattr(build.node, attribute, None)
            else:
                names[name] = build.modules[self.owner or ""].values.get(attribute)
        try:
            return eval(self.code, {"__builtins__": {}, **_FUNCTIONS}, names)
        except Exception as error:  # such as a comparison with None: then it is so before and after
            return type(error).__name__


@dataclass(frozen=True)
class Build:
    """Where an expression finds its constants.

    Args:
        modules (`Mapping[str, ModuleDescription]`): description of the build.
        node (`PreTrainedConfig`): the config node that holds the stack's count.
    """

    modules: Mapping[str, ModuleDescription]
    node: PreTrainedConfig


def compile_position(
    text: str,
    owner: str | None,
    expression: ast.expr,
    layers: Mapping[str, int],
    counts: frozenset[str],
    lists: Sequence[str],
    readable: bool = True,
) -> PositionCode | None:
    """Turn an expression into something that can be evaluated without the model.

    Args:
        text (`str`): for messages.
        owner (`str`): path of the module that owns the code, `None` for modules in the blocks.
        expression (`ast.expr`): as parsed.
        layers (`Mapping[str, int]`): names and attributes of `self` that hold the layer's number, with that of the first.
        counts (`frozenset[str]`): attributes of `self` and `self.config` that hold the number of layers.
        readable (`bool`): whether `self.config` is the config that holds the number of layers.
        lists (`Sequence[str]`): source of expressions for the list of layers, e.g. `"self.layers"`.

    Returns:
        `PositionCode`, or `None` if the expression needs more than numbers and constants.

    Example:
        >>> tree = ast.parse("idx + 1 == self.config.num_hidden_layers // 2", mode="eval").body
        >>> names = {"idx": 0}, frozenset({"num_hidden_layers"})
        >>> half = compile_position("half", "", tree, *names, ["self.layers"])
        >>> [half.value(i, 6, None) for i in range(4)]
        [False, False, True, False]
    """
    if not readable and "config." in ast.unparse(expression):
        return None
    rewriter = _Rewriter(owner, layers, counts, lists)
    tree = ast.Expression(rewriter.visit(copy.deepcopy(expression)))
    known = {"i", "n", *_FUNCTIONS, *rewriter.constants}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if node.id not in known:
                return None
        elif isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or node.keywords:
                return None
        elif not isinstance(node, _PLAIN):
            return None
    code = compile(ast.fix_missing_locations(tree), text, "eval")
    return PositionCode(text, owner, code, rewriter.constants)


class _Rewriter(ast.NodeTransformer):
    """Replace what holds the layer's number by `i`, the number of layers by `n`, and settings by constants."""

    def __init__(
        self, owner: str | None, layers: Mapping[str, int], counts: frozenset[str], lists: Sequence[str]
    ) -> None:
        self.owner, self.layers, self.counts, self.lists = owner, layers, counts, lists
        self.constants: dict[str, tuple[str, str]] = {}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._layer(node.id) if node.id in self.layers else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        base = ast.unparse(node.value)
        if base == "self" and node.attr in self.layers:
            return self._layer(node.attr)
        if base in ("self", "self.config", "config") and node.attr in self.counts:
            return ast.Name("n", ast.Load())
        if base in ("self.config", "config"):
            return self._constant("config", node.attr)
        if base == "self" and self.owner is not None:
            return self._constant("self", node.attr)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if ast.unparse(node.func) == "len" and [ast.unparse(argument) for argument in node.args][:1] in [
            [name] for name in self.lists
        ]:
            return ast.Name("n", ast.Load())
        self.generic_visit(node)
        return node

    def _layer(self, name: str) -> ast.expr:
        number = ast.Name("i", ast.Load())
        return ast.BinOp(number, ast.Add(), ast.Constant(self.layers[name])) if self.layers[name] else number

    def _constant(self, source: str, attribute: str) -> ast.expr:
        name = f"{source}_{attribute}"
        self.constants[name] = (source, attribute)
        return ast.Name(name, ast.Load())


def find_position_fault(
    codes: Sequence[PositionCode], kept: Sequence[int], depth: int, before: Build, after: Build
) -> str | None:
    """Find code that would treat a kept layer differently under its new number.

    Args:
        codes (`Sequence[PositionCode]`): of the stack.
        kept (`Sequence[int]`): the layers that stay.
        depth (`int`): number of layers before the cut.
        before (`Build`): the model as it is.
        after (`Build`): the model built from the shortened config.

    Returns:
        `str`: what would change for which layer, or `None`.
    """
    for code in codes:
        special = [layer for layer in range(depth) if code.value(layer, depth, before) is True]
        if special and not set(special) & set(kept):
            return f"code that is run for layer {special[0]} would be run no more: {code.text}"
        for new, old in enumerate(kept):
            now, then = code.value(old, depth, before), code.value(new, len(kept), after)
            if now != then:
                return f"code that computes with a layer's number gives {then} instead of {now} for layer {old}: {code.text}"
    return None
