"""Empty tensors that know where they come from, whatever a loader does with them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from .recipe import StoredTensor

# What a checkpoint's tensor has when it is a torch tensor; other types are not loaded by names alone.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# These give the same values in the same order and shape.
_SAME = frozenset({"detach", "clone", "contiguous", "requires_grad_", "alias", "__deepcopy__", "data.__get__"})


class Sources:
    """What tensors are made of: a number for every tensor of the checkpoint and for everything computed from them.

    The same operation on the same tensors has the same number, so that two tensors with equal numbers have equal values
    whatever the values of the checkpoint are.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._stored: dict[int, str] = {}
        self._leaves: dict[int, frozenset[str]] = {}
        self._unknown = itertools.count()
        self._written: dict[int, tuple[Any, int]] = {}  # the storage is held, so that its address stays its own
        self._lock = threading.Lock()  # the loader reads in several threads

    def stored(self, name: str) -> int:
        """The number of a tensor of the checkpoint."""
        number = self._number(("stored", name), frozenset({name}))
        self._stored[number] = name
        return number

    def computed(self, operation: Hashable, numbers: Sequence[int]) -> int:
        """The number of what an operation makes of other tensors."""
        leaves: frozenset[str] = frozenset().union(*(self._leaves[number] for number in numbers))
        return self._number(("computed", operation), leaves)

    def unknown(self) -> int:
        """A number that nothing else has."""
        return self._number(("unknown", next(self._unknown)), frozenset())

    def write(self, tensor: LabelledTensor) -> None:
        """Something wrote to a tensor, or to a view of it: all that share its storage are no longer what they were."""
        storage = _storage(tensor)
        self._written[storage._cdata] = storage, self.unknown()

    def now(self, tensor: LabelledTensor, number: int) -> int:
        """The number that a tensor was given, or another one if it was written to since."""
        return self._written[_storage(tensor)._cdata][1] if self._written and self._was_written(tensor) else number

    def _was_written(self, tensor: LabelledTensor) -> bool:
        return _storage(tensor)._cdata in self._written

    def name(self, number: int) -> str | None:
        """The tensor of the checkpoint that this is, unchanged; `None` for one that is computed."""
        return self._stored.get(number)

    def names(self, number: int) -> frozenset[str]:
        """All tensors of the checkpoint that it is made of."""
        return self._leaves[number]

    def _number(self, key: Hashable, leaves: frozenset[str]) -> int:
        with self._lock:
            number = self._numbers.setdefault(key, len(self._numbers))
            self._leaves.setdefault(number, leaves)
        return number


class LabelledTensor(Tensor):
    """A tensor on the meta device with a number in a `Sources`, which every operation hands on.

    It stays on the meta device wherever it is moved: a loader that moves weights to the CPU needs no memory for them,
    while all that is computed from a config, such as tables of positions, is computed as ever.
    """

    sources: Sources
    _given: int

    @property
    def number(self) -> int:
        """In `sources`: what it is made of."""
        return self.sources.now(self, self._given)

    @staticmethod
    def of(tensor: StoredTensor, sources: Sources) -> LabelledTensor:
        """A tensor of a checkpoint.

        Raises:
            KeyError: if its type is none of `DTYPES`.
        """
        empty = torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype], device="meta").as_subclass(LabelledTensor)
        empty.sources, empty._given = sources, sources.stored(tensor.name)
        return empty

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and label what comes out of it."""
        kwargs, name = dict(kwargs or {}), _name_of(func)
        if name in ("to", "cpu", "cuda", "float", "half", "bfloat16", "double"):
            return _moved(func, args, kwargs)
        out = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if name == "data.__set__":
            args[0]._given = args[1].number if isinstance(args[1], LabelledTensor) else args[0].sources.unknown()
            return out
        operands = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, LabelledTensor)]
        results = [value for value in tree_flatten(out)[0] if isinstance(value, LabelledTensor)]
        if not operands:
            return out
        sources = operands[0].sources
        written = [tensor for tensor in (args[:1] if _writes(name) else [kwargs.get("out")]) if tensor is not None]
        if written:
            for tensor in written:
                sources.write(tensor)
            return out
        same = name in _SAME or (name == "__getitem__" and len(args) > 1 and args[1] is Ellipsis)
        numbers = [operand.number for operand in operands]
        values, form = tree_flatten((args, kwargs))
        operation = None if same else (name, form, *map(_described, values))
        for place, result in enumerate(results):
            number = numbers[0] if operation is None else sources.computed((operation, place), numbers)
            result.sources, result._given = sources, number
        return out


def _writes(name: str) -> bool:
    """Whether an operation writes to its first operand, by its name."""
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__") and name not in _SAME)


def _storage(tensor: LabelledTensor) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.untyped_storage()


def _name_of(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", repr(func))
    if name in ("__get__", "__set__"):  # of a property: `T`, `data`, ...
        return f"{getattr(getattr(func, '__self__', None), '__name__', '?')}.{name}"
    return name


def _moved(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Another type, the same place: values that are cast are those of the same stored tensor."""
    tensor = args[0]
    with torch._C.DisableTorchFunctionSubclass():
        plain = tensor.as_subclass(Tensor)
        out = func(torch.empty(0, dtype=plain.dtype), *args[1:], **kwargs)
        moved = plain.detach().to(out.dtype).as_subclass(LabelledTensor)
    moved.sources, moved._given = tensor.sources, tensor.number
    return moved


def _described(value: Any) -> Hashable:
    """An argument of an operation, to compare it by."""
    if isinstance(value, LabelledTensor):
        return ("tensor", value.number)
    if isinstance(value, Tensor):
        # its values are not known to be those of another; an index on the CPU is compared by them
        known = value.device.type == "cpu" and value.numel() <= 4096
        return ("other", tuple(value.flatten().tolist()), tuple(value.shape)) if known else ("other", id(value))
    return repr(value)
