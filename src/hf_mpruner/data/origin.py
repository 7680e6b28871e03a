"""What a data set can tell of where it comes from: nothing that is guessed, no path of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from torch.utils.data import DataLoader

_LABELS = ("label", "labels", "label_ids")
_HUB_FILE = re.compile(r"hf://datasets/(?P<id>[^@]+)@(?P<revision>[0-9a-f]{40})/")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def describe_data(data: Any, source: str) -> dict[str, Any]:
    """Facts about a data set, for the record.

    Args:
        data: a `datasets.Dataset`, a torch dataset, a DataLoader, a dict of data sets, or anything else.
        source (`str`): what it is in the run, in words.

    Returns:
        `dict`: `source`; and where they are known the Hub's `dataset` (id), its `config` and `revision`, the `split`, and
        `num_examples`. Of several data sets only what all have in common, and the sum of the examples.

    Example:
        >>> describe_data([{"input_ids": [1]}] * 3, "training set")
        {'source': 'training set', 'num_examples': 3}
    """
    if isinstance(data, Mapping) and data and all(hasattr(part, "__getitem__") for part in data.values()):
        parts = [describe_data(part, source) for part in data.values()]
        shared = {key: value for key, value in parts[0].items() if all(part.get(key) == value for part in parts)}
        shared.pop("num_examples", None)
        counts = [part.get("num_examples") for part in parts]
        return {**shared, **({} if None in counts else {"num_examples": sum(map(int, filter(None, counts)))})}
    data = data.dataset if isinstance(data, DataLoader) else data
    facts: dict[str, Any] = {"source": source, **_origin(data)}
    with suppress(TypeError):  # a stream has no length
        facts["num_examples"] = len(data)
    return facts


def describe_sample(data: Any, loader: Any, source: str) -> dict[str, Any]:
    """Facts about a calibration sample, for the record.

    Args:
        data: that it was drawn from; see `describe_data`.
        loader: what `calibration_loader` made of it.
        source (`str`): what it is in the run, in words.

    Returns:
        `dict`: as of `describe_data`, but `num_examples` is the sample's, and missing for batches that the user made.
    """
    facts = describe_data(data, source)
    facts.pop("num_examples", None)
    return facts | ({"num_examples": len(cast(Any, loader.dataset))} if isinstance(loader, DataLoader) else {})


def has_one_label_each(data: Any) -> bool:
    """Whether each example has one class as its label, judged by the columns' types, or by the first example.

    Example:
        >>> has_one_label_each([{"label": 1}]), has_one_label_each([{"labels": [0, 1, 1]}]), has_one_label_each([])
        (True, False, False)
    """
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or not len(data):
        return False
    example = data[0]
    if not isinstance(example, Mapping):
        return False
    label: Any = next((example[name] for name in _LABELS if name in example), None)
    if hasattr(label, "ndim") and hasattr(label, "item"):
        label = label.item() if label.ndim == 0 else None
    return isinstance(label, int) and not isinstance(label, bool)


def _origin(data: Any) -> dict[str, Any]:
    """What `datasets` knows: the split's name, and the data set on the Hub that the rows were read from."""
    while not hasattr(data, "info") and hasattr(data, "dataset"):  # torch's Subset, and wrappers like it
        data = data.dataset
    info = getattr(data, "info", None)
    if info is None or not hasattr(data, "split"):
        return {}
    facts: dict[str, Any] = {}
    if (found := _hub_id(data)) is not None:
        name, revision = found
        config = getattr(info, "config_name", None)
        facts = {"dataset": name, **({"config": str(config)} if config else {}), "revision": revision}
    return {**facts, **({} if data.split is None else {"split": str(data.split)})}


def _hub_id(data: Any) -> tuple[str, str] | None:
    """Id and commit of the one data set on the Hub that all rows come from, if that can be known for sure."""
    # some versions of `datasets` keep the addresses of the files that were read
    addresses = [_HUB_FILE.match(str(key)) for key in getattr(data.info, "download_checksums", None) or {}]
    found = {(match["id"], match["revision"]) for match in addresses if match}
    if addresses:
        return found.pop() if all(addresses) and len(found) == 1 else None
    # others keep the rows in NAMESPACE___NAME/CONFIG/VERSION/COMMIT, with NAME in small letters
    folders = {Path(str(file["filename"])).parent for file in getattr(data, "cache_files", None) or []}
    found = {hub for folder in folders if (hub := _cached_id(folder)) is not None}
    return found.pop() if len(found) == 1 else None


def _cached_id(folder: Path) -> tuple[str, str] | None:
    parts = folder.parts
    if len(parts) < 4 or "___" not in parts[-4] or not _COMMIT.fullmatch(parts[-1]):
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    namespace, _, name = parts[-4].partition("___")
    # the Hub's own cache has the name as it is written
    spelled = {
        cached.parent.parent.name.removeprefix("datasets--").replace("--", "/", 1)
        for cached in Path(HF_HUB_CACHE).glob(f"datasets--{namespace}--*/snapshots/{parts[-1]}")
    }
    return (spelled.pop(), parts[-1]) if len(spelled) == 1 and name else None
