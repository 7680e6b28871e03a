"""A README.md in parts: the YAML between the two `---`, the text, and the section of it that is ours."""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple

import yaml

BEGIN = "<!-- hf_mpruner: begin -->"
END = "<!-- hf_mpruner: end -->"

_NOTE = re.compile(r"<!-- hf_mpruner: metadata (.*?) *-->")
_ENTRY = re.compile(r"([\w-]+)=([0-9a-f,]+)")
# As the Hub finds it, and also with nothing in it.
_FRONT = re.compile(r"\A(\s*---[ \t]*(?:\r\n|\r|\n))(?:(.*?)(?:\r\n|\r|\n))??(---[ \t]*(?:\r\n|\r|\n|\Z))", re.DOTALL)


class Parts(NamedTuple):
    """A README.md, so that `opening + yaml + newline + closing + body` is the text again.

    Args:
        opening, closing (`str`): the two fences; empty if there is no YAML block.
        yaml (`str`): what is between them.
        body (`str`): what follows.
    """

    opening: str
    yaml: str
    closing: str
    body: str


def split_card(text: str) -> Parts:
    r"""Take a README.md apart.

    Example:
        >>> split_card("---\ntags: [a]\n---\n# Title\n")
        Parts(opening='---\n', yaml='tags: [a]', closing='---\n', body='# Title\n')
    """
    text = text.removeprefix("\ufeff")  # with a byte order mark the Hub sees no YAML
    found = _FRONT.match(text)
    if found is None:
        return Parts("", "", "", text)
    return Parts(found[1], found[2] or "", found[3], text[found.end() :])


def read_metadata(text: str) -> dict[str, Any]:
    """The metadata of a README.md; empty if it has none.

    Raises:
        ValueError: if what is between the two `---` is no YAML, or no keys and values.
    """
    try:
        values = yaml.safe_load(split_card(text).yaml + "\n")  # a text that ends the block keeps its last newline
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"The metadata of README.md (between the two '---' at its top) is no YAML: {reason}. Correct it by hand; "
            "nothing was changed."
        ) from error
    if values is not None and not isinstance(values, dict):
        raise ValueError(
            f"The metadata of README.md (between the two '---' at its top) is {values!r}, not keys and values such as "
            "'license: mit'. Correct it by hand; nothing was changed."
        )
    return values or {}


def dump_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML, in their order; words that YAML reads as something else (`no`) are quoted."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10**6) if values else ""


def written_note(values: dict[str, Any]) -> str:
    """A comment that remembers which metadata is ours, so that the next card may replace what nobody has changed."""
    parts = []
    for key, value in values.items():
        if key == "model-index":
            digests = [digest(result) for model in value for result in model["results"]]
        elif key == "tags":  # these are united, never replaced
            continue
        else:
            digests = [digest(value)]
        parts.append(f"{key}={','.join(digests)}")
    return f"<!-- hf_mpruner: metadata {' '.join(parts)} -->"


def read_written(body: str) -> dict[str, list[str]]:
    """What `written_note` remembers: for each key its digests."""
    found = _NOTE.search(body)
    return {key: digests.split(",") for key, digests in _ENTRY.findall(found[1])} if found else {}


def digest(value: Any) -> str:
    """Eight hexadecimal digits of a plain value; the order of keys does not count."""
    return hashlib.sha256(repr(_ordered(value)).encode()).hexdigest()[:8]


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):  # keys of YAML need not be strings
        return sorted((repr(key), _ordered(item)) for key, item in value.items())
    return [_ordered(item) for item in value] if isinstance(value, list) else value
