"""Adapters of a cut model are saved with the base model that they belong to.

peft saves adapters only, and the name of the base model that they were trained on: the uncut one, which they do not fit
any more. So `save_pretrained` of a model with adapters gets a second part: the cut base goes into a folder inside the
one that is saved, and the saved adapter config names that folder. What lies on the disk needs no hf_mpruner to load.
"""

from __future__ import annotations

import functools
import inspect
import os
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from .architectures.adapters import (
    CUT_MARK,
    adapted_modules,
    adapter_configs,
    saves_adapters,
    unwrap_adapters,
    without_adapters,
)
from .errors import MPrunerError
from .storage import new_folder
from .verify.saved import keep_configs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FOLDER = "pruned_base"
"""Name of the folder of the base model, inside the folder that adapters are saved into."""


def save_with_base(whole: nn.Module) -> None:
    """From now on, saving adapters after a cut saves the cut base with them; may be called again.

    The base is written once for each cut. What is saved later is a hard link to the same files, where the file system
    has such, for as long as no bit of the base changes.

    Args:
        whole (`nn.Module`): what trains. In it `save_pretrained` is replaced on each of peft's wrappers and on each
            transformers model that was given adapters; everything else is left alone.
    """
    for model in whole.modules():
        if saves_adapters(model) and not getattr(vars(model).get("save_pretrained"), "with_base", False):
            vars(model)["save_pretrained"] = _wrapped(model)


def _wrapped(model: nn.Module) -> types.MethodType:
    original, writer = cast(Any, type(model)).save_pretrained, _Writer()

    @functools.wraps(original)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        inner = cast("PreTrainedModel", unwrap_adapters(self))
        given = inspect.signature(original).bind(self, save_directory, *args, **kwargs).arguments
        if CUT_MARK not in vars(inner) or not given.get("is_main_process", True):
            return original(self, save_directory, *args, **kwargs)
        if given.get("path_initial_model_for_weight_conversion") is not None:
            raise MPrunerError(
                "path_initial_model_for_weight_conversion turns adapters into ones for the weights that a model was loaded with, "
                "but the pruned base that is saved with them has the change that they began with. Leave it out: what is saved "
                "loads as it is."
            )
        with _named(inner, writer.write(inner, Path(save_directory))):
            return original(self, save_directory, *args, **kwargs)

    cast(Any, save_pretrained).with_base = True
    return types.MethodType(save_pretrained, model)  # bound, so that a copy of the model saves itself


@contextmanager
def _named(model: nn.Module, base: Path) -> Iterator[None]:
    """Let the adapter configs name a folder as their base, while they are saved."""
    before = [(config, config.base_model_name_or_path, config.revision) for config in adapter_configs(model).values()]
    for config, _, _ in before:
        # an absolute path: peft looks a relative one up in the folder that a process happens to run in
        config.base_model_name_or_path, config.revision = str(base.absolute()), None
    try:
        yield
    finally:
        for config, name, revision in before:
            config.base_model_name_or_path, config.revision = name, revision


class _Writer:
    """Writes a base model, or links to where it has been written already."""

    def __init__(self) -> None:
        self._written: Path | None = None
        self._stamp: Any = None

    def write(self, model: PreTrainedModel, folder: Path) -> Path:
        """Put the base of a model into a folder, whole or not at all.

        Raises:
            MPrunerError: if adapters are merged into the base weights.
        """
        if any(getattr(layer, "merged", False) for layer in adapted_modules(model).values()):
            raise MPrunerError(
                "The adapters are merged into the weights of the pruned base, which cannot be saved as it was before. Call "
                "model.unmerge_adapter() first, or save the merged model: model.merge_and_unload().save_pretrained(...)."
            )
        target, stamp = folder / FOLDER, _stamp(model)
        same = stamp == self._stamp and self._written is not None and self._written.is_dir()
        if same and self._written == target:
            return target
        with new_folder(target) as draft:  # files that other folders link to are never written into
            if not (same and self._written is not None and _link(self._written, draft)):
                with without_adapters(model), keep_configs(model):
                    type(model).save_pretrained(model, draft)
        self._written, self._stamp = target, stamp
        return target


def _stamp(model: PreTrainedModel) -> Any:
    """What is another one whenever the base is."""
    with without_adapters(model):
        tensors = model.state_dict(keep_vars=True)
        # no version counter sees what peft adds and takes away again when it merges and unmerges; a sum does
        marks = {name: (tensor.data_ptr(), tensor._version, _sum(tensor)) for name, tensor in tensors.items()}
        return marks, model.config.to_json_string(use_diff=False)


def _sum(tensor: Tensor) -> int:
    """Of all bits, eight bytes at a time: a tenth of a second for a gigabyte on a CPU.

    Example:
        >>> _sum(torch.arange(9.0)[1:]) == _sum(torch.arange(1.0, 9.0)) != _sum(torch.arange(8.0))
        True
    """
    octets = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    octets = octets.clone() if octets.storage_offset() % 8 else octets
    whole = len(octets) // 8 * 8
    return int(octets[:whole].view(torch.int64).sum()) + int(octets[whole:].sum())


def _link(source: Path, target: Path) -> bool:
    """The same files in an empty folder; `False`, and it is empty again, where the file system cannot do that."""
    try:
        for file in source.iterdir():
            os.link(file, target / file.name)
    except OSError:
        for file in target.iterdir():
            file.unlink()
        return False
    return True
