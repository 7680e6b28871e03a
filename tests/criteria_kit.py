"""Criteria of the tests: one by weights, one by a loss, one by a metric; each counts how often it was asked."""

from __future__ import annotations

import torch

from hf_mpruner.criteria import Criterion, LayerScores, register_criterion


class Asked(Criterion):
    """Counts what it was asked for."""

    def __init__(self):
        self.asked = []

    def note(self, inputs):
        self.asked.append({stack.path: (stack.depth, inputs.num_removed[stack.path]) for stack in inputs.stacks})


@register_criterion
class ByWeights(Asked):
    """The sum of a layer's absolute weights: training changes it."""

    name, title = "by_weights", "sum of absolute weights"

    def score(self, inputs):
        self.note(inputs)
        return {
            stack.path: [
                sum(p.detach().abs().sum() for p in block.parameters()).item() for block in inputs.blocks(stack)
            ]
            for stack in inputs.stacks
        }


@register_criterion
class Greedy(Asked):
    """Removes from the end, as a greedy criterion says it, with the loss of one pass over the data as its detail."""

    name, title = "from_the_end", "from the end"
    needs = frozenset({"data", "loss"})

    def score(self, inputs):
        self.note(inputs)
        loss, scores = inputs.mean_loss(), {}
        for stack in inputs.stacks:
            number = inputs.num_removed[stack.path]
            order = tuple(layer for layer in reversed(range(stack.depth)) if layer in stack.prunable)[:number]
            values = tuple(1.0 if layer in order else 2.0 for layer in range(stack.depth))
            scores[stack.path] = LayerScores(stack.path, values, order, details={"loss": loss, "number": {1: number}})
        return scores


@register_criterion
class ByMetric(Asked):
    """The metric with each layer's weights set to zero."""

    name, title = "by_metric", "metric without each layer"
    needs = frozenset({"metric"})

    def __init__(self):
        super().__init__()
        self.values = []

    def score(self, inputs):
        self.note(inputs)
        scores = {}
        for stack in inputs.stacks:
            scores[stack.path] = []
            for block in inputs.blocks(stack):
                kept = [p.detach().clone() for p in block.parameters()]
                with torch.no_grad():
                    for p in block.parameters():
                        p.zero_()
                    self.values.append(inputs.evaluate())
                    for p, old in zip(block.parameters(), kept, strict=True):
                        p.copy_(old)
                scores[stack.path].append(-self.values[-1])
        return scores


@register_criterion
class ByGradients(Criterion):
    """The size of the gradients."""

    name, title = "by_gradients", "gradients"
    needs = frozenset({"data", "loss", "gradients"})

    def score(self, inputs):
        for batch in inputs.each_batch():
            inputs.loss(batch).backward()
        scores = {
            stack.path: [sum(p.grad.abs().sum() for p in block.parameters()).item() for block in inputs.blocks(stack)]
            for stack in inputs.stacks
        }
        inputs.model.zero_grad()
        return scores


@register_criterion
class Merging(Criterion):
    """The last layers go, and the last that stays takes half of each."""

    name, title = "merging", "merging"

    def score(self, inputs):
        return {stack.path: [float(stack.depth - layer) for layer in range(stack.depth)] for stack in inputs.stacks}

    def merges(self, scores, stack, removed):
        last = min(removed) - 1
        return {last: {last: 0.5, **{layer: 0.5 / len(removed) for layer in removed}}}
