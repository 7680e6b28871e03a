"""What the Hub checks in the metadata of a README.md, as far as it is known, with its messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}")
LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*|code|multilingual")
RELATIONS = ("adapter", "merge", "quantized", "finetune")
# A part of the Hub's list, which is longer.
SOME_LICENSES = """
afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause
bsd-3-clause bsl-1.0 cc cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-4.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 creativeml-openrail-m ecl-2.0 epl-2.0 gemma gpl
gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 llama2 llama3 llama3.1 llama3.2 llama3.3 mit mpl-2.0 openrail odc-by
other pddl unknown unlicense wtfpl zlib
"""
LICENSES = frozenset(SOME_LICENSES.split())
WHERE = {"base_model": "model", "new_version": "model", "datasets": "dataset"}


def read_metadata(content: str) -> Any:
    """The YAML block of a README.md; None if there is none.

    Raises:
        yaml.YAMLError: It is no YAML, or asks for objects of a programming language (`!!python/...`).
    """
    found = FRONT.match(content)
    return yaml.safe_load(found[1]) if found else None


def check(content: str) -> tuple[list[str], list[str]]:
    """`(errors, warnings)` of a README.md."""
    try:
        data = read_metadata(content)
    except yaml.YAMLError as error:
        return [f"YAML metadata: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ['"value" must be of type object'], []
    return list(_find_errors(data)), []


def _find_errors(data: dict[Any, Any]) -> Iterator[str]:
    for name, of in WHERE.items():
        if name in data:
            yield from _check_ids(name, data[name], of)
    if "base_model_relation" in data and data["base_model_relation"] not in RELATIONS:
        yield f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]'
    for name in ("library_name", "pipeline_tag", "license_name", "license_link"):
        if name in data and not isinstance(data[name], str):
            yield f'"{name}" must be a string'
    for name in ("tags", "metrics"):
        for label, value in _each(name, data.get(name, [])):
            if not isinstance(value, str) or not value:
                yield f'"{label}" must be a string'
    for label, value in _each("language", data.get("language", [])):
        if not isinstance(value, str):
            yield f'"{label}" must be a string'  # `language: no` is read as false
        elif not LANGUAGE.fullmatch(value):
            yield f'"{label}" with value "{value}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code'
    for label, value in _each("license", data.get("license", [])):
        if value not in LICENSES:
            yield f'"{label}" must be one of [{", ".join(sorted(LICENSES))}]'
    if "model-index" in data:
        yield from _check_model_index(data["model-index"])


def _each(name: str, value: Any) -> list[tuple[str, Any]]:
    """A single value, or those of a list, each with the name that messages call it by."""
    return [(f"{name}[{i}]", item) for i, item in enumerate(value)] if isinstance(value, list) else [(name, value)]


def _check_ids(name: str, value: Any, of: str) -> Iterator[str]:
    for label, item in _each(name, value):
        if item == "":
            yield f'"{label}" is not allowed to be empty'
        elif not isinstance(item, str):
            yield f'"{label}" must be a string'
        elif not HUB_ID.fullmatch(item) or ".." in item or "--" in item:
            yield f'"{label}" with value "{item}" is not valid. Use a {of} id from https://hf.co/{of}s.'


def _check_model_index(index: Any) -> Iterator[str]:
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for i, model in enumerate(index):
        here = f"model-index[{i}]"
        yield from _required(model, here, "name")
        yield from _required(model, here, "results")
        for j, result in enumerate(_list(model, "results")):
            inner = f"{here}.results[{j}]"
            yield from _required(result, inner, "task", "type")
            yield from _required(result, inner, "dataset", "type")
            yield from _required(result, inner, "dataset", "name")
            yield from _required(result, inner, "metrics")
            for k, metric in enumerate(_list(result, "metrics")):
                yield from _required(metric, f"{inner}.metrics[{k}]", "type")
                yield from _required(metric, f"{inner}.metrics[{k}]", "value")


def _list(value: Any, name: str) -> list[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _required(value: Any, label: str, *names: str) -> Iterator[str]:
    for name in names:
        label = f"{label}.{name}"
        value = value.get(name) if isinstance(value, dict) else None
    if value is None:
        yield f'"{label}" is required'
