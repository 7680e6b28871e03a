"""`Store`: what a comparison keeps on disk, a file for each finished cell, so that none is computed twice."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_mpruner.errors import MPrunerError
from hf_mpruner.storage import runs_beside, write_json

SETTINGS, CELLS, WORK = "comparison_settings.json", "cells", ".work"
FORMAT = 1


class Store:
    """The folder of a comparison.

    Args:
        folder (`Path`): `output_dir`.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self.folder = folder

    def open(self, settings: Mapping[str, Any]) -> None:
        """Begin a comparison, or go on with the one that is here.

        Args:
            settings (`Mapping`): all that a cell depends on and its name does not say, as plain values.

        Raises:
            MPrunerError: if the folder holds a comparison with other settings; says what differs.
        """
        wanted = json.loads(json.dumps({"format": FORMAT, **settings}))
        file = self.folder / SETTINGS
        if file.is_file():
            self._check(file, wanted)
        elif (self.folder / CELLS).exists():
            raise MPrunerError(
                f"output_dir='{self.folder}' holds '{CELLS}', but no {SETTINGS} that says what they are of. Pass a new folder."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if not file.is_file():  # before the folder of cells: they are nothing without it
            write_json(file, wanted)
        (self.folder / CELLS).mkdir(exist_ok=True)
        # what a killed run has left; another one may be at work beside this one, on other seeds or criteria
        drafts = [*self.folder.glob(f".{SETTINGS}.*.tmp"), *self.folder.glob(".comparison.json.*.tmp")]
        for stray in [*self.folder.glob(f"{WORK}-*"), *drafts, *(self.folder / CELLS).glob(".*.tmp")]:
            number = re.search(r"(\d+)(\.tmp)?$", stray.name)
            if number is None or not runs_beside(int(number[1])):
                shutil.rmtree(stray, ignore_errors=True) if stray.is_dir() else stray.unlink(missing_ok=True)

    def _check(self, file: Path, wanted: dict[str, Any]) -> None:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise MPrunerError(f"'{file}' is no JSON ({error}). Pass another output_dir.") from error
        told = ", ".join(_differences(found, wanted))
        if told:
            raise MPrunerError(
                f"output_dir='{self.folder}' holds a comparison with other settings: {told}. Its cells cannot stand beside "
                "new ones. Pass another output_dir, or the same settings again; only criteria, num_layers and seeds may be "
                "others."
            )

    def read(self, name: str, **stamp: Any) -> dict[str, Any] | None:
        """A finished cell; `None` if there is none, or it was computed from something else.

        Args:
            name (`str`): its file, without the ending.
            stamp: plain values that the cell must have been written with.
        """
        file = self.folder / CELLS / f"{name}.json"
        try:
            cell: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return cell if all(cell.get(key) == json.loads(json.dumps(value)) for key, value in stamp.items()) else None

    def write(self, name: str, cell: Mapping[str, Any]) -> dict[str, Any]:
        """Finish a cell; returns it as it will be read."""
        write_json(self.folder / CELLS / f"{name}.json", cell)
        plain: dict[str, Any] = json.loads(json.dumps(cell))
        return plain

    @contextmanager
    def work(self) -> Iterator[Path]:
        """An empty folder for what a cell needs while it is computed."""
        folder = self.folder / f"{WORK}-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def name_of(*parts: object) -> str:
    """Parts as a file's name; what no name may have is replaced, and a digest keeps such names apart.

    Example:
        >>> name_of("score", "cka", "seed0")
        'score-cka-seed0'
    """
    text = "-".join(map(str, parts))
    plain = re.sub(r"[^\w.-]", "_", text)
    return plain if plain == text else f"{plain}-{digest_of(text)}"


def digest_of(values: Any) -> str:
    """A short digest of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _differences(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*found, *(key for key in wanted if key not in found)]:
            yield from _differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif found != wanted:
        yield f"{name}={found!r} (now {wanted!r})"
