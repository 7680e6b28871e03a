"""`Looks`: a measurement that ends once the clusters are settled, on all processes at the same batch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler

from hf_mpruner.clusters import compared_pairs, find_clusters
from hf_mpruner.features.recorder import StackRecorder
from hf_mpruner.intervals import student_t_quantile
from hf_mpruner.runtime import Runtime
from hf_mpruner.sequential import SequentialStop
from hf_mpruner.similarity import MIN_GROUPS, Sampling, SimilarityAccumulator, SimilarityMatrix
from hf_mpruner.similarity.sampling import Ending

logger = logging.getLogger(__name__)

# Level of the test that the first half of the batches is like the second: a false alarm costs the early stop alone.
_DRIFT_RATE = 0.01
_ROUNDING = 1e-6


class Looks:
    """Looks at the sums of all processes after ever more batches.

    The processes speak to each other at the marks of the rule, never between them.

    Args:
        rule (`SequentialStop`): what is to be settled, and how often to look.
        recorders (sequence of `StackRecorder`): of all stacks that are measured.
        runtime (`Runtime`): the processes.
        loader (`Iterable[Mapping]`): of the batches, all of them.
    """

    def __init__(
        self,
        rule: SequentialStop,
        recorders: Sequence[StackRecorder],
        runtime: Runtime,
        loader: Iterable[Mapping[str, Any]],
    ) -> None:
        self.rule, self.recorders, self.runtime, self.loader = rule, recorders, runtime, loader
        if runtime.is_main_process:
            _warn_of_order(loader)
        self._marks = rule.marks(runtime.world_size)
        self._next = next(self._marks)
        self._kept: list[list[SimilarityAccumulator]] = []
        self._num_pairs = sum(recorder.depth - 1 for recorder in recorders)
        self._num_looks = 0
        self._open: dict[str, tuple[tuple[int, int], ...] | None] = {}
        self._drifts = self._settled = False

    def enough(self, num_batches: int) -> bool:
        """Whether nothing more has to be measured; every process asks after every batch.

        Args:
            num_batches (`int`): that all processes together have measured; a process may be behind between two marks.
        """
        if num_batches < self._next:
            return False
        self._next = next(self._marks)
        now = [recorder.so_far(self.runtime) for recorder in self.recorders]
        self._settled = self._look(now)
        self._kept.append(now)
        return self._settled

    def conclude(
        self, matrices: Mapping[str, SimilarityMatrix], max_samples: int | None
    ) -> dict[str, SimilarityMatrix]:
        """The matrices with how their measurement ended; the recorders hold the sums of all processes.

        Args:
            matrices (`Mapping[str, SimilarityMatrix]`): of the recorders, by stack path.
            max_samples (`int`, *optional*): examples after which the measurement would have ended in any case.
        """
        if not self._settled:
            self._settled = self._look([recorder.so_far() for recorder in self.recorders])
        rule, available = self.rule, _count_examples(self.loader, max_samples)
        found = {}
        for path, matrix in matrices.items():
            left = self._open.get(path)
            ending: Ending = "order" if self._drifts else "settled" if left == () else "all used"
            sampling = Sampling(rule.threshold, rule.linkage, rule.error_rate, ending, left or (), available)
            found[path] = replace(matrix, sampling=sampling)
        self._warn()
        return found

    def _look(self, now: list[SimilarityAccumulator]) -> bool:
        """Whether every comparison is settled by batches that are alike from the first to the last."""
        halves = [
            kept
            for kept in self._kept
            if all(2 * before.num_groups <= one.num_groups for before, one in zip(kept, now, strict=True))
        ]
        if self._drifts or not halves or any(one.num_groups < MIN_GROUPS for one in now):
            return False
        self._num_looks += 1
        for recorder, one in zip(self.recorders, now, strict=True):
            self._open[recorder.path] = self.rule.open_pairs(one.compute(), self._num_looks, self._num_pairs)
        if any(found != () for found in self._open.values()):
            return False
        self._drifts = any(self._differ(before, one) for before, one in zip(halves[-1], now, strict=True))
        return not self._drifts

    def _differ(self, before: SimilarityAccumulator, now: SimilarityAccumulator) -> bool:
        """Whether the batches up to `before` gave other similarities than those after it, beyond chance."""
        if before.num_groups < 2:
            return False
        whole, first, second = now.compute(), before.compute(), now.since(before).compute()
        level = 1.0 - _DRIFT_RATE / (2 * self._num_pairs)
        fewest = min(before.num_groups, now.num_groups - before.num_groups)
        reach = student_t_quantile(level, min(fewest - 1, 1000))
        pairs = compared_pairs(find_clusters(whole, self.rule.threshold, self.rule.linkage), self.rule.linkage)
        return any(_distance(first, second, i, j) > reach for i, j in pairs)

    def _warn(self) -> None:
        if not self.runtime.is_main_process:
            return
        if self._drifts:
            logger.warning(
                "The first and the second half of the calibration batches differ by more than chance, so the examples are "
                "in no random order, and all were used: shuffle them, or pass the data set itself, which is sampled."
            )
        elif not self._open:
            num_groups = self.recorders[0].num_groups
            logger.warning(
                "%d batches are too few to settle clusters at an error rate; all were used. Pass smaller batches (%d or more "
                "of them), or more examples.",
                num_groups,
                next(mark for mark in self.rule.marks(self.runtime.world_size) if mark > MIN_GROUPS),
            )


def _distance(first: SimilarityMatrix, second: SimilarityMatrix, i: int, j: int) -> float:
    """Difference of two independent measurements of a pair, in standard errors."""
    errors = [one.errors[i, j] for one in (first, second) if one.errors is not None]
    gap = float((first.values[i, j] - second.values[i, j]).abs())
    return gap / max(float(torch.stack(errors).norm()), _ROUNDING)


def _warn_of_order(loader: Iterable[Mapping[str, Any]]) -> None:
    """Say so if batches come in the order of their data set, which is rarely a random one."""
    while not isinstance(loader, DataLoader) and hasattr(loader, "batches") and loader.batches is not loader:
        loader = loader.batches
    if not isinstance(loader, DataLoader) or isinstance(loader.batch_sampler, list):
        return
    if isinstance(loader.sampler, SequentialSampler):
        logger.warning(
            "Similarity is to be measured until its clusters are settled, which holds for batches in random order, but "
            "this DataLoader keeps the order of its data set. If that is sorted by anything, pass shuffle=True."
        )


def _count_examples(loader: Iterable[Mapping[str, Any]], max_samples: int | None) -> int | None:
    """How many examples a measurement can use at most, if that can be known without reading them."""
    found = None
    if isinstance(loader, DataLoader):
        try:
            parts = loader.batch_sampler
            found = sum(map(len, parts)) if isinstance(parts, list) else len(loader.sampler)  # type: ignore[arg-type]
        except TypeError:  # a stream
            found = None
    return found if max_samples is None or found is None else min(found, max_samples)
