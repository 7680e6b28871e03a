"""Which stored tensor becomes which: found by letting transformers load, cut and save a model without weights.

Every tensor of the checkpoint is an empty one that knows its name (`labels.py`). transformers loads them as it loads
weights: with its renamings, prefixes, tied weights, and with the experts of a layer put into one tensor. Then the plan
is applied, with its proof, and transformers saves; what it would write is looked at instead of written. A tensor that
was only handed on is the stored one. One that was computed (experts that are taken apart again) is looked for among
those that saving the uncut model gives: the same computation from the same tensors has the same values, and the uncut
model is saved as it was stored.
"""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from hf_mpruner.errors import CheckpointError
from hf_mpruner.runtime import keep_rng_state
from hf_mpruner.surgery import ModelEdit, apply_plan_
from hf_mpruner.verify.saved import quietly

from .labels import DTYPES, LabelledTensor, Sources
from .recipe import Piece, StoredTensor

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

    from hf_mpruner.plan import PruningPlan

_PATCHING = threading.Lock()
Equal = Callable[[str, str], bool]


class NotByNamesError(CheckpointError):
    """Names alone do not say what the smaller checkpoint holds; with the weights in memory it can be made."""


@dataclass(frozen=True)
class Recipe:
    """What the smaller checkpoint holds.

    Args:
        tensors (`dict[str, Piece]`): name in the smaller checkpoint -> where it comes from, in the order of saving.
        model (`PreTrainedModel`): cut, with its config and generation config; its weights are on the meta device.
        storages (`dict[str, int]`): for tensors that are saved as views of one, a number that they have in common.
    """

    tensors: dict[str, Piece]
    model: PreTrainedModel
    storages: dict[str, int]


@dataclass
class TracedModel:
    """A model that was loaded from labelled empty tensors.

    Args:
        model (`PreTrainedModel`): weights on the meta device; buffers that no checkpoint holds are real.
        stored (`Mapping[str, StoredTensor]`): the checkpoint.
        sources (`Sources`): what the tensors are made of.
        unknown (`tuple[str, ...]`): names of stored tensors that the model has no place for.
    """

    model: PreTrainedModel
    stored: Mapping[str, StoredTensor]
    sources: Sources
    unknown: tuple[str, ...] = ()
    _saved: dict[int, str] = field(default_factory=dict)

    def cut(self, plan: PruningPlan) -> Recipe:
        """Apply a plan to the model, once, and find where the tensors of the smaller checkpoint come from.

        Raises:
            NotByNamesError: if that cannot be said without the weights.
            PlanMismatchError, UnsupportedArchitectureError: see `apply_plan_`.
        """
        if plan.merged:
            raise NotByNamesError("the plan merges layers, so that weights become sums of weights")
        if any(self.sources.name(tensor.number) is None for tensor in _tensors(self.model)):
            self._saved = {
                tensor.number: name for name, tensor in self._save().items() if self._is_stored(name, tensor)
            }
        before = {id(parameter): _number(parameter) for parameter in self.model.parameters()}
        edit = apply_plan_(self.model, plan)
        trimmed = dict(self._trimmed(edit, before))
        saved = self._save()
        return Recipe(
            {name: self._piece(name, tensor, trimmed) for name, tensor in saved.items()},
            self.model,
            _shared_storages(saved),
        )

    def _trimmed(self, edit: ModelEdit, before: Mapping[int, int | None]) -> Iterator[tuple[int, Piece]]:
        """Tensors with room for every layer: what stays of them, as entries along an axis."""
        for parameter, part in edit.trimmed_parameters.items():
            number, old = _number(parameter), before[id(parameter)]
            name = None if old is None else self.sources.name(old)
            if number is not None and name is not None:
                room = self.stored[name].shape[part.axis] // part.cut.depth
                kept = (layer * room + entry for layer in part.cut.kept for entry in range(room))
                yield number, Piece(name, part.axis, tuple(kept))

    def _save(self) -> dict[str, LabelledTensor]:
        """What `save_pretrained` would write now."""
        found = saved_tensors(self.model)
        if strange := [name for name, tensor in found.items() if not isinstance(tensor, LabelledTensor)]:
            raise NotByNamesError(
                f"'{strange[0]}' is saved and not in the checkpoint: {type(self.model).__name__} computes it as it loads"
            )
        return found

    def _is_stored(self, name: str, tensor: LabelledTensor) -> bool:
        """Whether saving the uncut model gives back a tensor under its name, in its shape, made of itself."""
        stored = self.stored.get(name)
        return stored is not None and tensor.shape == stored.shape and name in self.sources.names(tensor.number)

    def _piece(self, name: str, tensor: LabelledTensor, trimmed: Mapping[int, Piece]) -> Piece:
        number = tensor.number
        piece = trimmed.get(number)
        source = self.sources.name(number) or self._saved.get(number)
        if piece is None and source is not None:
            piece = Piece(source)
        if piece is None:
            made_of = sorted(self.sources.names(number))
            if not made_of:
                raise NotByNamesError(
                    f"loading it into {type(self.model).__name__} writes to '{name}', so that it is not what is stored"
                )
            raise NotByNamesError(
                f"'{name}' is computed from {quoted(made_of)}, and no stored tensor is known to be the same"
            )
        if tuple(tensor.shape) != cut_shape(self.stored[piece.source], piece):
            raise NotByNamesError(
                f"'{name}' has shape {tuple(tensor.shape)} and is stored as {self.stored[piece.source].shape}"
            )
        return piece


def cut_shape(tensor: StoredTensor, piece: Piece) -> tuple[int, ...]:
    """Shape of a piece of a stored tensor.

    Example:
        >>> cut_shape(StoredTensor("a", "F32", (4, 3)), Piece("a", 0, (1, 2)))
        (2, 3)
    """
    if piece.axis is None or piece.indices is None:
        return tensor.shape
    return (*tensor.shape[: piece.axis], len(piece.indices), *tensor.shape[piece.axis + 1 :])


def trace(
    stored: Mapping[str, StoredTensor],
    config: PreTrainedConfig,
    model_class: type[PreTrainedModel],
    *,
    generation_config: GenerationConfig | None = None,
    equal: Equal | None = None,
) -> TracedModel:
    """Load a model from a checkpoint's names, types and shapes, as `from_pretrained(..., dtype="auto")` would.

    Where the loaded type is another than the stored one, the smaller checkpoint keeps the stored bytes; loaded, it
    gives the same bits as the model that was loaded, cut and kept in memory.

    Args:
        stored (`Mapping[str, StoredTensor]`): all tensors of the checkpoint.
        config (`PreTrainedConfig`): of the checkpoint; copied.
        model_class (`type[PreTrainedModel]`): that the checkpoint was saved from.
        generation_config (`GenerationConfig`, *optional*): that lies beside it.
        equal (callable, *optional*): `equal(name, other)` compares the values of two stored tensors. Asked where a
            checkpoint holds both of two tensors that are one in the model: transformers looks at the values then, too.

    Raises:
        CheckpointError: if the checkpoint lacks weights, or has some of another shape.
        NotByNamesError: if it cannot be loaded by names alone.
    """
    check_names_suffice(stored, config, model_class)
    traced = _load(stored, config, model_class)
    twice = {_check_equal(traced, target, source, equal) for target, source in _stored_twice(traced)}
    if twice:  # transformers ties them, and saves one: which, it decides as if only one had been stored
        traced = _load({name: tensor for name, tensor in stored.items() if name not in twice}, config, model_class)
        traced.stored = stored
    if generation_config is not None and traced.model.can_generate():
        traced.model.generation_config = generation_config
    return traced


def check_names_suffice(
    stored: Mapping[str, StoredTensor], config: PreTrainedConfig, model_class: type[PreTrainedModel]
) -> None:
    """Refuse what was never compared with the way over the memory.

    Raises:
        NotByNamesError: for quantized weights, code of the model's own, types that torch has no name for.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise NotByNamesError("its weights are quantized, and what loading makes of them is not known from names")
    if getattr(config, "auto_map", None):
        raise NotByNamesError(
            "it brings Python code of its own, which may load and save in its own way (if you trust it, add "
            "--trust_remote_code as well)"
        )
    if getattr(model_class, "is_remote_code", lambda: False)():
        raise NotByNamesError("its class is Python code of its own, which may load and save in its own way")
    if getattr(type(config), "extra_files", ()) or getattr(config, "transformers_weights", None):
        raise NotByNamesError("its config names files of weights of its own")
    if strange := [tensor for tensor in stored.values() if tensor.dtype not in DTYPES]:
        raise NotByNamesError(f"'{strange[0].name}' is stored as {strange[0].dtype}, a type that is not known here")
    floats = {tensor.dtype for tensor in stored.values() if DTYPES[tensor.dtype].is_floating_point}
    if getattr(config, "dtype", None) is None and len(floats) > 1:
        raise NotByNamesError(
            f"its weights are stored as {quoted(sorted(floats))}, and its config does not say which type it has"
        )


def _load(
    stored: Mapping[str, StoredTensor], config: PreTrainedConfig, model_class: type[PreTrainedModel]
) -> TracedModel:
    sources = Sources()
    labelled = {name: LabelledTensor.of(tensor, sources) for name, tensor in stored.items()}
    load: Any = model_class.from_pretrained
    try:
        with quietly(), keep_rng_state():
            model, info = load(
                None,
                config=config,
                state_dict=labelled,
                dtype="auto",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # whatever the loader and the model's own code raise
        text = " ".join(str(error).split())[:300]
        raise NotByNamesError(f"it cannot be loaded without weights: {type(error).__name__}: {text}") from error
    kind = model_class.__name__
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"it has no weights for {len(missing)} parameters of {kind} ({missing[0]} ...), which would be random. Pass "
            "the whole model, as save_pretrained wrote it."
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise CheckpointError(
            f"'{name}' of {kind} has shape {tuple(found)} in the checkpoint and {tuple(expected)} by the config: the "
            "weights and config.json do not belong together."
        )
    used = frozenset().union(*(sources.names(tensor.number) for tensor in _tensors(model)))
    model.config.name_or_path = config.name_or_path
    return TracedModel(model, stored, sources, tuple(sorted(stored.keys() - used)))


def _stored_twice(traced: TracedModel) -> Iterator[tuple[str, str]]:
    """Pairs of parameters that are one by the config, and that the checkpoint holds both."""
    model = traced.model
    for target, source in dict(getattr(model, "all_tied_weights_keys", {})).items():
        one, other = model.get_parameter_or_buffer(target), model.get_parameter_or_buffer(source)
        if one is not other and isinstance(one, LabelledTensor) and isinstance(other, LabelledTensor):
            yield target, source


def _check_equal(traced: TracedModel, target: str, source: str, equal: Equal | None) -> str:
    """The stored name of the first of two parameters that are one by the config, and have equal values."""
    one, other = (traced.stored[_stored_name(traced, name)] for name in (target, source))
    loaded = traced.model.get_parameter_or_buffer(target).dtype
    if equal is None or one.dtype != other.dtype:
        raise NotByNamesError(
            f"'{one.name}' and '{other.name}' are one tensor by the config and both stored, and whether their values are "
            "equal is not known"
        )
    if equal(one.name, other.name):
        return one.name
    rounded = "" if loaded == DTYPES[one.dtype] else f", at least before they are rounded to {loaded}"
    raise CheckpointError(
        f"'{one.name}' and '{other.name}' are one tensor by the config, but both are stored and differ{rounded}. If two "
        'are meant, write "tie_word_embeddings": false into config.json; if one is, save the model again with '
        "save_pretrained."
    )


def _stored_name(traced: TracedModel, parameter: str) -> str:
    number = _number(traced.model.get_parameter_or_buffer(parameter))
    name = None if number is None else traced.sources.name(number)
    if name is None:
        raise NotByNamesError(f"'{parameter}' is tied to another parameter and computed from several stored tensors")
    return name


def saved_tensors(model: PreTrainedModel) -> dict[str, Any]:
    """What `save_pretrained` would write as weights: names and tensors; nothing is written.

    transformers decides which names are left out, which of tied ones stay, and how loading is reverted; its own code is
    run, and its last step, writing a file into a folder that is ours, keeps the tensors instead.

    Raises:
        NotByNamesError: if this version of transformers writes in another way.
    """
    from transformers import modeling_utils

    kept: dict[str, Any] = {}
    write = getattr(modeling_utils, "safe_save_file", None)
    if write is None:
        raise NotByNamesError(
            f"transformers {transformers.__version__} writes weights in a way that is not known here"
        )
    with tempfile.TemporaryDirectory() as folder, _PATCHING, quietly():

        def keep(tensors: dict[str, Any], filename: Any, *args: Any, **kwargs: Any) -> None:
            if Path(filename).parent == Path(folder):
                kept.update(tensors)
            else:  # another thread saves a model
                write(tensors, filename, *args, **kwargs)

        modeling_utils.safe_save_file = keep  # type: ignore[attr-defined]
        try:
            model.save_pretrained(folder, max_shard_size=1 << 62)
        finally:
            modeling_utils.safe_save_file = write  # type: ignore[attr-defined]
    return kept


def _shared_storages(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """By name, for tensors that are views of one: `save_pretrained` keeps those in one file."""
    with torch._C.DisableTorchFunctionSubclass():
        storages = {name: tensor.untyped_storage()._cdata for name, tensor in tensors.items()}
    often = Counter(storages.values())
    return {name: storage for name, storage in storages.items() if often[storage] > 1}


def _tensors(model: nn.Module) -> Iterable[LabelledTensor]:
    return [tensor for tensor in model.state_dict(keep_vars=True).values() if isinstance(tensor, LabelledTensor)]


def _number(tensor: torch.Tensor) -> int | None:
    return tensor.number if isinstance(tensor, LabelledTensor) else None


def quoted(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
