"""The loss of a student that learns from its uncut teacher (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div, log_softmax, logsigmoid

from hf_mpruner.features.rows import fit_mask, hidden_states

Kind = Literal["categorical", "bernoulli", "gaussian"]


def divergence(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float,
    num_items_in_batch: Tensor | int | None = None,
    causal: bool = False,
    kind: Kind = "categorical",
) -> Tensor:
    """T^2 KL(teacher || student), normalised as the Trainer normalises its own loss.

    Args:
        student (`Tensor`): logits, (examples, classes) or (examples, tokens, classes).
        teacher (`Tensor`): logits of the same shape.
        labels (`Tensor`, *optional*): of tokens; those of -100 do not count. Labels of examples are not looked at.
        temperature (`float`): softens both distributions.
        num_items_in_batch (*optional*): divides the sum; by default the mean over what counts.
        causal (`bool`): whether a token's logits predict the next token's label.
        kind: `"categorical"`; `"bernoulli"` for labels that are true or false each, averaged over them; `"gaussian"` for
            numbers, which gives their mean squared difference.

    Returns:
        `Tensor`: one number, 0 if nothing counts.

    Raises:
        ValueError: if the logits differ in shape.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"The student's logits have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}: pass the "
            "outputs of both on the same batch."
        )
    if causal:
        student, teacher = student[:, :-1], teacher[:, :-1]
        labels = None if labels is None else labels[:, 1:]
    rows = _rows(student.float(), teacher.float(), temperature, kind)
    counts = torch.ones_like(rows, dtype=torch.bool)
    if labels is not None and labels.shape == rows.shape and rows.dim() > 1:
        counts = labels != -100
    total = rows.masked_fill(~counts, 0.0).sum()
    return total / (counts.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


def _rows(student: Tensor, teacher: Tensor, temperature: float, kind: Kind) -> Tensor:
    if kind == "gaussian":
        return (student - teacher).square().mean(-1)
    student, teacher = student / temperature, teacher / temperature
    if kind == "bernoulli":
        given = teacher.sigmoid()
        entropy = -(given * logsigmoid(teacher) + (1 - given) * logsigmoid(-teacher))
        return (binary_cross_entropy_with_logits(student, given, reduction="none") - entropy).mean(-1) * temperature**2
    rows = kl_div(log_softmax(student, -1), log_softmax(teacher, -1), reduction="none", log_target=True)
    return rows.sum(-1) * temperature**2


def kind_of(problem_type: str | None, logits: Tensor, labels: Tensor | None) -> Kind:
    """What logits mean, as transformers decides it for its own losses.

    Args:
        problem_type (`str`, *optional*): the model config's.
        logits (`Tensor`): (..., classes).
        labels (`Tensor`, *optional*): as the model was given them.

    Returns:
        what `divergence` takes.

    Example:
        >>> kind_of(None, torch.zeros(4, 1), None)
        'gaussian'
    """
    if problem_type == "regression" or (problem_type is None and logits.shape[-1] == 1):
        return "gaussian"
    several = labels is not None and labels.is_floating_point() and labels.shape == logits.shape
    return "bernoulli" if problem_type == "multi_label_classification" or several else "categorical"


@contextmanager
def recorded(blocks: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """The hidden states that blocks put out in the forward passes inside, by the names given.

    Args:
        blocks (`Mapping[str, nn.Module]`): by any name.
    """
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: object, output: object) -> None:
            found[name] = hidden_states(output, name)

        return record

    handles = [block.register_forward_hook(hook(name)) for name, block in blocks.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def hidden_difference(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], masks: Mapping[str, Tensor | None]
) -> Tensor:
    """Mean squared difference of hidden states over real positions and features, averaged over the layers.

    Args:
        student (`Mapping[str, Tensor]`): (batch, positions, features) or (batch, channels, height, width), by layer.
        teacher (`Mapping[str, Tensor]`): of the same shapes.
        masks (`Mapping[str, Tensor]`): by layer, where a position is real, (batch, positions); `None` if all are.

    Returns:
        `Tensor`: one number.
    """
    parts = []
    for name, mine in student.items():
        square = (mine.float() - teacher[name].float()).square()
        mask = masks.get(name)
        if mask is None or square.dim() != 3:
            parts.append(square.mean())
            continue
        real = fit_mask(mask, (square.shape[0], square.shape[1]), name).to(square.device)
        parts.append(square.mean(-1).masked_fill(~real, 0.0).sum() / real.sum().clamp(min=1))
    return torch.stack(parts).mean()
