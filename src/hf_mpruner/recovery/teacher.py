"""The model before the first cut, kept once on the disk: every process maps the same file, and a resumed run finds it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_mpruner.checkpoint import checksum
from hf_mpruner.errors import MPrunerError
from hf_mpruner.storage import new_folder
from hf_mpruner.verify.saved import attention_of, keep_configs, quietly

# The leading `_` keeps it out of what the Trainer uploads.
TEACHER_NAME = "_mpruner_teacher"


def save_teacher(model: PreTrainedModel, folder: Path, dtype: torch.dtype | None = None) -> str:
    """Write a model that will teach.

    Args:
        model (`PreTrainedModel`): left as it is.
        folder (`Path`): complete or absent; an older one is replaced.
        dtype (`torch.dtype`, *optional*): of the saved floating-point weights; their own by default.

    Returns:
        `str`: a checksum over all files.

    Raises:
        MPrunerError: if it cannot be written, e.g. on a full disk; nothing is left behind.
    """
    state = model.state_dict()
    if dtype is not None:
        state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    try:
        with new_folder(folder) as draft, quietly(), keep_configs(model):
            model.save_pretrained(draft, state_dict=state)
    except (OSError, RuntimeError) as error:
        raise MPrunerError(
            f"The teacher cannot be written to '{folder}': {error}. Make room for the model's weights there, choose another "
            "output_dir, or train without distillation. The model and the optimizer are as they were."
        ) from error
    return _digest(folder)


def load_teacher(
    model: PreTrainedModel, folder: Path, digest: str | None, dtype: torch.dtype | None, device: torch.device
) -> PreTrainedModel:
    """Load what `save_teacher` wrote; on the CPU the weights stay in the file's pages, which processes share.

    Args:
        model (`PreTrainedModel`): of the same class, cut or not; how it computes attention is taken over.
        folder (`Path`): that `save_teacher` wrote.
        digest (`str`, *optional*): what it returned; compared.
        dtype (`torch.dtype`, *optional*): of the loaded weights; the model's own by default.
        device (`torch.device`): where it runs.

    Returns:
        `PreTrainedModel`: in eval mode, frozen.

    Raises:
        MPrunerError: if it is missing, damaged, or another model's.
    """
    if not folder.is_dir() or (digest is not None and _digest(folder) != digest):
        fault = "is not the one that this run began with" if folder.is_dir() else "is missing"
        raise MPrunerError(
            f"The teacher in '{folder}' {fault}. It is the model before the first cut, which the distillation needs, and "
            "lies in the output_dir that the run was started with, on every machine. Put it back, or begin anew."
        )
    kind: Any = type(model)
    own = next((param.dtype for param in model.parameters() if param.is_floating_point()), torch.float32)
    with quietly():
        teacher: PreTrainedModel = kind.from_pretrained(
            folder, dtype=dtype or own, attn_implementation=attention_of(model.config), local_files_only=True
        )
    return teacher.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]


def as_inputs(batch: dict[str, Any], teacher: PreTrainedModel) -> dict[str, Any]:
    """A student's batch in the data type of the teacher."""
    return {
        name: value.to(teacher.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in batch.items()
    }


def _digest(folder: Path) -> str:
    files = {file.relative_to(folder).as_posix(): checksum(file) for file in folder.rglob("*") if file.is_file()}
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
