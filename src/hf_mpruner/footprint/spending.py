"""What a run spends beside its training, added up in its record as it goes on, so that a resumed run adds to it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import nn

from hf_mpruner.placement import input_device
from hf_mpruner.record import PruningRecord

from .peak import device_peak, process_peak
from .profile import counting_passes

F = TypeVar("F")


class Spending:
    """Wraps the functions that a run is handed, so that their seconds and forward passes are written down.

    Args:
        record (callable): returns the run's record, which may be there later than this.
        model (`nn.Module`): whose forward passes are counted. What runs another one has seconds only.
    """

    def __init__(self, record: Callable[[], PruningRecord], model: nn.Module) -> None:
        """Nothing is spent yet."""
        self._record, self._model = record, model

    def __call__(self, stage: str, function: F) -> F:
        """The same function, counted under the name of a stage; `None` stays `None`."""
        if function is None:
            return function
        inner = cast("Callable[..., Any]", function)

        @functools.wraps(inner)
        def counted(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            with counting_passes(self._model) as count:
                try:
                    return inner(*args, **kwargs)
                finally:
                    self._add(stage, time.perf_counter() - started, count.passes)

        return cast("F", counted)

    def _add(self, stage: str, seconds: float, passes: int) -> None:
        record = self._record()
        spent = record.spent.setdefault(stage, {"seconds": 0.0})
        spent["seconds"] += seconds
        if passes:
            spent["forward_passes"] = spent.get("forward_passes", 0) + passes
        for name, found in (("process", process_peak()), ("accelerator", device_peak(input_device(self._model)))):
            if found is not None:
                record.peak_memory[name] = max(record.peak_memory.get(name, 0), found)
