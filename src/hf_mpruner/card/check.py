"""What the Hub would refuse in the metadata of a README.md, found without a network."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from typing import Any

from .front import read_metadata

RELATIONS = ("adapter", "merge", "quantized", "finetune")
_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*|code|multilingual")
_REFERENCES = {"base_model": "model", "new_version": "model", "datasets": "dataset"}
_WORDS = ("library_name", "pipeline_tag", "base_model_relation", "license_name", "license_link")
# The Hub's list.
_LISTED = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0
lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1
open-mdw openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
_LICENSES = frozenset(_LISTED.split())


def check_card(text: str) -> None:
    r"""Check the metadata of a README.md the way the Hub does when it is pushed.

    Args:
        text (`str`): the whole README.md.

    Raises:
        ValueError: for what the Hub would refuse, or show as nothing; all of it, with the key of each.

    Example:
        >>> check_card("---\nbase_model: /home/me/bert\n---\n")
        Traceback (most recent call last):
        ...
        ValueError: The Hub would refuse this README.md: base_model is '/home/me/bert', which is no model id of the Hub...
    """
    problems = list(_problems(read_metadata(text)))
    if problems:
        raise ValueError(f"The Hub would refuse this README.md: {'; '.join(problems)}.")


def is_hub_id(name: object) -> bool:
    """Whether this can be the id of a model or of a dataset on the Hub: `name` or `owner/name`, and no path.

    Example:
        >>> [is_hub_id(name) for name in ("google-bert/bert-base-uncased", "./bert", "a/b/c", None)]
        [True, False, False, False]
    """
    return isinstance(name, str) and bool(_HUB_ID.fullmatch(name)) and ".." not in name and "--" not in name


def is_language(code: object) -> bool:
    """Whether this has the form of an ISO 639 code, as the Hub asks for."""
    return isinstance(code, str) and bool(_LANGUAGE.fullmatch(code))


def _problems(values: dict[Any, Any]) -> Iterator[str]:
    for name, kind in _REFERENCES.items():
        for key, value in _each(name, values):
            if not is_hub_id(value):
                yield f"{key} is {value!r}, which is no {kind} id of the Hub ('owner/name'): leave it out, or name one"
    if values.get("base_model_relation", RELATIONS[0]) not in RELATIONS:
        yield f"base_model_relation is {values['base_model_relation']!r}, not one of {', '.join(RELATIONS)}"
    for name in _WORDS:
        if name in values and not isinstance(values[name], str):
            yield f"{name} is {values[name]!r}, not text: write it in quotes, or leave it out"
    for name in ("tags", "metrics"):
        for key, value in _each(name, values):
            if not isinstance(value, str) or not value:
                yield f"{key} is {value!r}, not text: write it in quotes, or leave it out"
    for key, value in _each("language", values):
        if not is_language(value):
            yield f"{key} is {value!r}, not an ISO 639 code such as 'en' (in quotes: YAML reads no as false)"
    for key, value in _each("license", values):
        if value not in _LICENSES:
            near = difflib.get_close_matches(str(value).lower(), sorted(_LICENSES), n=1)
            question = f" (did you mean '{near[0]}'?)" if near else ""
            yield f"{key} is {value!r}, which is none of the Hub's{question}: write 'other', and its name as license_name"
    if "model-index" in values:
        yield from _index_problems(values["model-index"])
    yield from _not_finite("", values)


def _each(name: str, values: dict[Any, Any]) -> list[tuple[str, Any]]:
    """A single value, or those of a list, each with the name that a message calls it by."""
    if name not in values:
        return []
    value = values[name]
    return [(f"{name}[{i}]", item) for i, item in enumerate(value)] if isinstance(value, list) else [(name, value)]


def _index_problems(index: Any) -> Iterator[str]:
    if not isinstance(index, list):
        yield f"model-index is {index!r}, not a list of models"
        return
    for i, model in enumerate(index):
        here = f"model-index[{i}]"
        yield from _missing(model, here, "name")
        yield from _missing(model, here, "results")
        for j, result in enumerate(_list(model, "results")):
            inner = f"{here}.results[{j}]"
            yield from _missing(result, inner, "task", "type")
            yield from _missing(result, inner, "dataset", "type")
            yield from _missing(result, inner, "dataset", "name")
            yield from _missing(result, inner, "metrics")
            for k, metric in enumerate(_list(result, "metrics")):
                yield from _missing(metric, f"{inner}.metrics[{k}]", "type")
                yield from _missing(metric, f"{inner}.metrics[{k}]", "value")


def _list(value: Any, name: str) -> list[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _missing(value: Any, label: str, *names: str) -> Iterator[str]:
    for name in names:
        label = f"{label}.{name}"
        value = value.get(name) if isinstance(value, dict) else None
    if value is None:
        yield f"{label} is missing: write it, or leave the result out"


def _not_finite(label: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(f"{label}.{key}" if label else str(key), item)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _not_finite(f"{label}[{i}]", item)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{label} is {value}, not a number: leave it out"
