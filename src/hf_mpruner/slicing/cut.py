"""`slice_checkpoint`: a smaller checkpoint is written from a larger one, without a model's weights in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoConfig

from hf_mpruner.architectures import parameters_after
from hf_mpruner.errors import CheckpointError, MPrunerError
from hf_mpruner.storage import check_output_dir, new_folder
from hf_mpruner.verify.saved import quietly

from .beside import copy_beside, find_generation_config
from .checkpoint import Checkpoint, open_checkpoint
from .labels import DTYPES, LabelledTensor
from .room import check_apart
from .trace import NotByNamesError, Recipe, TracedModel, cut_shape, trace
from .write import write_tensors_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from hf_mpruner.plan import PruningPlan

_CHUNK = 16 * 2**20


@dataclass(frozen=True)
class SlicedCheckpoint:
    """A smaller checkpoint that was written.

    Args:
        folder (`Path`): where it is.
        parameters (`int`): of its model, shared ones once.
        parameters_before (`int`): of the model that was cut.
        commit (`str`, *optional*): of the source on the Hub.
        copied (`tuple[str, ...]`): files beside the weights that were taken over as they are.
        unknown (`tuple[str, ...]`): tensors of the source that its model has no place for, so that loading ignores them;
            they are left out.
    """

    folder: Path
    parameters: int
    parameters_before: int
    commit: str | None = None
    copied: tuple[str, ...] = ()
    unknown: tuple[str, ...] = field(default=(), repr=False)


class Slicing:
    """A checkpoint that is cut: opened, then cut by a plan, then written. See `slice_checkpoint`.

    Args:
        source (`str` or path): folder or Hub id.
        revision, token: of the Hub.
        model_class (`type`, *optional*): that the checkpoint was saved from; by default the one that its config names.

    Attributes:
        model (`PreTrainedModel`): without weights; after `cut`, the smaller one.
        checkpoint (`Checkpoint`): what is read.

    Raises:
        CheckpointError: see `slice_checkpoint`.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        model_class: type[PreTrainedModel] | None = None,
    ) -> None:
        self.checkpoint = open_checkpoint(os.fspath(source), revision=revision, token=token)
        if "adapter_config.json" in self.checkpoint.folder_files:
            raise CheckpointError(
                f"'{source}' holds adapters: merge them into their base first, with "
                "model.merge_and_unload().save_pretrained(...)."
            )
        if "config.json" not in self.checkpoint.folder_files:
            raise CheckpointError(f"'{source}' has no config.json. Pass what model.save_pretrained wrote.")
        place: dict[str, Any] = {"revision": self.checkpoint.commit or "main", "token": token}
        with quietly():
            if model_class is None:
                auto = AutoConfig.from_pretrained(os.fspath(source), trust_remote_code=False, **place)
                model_class = find_class(auto, os.fspath(source))
            # from_pretrained reads a config of the class's own, which may be of another type than the Auto class finds
            own: Any = model_class.config_class or AutoConfig
            config = own.from_pretrained(os.fspath(source), **place)
            generation_config = find_generation_config(self.checkpoint)
        self.model_class = model_class
        self._traced = self._by_names(
            lambda: trace(
                self.checkpoint.tensors,
                config,
                self.model_class,
                generation_config=generation_config,
                equal=lambda name, other: equal_values(self.checkpoint, name, other),
            )
        )
        self.model = self._traced.model
        self.recipe: Recipe | None = None

    def cut(self, plan: PruningPlan) -> Recipe:
        """Apply the plan to `model`, and find what the smaller checkpoint is made from."""
        self.recipe = self._by_names(lambda: self._traced.cut(plan))
        return self.recipe

    @property
    def unknown(self) -> tuple[str, ...]:
        """Tensors of the source that the model has no place for: loading ignores them, and they are left out."""
        return self._traced.unknown

    def write(self, folder: Path, *, max_shard_size: int | str = "50GB", progress: bool | None = None) -> list[str]:
        """Write the smaller checkpoint into an empty folder, and compare what was written with the cut model.

        Returns:
            `list[str]`: files that were taken over as they are.
        """
        recipe = self.recipe
        if recipe is None:
            raise RuntimeError("Call cut(plan) first.")
        write_tensors_of(
            self.checkpoint,
            recipe.tensors,
            folder,
            max_shard_size,
            num_parameters=recipe.model.num_parameters(),
            storages=recipe.storages,
            progress=progress,
        )
        with quietly():
            self.model.config.save_pretrained(folder)
            if self.model.can_generate():
                self.model.generation_config.save_pretrained(folder)
        copied = copy_beside(self.checkpoint, folder)
        check_written(folder, self._traced, recipe, self.model_class)
        return copied

    def _by_names(self, find: Any) -> Any:
        try:
            return find()
        except NotByNamesError as error:
            source = self.checkpoint.source
            raise NotByNamesError(
                f"'{source}' cannot be cut on disk: {error}. Cut it in memory: hf-mpruner apply {source} --plan PLAN "
                "--output_dir DIR --in_memory, or load it and call apply_plan_ and save_pretrained."
            ) from error
        except CheckpointError as error:
            raise CheckpointError(f"'{self.checkpoint.source}': {error}") from error


def slice_checkpoint(
    source: str | os.PathLike[str],
    plan: PruningPlan,
    output_dir: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    max_shard_size: int | str = "50GB",
    overwrite: bool = False,
    progress: bool | None = None,
) -> SlicedCheckpoint:
    """Cut a checkpoint on disk as a plan says: no weights in memory, no more bytes read than are kept.

    The folder holds what `from_pretrained(source, dtype="auto")`, `apply_plan_` and `save_pretrained` would write: the same
    names, shapes, values, config and generation config; beside it `pruning_plan.json`, and tokenizer, processor and
    other files of the source as they are. One thing is kept that loading would change: weights that are stored in another
    type than the one they are loaded in stay as they are stored. Loaded from the new folder, they are cast as ever, so
    the model that is loaded has the bits of the one that would have been cut in memory.

    The cut is proved as `apply_plan_` proves it. Before the folder appears, the names, types and shapes that were
    written are read back and loaded, without values, into the class and config of the new folder: every parameter must
    be there, in the same shape and type, and made of the same stored tensors as in the cut model.

    Args:
        source (`str` or path): folder or Hub id of a checkpoint in safetensors or `pytorch_model.bin`, in one file or
            several. From the Hub, only files that hold a kept tensor are downloaded.
        plan (`PruningPlan`): made for this model.
        output_dir (path): new or empty, or (with `overwrite`) a folder that holds a model, which is replaced once the new
            one is whole.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        token (`str` or `bool`, *optional*): for the Hub; that of the login by default.
        max_shard_size (`int` or `str`): bytes of a file of weights at most.
        overwrite (`bool`): replace a model that is there.
        progress (`bool`, *optional*): whether to draw a bar; by default if stderr is a terminal.

    Returns:
        `SlicedCheckpoint`: where it is, and what it holds.

    Raises:
        CheckpointError: a file is missing or broken, the disk is too small, weights are missing, or names alone do not
            say what is written (merged layers, quantized weights, code of the model's own): the message says why and how
            to cut in memory.
        PlanMismatchError, UnsupportedArchitectureError: see `apply_plan_`.
        ValueError, FileExistsError, PermissionError: for an `output_dir` that must not be written. In all cases nothing is
            written.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertModel
        >>> from hf_mpruner import PruningPlan, find_block_stacks, slice_checkpoint
        >>> model = BertModel(BertConfig(num_hidden_layers=4, hidden_size=8, num_attention_heads=2, vocab_size=9))
        >>> plan = PruningPlan.from_kept({"encoder.layer": [0, 3]}, find_block_stacks(model))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(f"{folder}/whole")
        ...     _ = slice_checkpoint(f"{folder}/whole", plan, f"{folder}/smaller")
        ...     len(BertModel.from_pretrained(f"{folder}/smaller").encoder.layer)
        2
    """
    check_apart(os.fspath(source), os.fspath(output_dir))
    folder = check_output_dir(output_dir, source=source, overwrite=overwrite)
    slicing = Slicing(source, revision=revision, token=token)
    before, _ = parameters_after(slicing.model, {})
    slicing.cut(plan)
    after, _ = parameters_after(slicing.model, {})
    with new_folder(folder) as draft:
        copied = slicing.write(draft, max_shard_size=max_shard_size, progress=progress)
        plan.save_pretrained(draft)
    return SlicedCheckpoint(folder, after, before, slicing.checkpoint.commit, tuple(copied), slicing.unknown)


def find_class(config: PreTrainedConfig, source: str) -> type[PreTrainedModel]:
    """The class of transformers that a checkpoint was saved from.

    Raises:
        CheckpointError: if its config names none.
    """
    names = config.architectures or []
    found = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
    if found is None:
        raise CheckpointError(
            f"The config of '{source}' (model_type='{config.model_type}') names the class "
            f"{names[0] if names else 'of no model'}, which transformers {transformers.__version__} does not have. Load "
            "the model with its class, and call apply_plan_ and save_pretrained."
        )
    return found


def equal_values(checkpoint: Checkpoint, name: str, other: str) -> bool:
    """Whether two stored tensors of one type and shape have equal values, as `torch.equal` says; piece by piece."""
    dtype = DTYPES[checkpoint.tensors[name].dtype]
    places = []
    for tensor in (name, other):
        file, header = checkpoint.shard(checkpoint.shard_of[tensor])
        places.append((file, header.placed[tensor]))
    (file, one), (file_other, two) = places
    with file.open("rb") as stream, file_other.open("rb") as stream_other:
        stream.seek(one.start)
        stream_other.seek(two.start)
        left = one.length
        while left:
            pieces = [bytearray(here.read(min(_CHUNK, left))) for here in (stream, stream_other)]
            if not torch.equal(*(torch.frombuffer(piece, dtype=dtype) for piece in pieces)):
                return False
            left -= len(pieces[0])
    return True


def check_written(folder: Path, traced: TracedModel, recipe: Recipe, model_class: type[PreTrainedModel]) -> None:
    """Load what was written, without values, and compare with the cut model.

    Compared are, of the files: names, types and shapes of all tensors with the recipe. Of the model that they and the new
    config give: names, shapes and types of everything in its state dict, and which stored tensors each is made of.

    Raises:
        MPrunerError: for the first difference.
    """
    written = open_checkpoint(str(folder))
    expected = {
        name: (traced.stored[piece.source].dtype, cut_shape(traced.stored[piece.source], piece))
        for name, piece in recipe.tensors.items()
    }
    if {name: (tensor.dtype, tensor.shape) for name, tensor in written.tensors.items()} != expected:
        raise _defect("the files hold other tensors than were to be written")
    config: Any = model_class.config_class
    with quietly():
        loaded = trace(
            written.tensors,
            config.from_pretrained(folder),
            model_class,
            equal=lambda name, other: equal_values(written, name, other),
        )
    live, saved = (model.state_dict(keep_vars=True) for model in (recipe.model, loaded.model))
    if names := sorted(live.keys() ^ saved.keys()) + list(loaded.unknown):
        raise _defect(f"loaded back it has other names: {names[:3]}")
    for name, tensor in live.items():
        other = saved[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            raise _defect(f"loaded back, '{name}' has another shape or type")
        if not isinstance(tensor, LabelledTensor) or not isinstance(other, LabelledTensor):
            continue
        sources = {recipe.tensors[part].source for part in loaded.sources.names(other.number)}
        if sources != set(traced.sources.names(tensor.number)):
            raise _defect(f"loaded back, '{name}' is made of other tensors")


def _defect(what: str) -> MPrunerError:
    return MPrunerError(
        f"The checkpoint that was written is not that of the cut model: {what}. Nothing was kept of it. This is a defect: "
        "please report it with the model's config; until then, add --in_memory, or load the model and call apply_plan_."
    )
