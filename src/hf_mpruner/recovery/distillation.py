"""The loss of a student that learns from its uncut teacher (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


def divergence(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float,
    num_items_in_batch: Tensor | int | None = None,
    causal: bool = False,
) -> Tensor:
    """T^2 KL(teacher || student), normalised as the Trainer normalises its own loss.

    Args:
        student (`Tensor`): logits, (examples, classes) or (examples, tokens, classes).
        teacher (`Tensor`): logits of the same shape.
        labels (`Tensor`, *optional*): of tokens; those of -100 do not count. Labels of examples are not looked at.
        temperature (`float`): softens both distributions.
        num_items_in_batch (*optional*): divides the sum; by default the mean over what counts.
        causal (`bool`): whether a token's logits predict the next token's label.

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
    rows = kl_div(
        log_softmax(student.float() / temperature, -1),
        log_softmax(teacher.float() / temperature, -1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    counts = torch.ones_like(rows, dtype=torch.bool)
    if labels is not None and labels.shape == rows.shape and rows.dim() > 1:
        counts = labels != -100
    total = rows.masked_fill(~counts, 0.0).sum() * temperature**2
    return total / (counts.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
