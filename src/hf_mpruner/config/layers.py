"""Entries that name layers of stacks: which stay (`0`, `-1`, `encoder.block:0`), how many (`6`, `encoder.block:6`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def protect_entries(protect: Sequence[int | str] | Mapping[str, Sequence[int]]) -> list[str]:
    """Layers to protect as strings.

    Raises:
        ValueError: for an entry that names no layer.
    """
    if isinstance(protect, Mapping):
        return [f"{path}:{layer}" for path, layers in protect.items() for layer in layers]
    if isinstance(protect, str):
        raise ValueError(f"protect={protect!r} is one string: pass a list, e.g. protect=[{protect!r}].")
    entries = [str(entry) for entry in protect]
    for entry in entries:
        number = entry.rpartition(":")[2]
        if not number.lstrip("-").isdigit():
            raise ValueError(
                f"protect entry {entry!r} names no layer: write a layer number (0, -1) for every stack or "
                "'path:number' (encoder.block:0) for one."
            )
    return entries


def resolve_protected(protect: Sequence[int | str], depths: Mapping[str, int]) -> dict[str, set[int]]:
    """Layers to protect for each stack path, from entries like `0`, `-1` or `"encoder.block:0"`.

    Raises:
        ValueError: if an entry names an unknown stack or a layer that no stack has.

    Example:
        >>> resolve_protected([-1, "decoder:0"], {"encoder": 4, "decoder": 6})
        {'encoder': {3}, 'decoder': {0, 5}}
    """
    protected: dict[str, set[int]] = {path: set() for path in depths}
    for entry in protect:
        path, _, number = str(entry).rpartition(":")
        if path and path not in depths:
            raise ValueError(
                f"protect entry {entry!r}: '{path}' is no block stack. The stacks are: {', '.join(repr(known) for known in depths)}."
            )
        targets = [path] if path else list(depths)
        hits = [target for target in targets if -depths[target] <= int(number) < depths[target]]
        if not hits:
            sizes = ", ".join(f"'{target}' has {depths[target]} layers" for target in targets)
            raise ValueError(f"protect entry {entry!r} names no layer: {sizes}, numbered from 0 (-1 is the last).")
        for target in hits:
            protected[target].add(int(number) % depths[target])
    return protected


def target_entries(target: int | str | Sequence[int | str] | Mapping[str, int] | None) -> list[str] | None:
    """Numbers of layers to be left, as strings.

    Raises:
        ValueError: for an entry that is no number of layers.
    """
    if target is None:
        return None
    if isinstance(target, Mapping):
        entries = [f"{path}:{number}" for path, number in target.items()]
    elif isinstance(target, int | str):
        entries = [str(target)]
    else:
        entries = [str(entry) for entry in target]
    for entry in entries:
        number = entry.rpartition(":")[2]
        if not number.isdigit() or int(number) < 1:
            raise ValueError(
                f"target_num_layers entry {entry!r} is no number of layers: write how many are to be left (6) for every "
                "stack, or 'path:number' (encoder.block:6) for one; 1 or more."
            )
    if not entries:
        raise ValueError("target_num_layers is empty: write how many layers are to be left, e.g. 6, or leave it out.")
    return entries


def resolve_targets(target: Sequence[str], depths: Mapping[str, int]) -> dict[str, int]:
    """How many layers are to be left in each stack; stacks that no entry names are not in it.

    Args:
        target (list of `str`): of `PruningConfig.target_num_layers`; later entries go before earlier ones.
        depths (`Mapping[str, int]`): layers of each stack now.

    Raises:
        ValueError: if an entry names an unknown stack, or more layers than there are.

    Example:
        >>> resolve_targets(["8", "decoder:4"], {"encoder": 12, "decoder": 12})
        {'encoder': 8, 'decoder': 4}
        >>> resolve_targets(["decoder:4"], {"encoder": 12, "decoder": 12})
        {'decoder': 4}
    """
    found: dict[str, int] = {}
    for entry in target:
        path, _, text = entry.rpartition(":")
        number = int(text)
        if path and path not in depths:
            raise ValueError(
                f"target_num_layers entry {entry!r}: '{path}' is no block stack. The stacks are: "
                f"{', '.join(repr(known) for known in depths)}."
            )
        for name in [path] if path else depths:
            if number > depths[name]:
                raise ValueError(
                    f"target_num_layers entry {entry!r}: '{name}' has only {depths[name]} layers. Pass {depths[name]} or "
                    "fewer; name one stack as 'path:number'."
                )
            found[name] = number
    return found
