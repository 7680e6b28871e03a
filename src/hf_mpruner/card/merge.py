"""Our card into one that a person has written in: their words and values stay, byte for byte; our section is replaced."""

from __future__ import annotations

import re
from typing import Any

import yaml

from .default_cards import is_untouched_default
from .front import BEGIN, END, digest, dump_yaml, read_metadata, read_written, split_card, written_note

_SECTION = re.compile(f"{re.escape(BEGIN)}(?:(?!{re.escape(BEGIN)}).)*?{re.escape(END)}", re.DOTALL)
_INDEX = "model-index"


def merge_card(existing: str | None, ours: str) -> str:
    """Put our card into an existing one.

    Args:
        existing (`str`, *optional*): the README.md that is there; `None` if there is none.
        ours (`str`): from `render_card`.

    Returns:
        `str`: the existing text, in which only the section between our two marks is new (it is appended if there is
        none), with our metadata where it has none of its own. Values that an earlier card of ours wrote and that nobody
        changed are replaced. A card that transformers made and nobody touched is replaced whole.

    Raises:
        ValueError: if the existing metadata cannot be read, so that nothing of it can be kept.
    """
    if existing is None or not existing.strip():
        return ours
    newline = "\r\n" if "\r\n" in existing else "\n"
    theirs, mine = split_card(existing), split_card(ours)
    old, new = read_metadata(existing), read_metadata(ours)
    merged, written = _merge_metadata(old, new, read_written(theirs.body))
    front = _rewrite(theirs.yaml.replace("\r\n", "\n"), old, merged)
    section = _SECTION.search(mine.body)
    if section is None:
        raise ValueError(f"The new card has no section between '{BEGIN}' and '{END}': pass one that render_card made.")
    text = re.sub(r"<!-- hf_mpruner: metadata .*?-->", lambda _: written_note(written), section[0], count=1)
    if is_untouched_default(existing):
        body = mine.body.replace(section[0], text).replace("\n", newline)
    else:
        body = _merge_body(theirs.body, text.replace("\n", newline), newline)
    if not front:
        return body
    opening = theirs.opening or f"---{newline}"
    closing = theirs.closing if theirs.closing.endswith(("\n", "\r")) else f"---{newline}"
    return opening + front.replace("\n", newline) + closing + body


def _merge_body(body: str, section: str, newline: str) -> str:
    found = list(_SECTION.finditer(body))
    if not found:
        gap = newline * max(0, 2 - _trailing(body, newline)) if body.strip() else ""
        return f"{body}{gap}{section}{newline}"
    parts, end = [], 0
    for i, old in enumerate(found):  # a second section of ours is a copy: the first is the one that stays
        parts += [body[end : old.start()], section if i == 0 else ""]
        end = old.end()
    return "".join([*parts, body[end:]])


def _trailing(body: str, newline: str) -> int:
    count = 0
    while body.endswith(newline):
        body, count = body.removesuffix(newline), count + 1
    return count


def _merge_metadata(
    old: dict[str, Any], new: dict[str, Any], written: dict[str, list[str]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The merged metadata, and the part of it that is ours."""
    merged, ours = dict(old), {}
    for key, value in new.items():
        if key == _INDEX:
            continue
        if key == "tags":
            merged[key] = _united(old.get(key), value)
        elif key == "base_model_relation" and merged.get("base_model") != new.get("base_model"):
            continue  # it is about another base than theirs
        elif _is_empty(old.get(key)) or digest(old[key]) in written.get(key, ()):
            merged[key] = ours[key] = value
    index, own = _merge_index(old.get(_INDEX), new.get(_INDEX, []), written.get(_INDEX, ()))
    merged.pop(_INDEX, None)
    if not _is_empty(index):
        merged[_INDEX] = index
    return merged, {**ours, **({_INDEX: own} if own else {})}


def _merge_index(old: Any, new: list[Any], written: Any) -> tuple[Any, list[Any]]:
    """Results of others stay, ours of an earlier card go, ours of this card come unless theirs say the same thing."""
    if not isinstance(old, list) or not all(isinstance(model, dict) for model in old):
        return (new, new) if _is_empty(old) else (old, [])
    kept = []
    for model in old:
        results = model.get("results")
        if isinstance(results, list):
            left = [result for result in results if digest(result) not in written]
            if left or not results:
                kept.append({**model, "results": left})
        else:
            kept.append(model)
    if not kept:
        return new, new
    taken = [_about(result) for model in kept for result in model.get("results") or []]
    own = [result for model in new for result in model["results"] if _about(result) not in taken]
    if own:
        kept[0] = {**kept[0], "results": [*(kept[0].get("results") or []), *own]}
    return kept, [{"results": own}] if own else []


def _about(result: Any) -> Any:
    """What a result was measured on."""
    if not isinstance(result, dict):
        return result
    dataset, task = result.get("dataset"), result.get("task")
    about = {key: dataset.get(key) for key in ("type", "config", "split")} if isinstance(dataset, dict) else dataset
    return digest([task.get("type") if isinstance(task, dict) else task, about])


def _united(theirs: Any, ours: list[str]) -> list[Any]:
    have = theirs if isinstance(theirs, list) else [] if _is_empty(theirs) else [theirs]
    return [*have, *(tag for tag in ours if tag not in have)]


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", [], {})


def _rewrite(front: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    """The YAML with other values, and with every line and comment of theirs where it was, if that can be."""
    changed = {key: value for key, value in new.items() if key not in old or digest(old[key]) != digest(value)}
    gone = [key for key in old if key not in new]
    if not changed and not gone:
        return f"{front}\n" if front else ""
    spliced = _splice(front, changed, gone)
    try:
        same = digest(yaml.safe_load(spliced)) == digest(new)
    except yaml.YAMLError:
        same = False
    return spliced if same else dump_yaml(new)


def _splice(front: str, changed: dict[str, Any], gone: list[str]) -> str:
    root = yaml.compose(front, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        return dump_yaml(changed) if root is None else ""
    text, left = front.rstrip("\n") + "\n", dict(changed)
    for key, value in reversed(root.value):
        if key.value not in left and key.value not in gone:
            continue
        start, end = key.start_mark.index, value.end_mark.index
        span = text[start:end]
        end -= len(span) - len(_without_comments_below(span))
        text = (
            text[:start]
            + (dump_yaml({key.value: left.pop(key.value)}) if key.value in left else "")
            + text[end:].lstrip("\n")
        )
    return text + dump_yaml({key: value for key, value in changed.items() if key in left})


def _without_comments_below(span: str) -> str:
    lines = span.splitlines(keepends=True)
    while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    return "".join(lines)
