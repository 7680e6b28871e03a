"""Fresh Trainers for the cells of a comparison: what they must be, and what a cell does with one."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, Trainer, set_seed
from transformers.utils import logging as chatter

from hf_mpruner.callback import LayerPruningCallback
from hf_mpruner.config import PruningConfig
from hf_mpruner.cycles.fresh import evaluate, find_difference, release, train
from hf_mpruner.errors import MPrunerError, UnsupportedBackendError
from hf_mpruner.intervals import interval_of_share
from hf_mpruner.latency import time_forward
from hf_mpruner.metric import Metric, finite_values
from hf_mpruner.preflight import check_judge
from hf_mpruner.record import Measurement, PruningRecord
from hf_mpruner.runtime import keep_rng_state
from hf_mpruner.subject import trained_model
from hf_mpruner.workbench import Workbench

from .request import HOW

if TYPE_CHECKING:
    from torch import nn

MakeTrainer = Callable[[str, int], Trainer]


@contextmanager
def fresh_trainer(
    make_trainer: MakeTrainer, path: str, seed: int, config: PruningConfig, expected: nn.Module | None
) -> Iterator[Trainer]:
    """A Trainer of the user's for one cell; let go of afterwards.

    Args:
        make_trainer (callable): the user's.
        path (`str`): folder or Hub id that it loads its model from.
        seed (`int`): of the cell.
        config (`PruningConfig`): what judges.
        expected (`nn.Module`, *optional*): what lies at `path`; the Trainer's model must be equal to it.

    Raises:
        TypeError, ValueError, MPrunerError, UnsupportedBackendError: for a Trainer that cannot be used.
    """
    gc.collect()  # the Trainer before holds itself by cycles
    set_seed(seed)
    with _without_bars():
        trainer = make_trainer(path, seed)
    check_trainer(trainer, seed, config)
    fault = "" if expected is None else find_difference(trained_model(trainer), expected)
    if fault:
        raise MPrunerError(
            f"make_trainer('{path}', {seed}) returned a Trainer whose model is not the one of that folder: {fault}. {HOW}\n"
            "Adapters (peft) and quantised weights are not supported here."
        )
    try:
        yield trainer
    finally:
        release(trainer)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Bars of loading a model, many times, would only hide those of the comparison."""
    shown = chatter.is_progress_bar_enabled()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            chatter.enable_progress_bar()


def check_trainer(trainer: Any, seed: int, config: PruningConfig) -> None:
    """Refuse what `make_trainer` returned if a cell cannot be trained and judged with it, or not fairly.

    Raises:
        TypeError: if it is no Trainer, or its model no `PreTrainedModel`.
        ValueError: without anything to judge by; with `model_init`, `push_to_hub`, a `LayerPruningCallback` or another
            seed than was asked for.
        MPrunerError: if it has trained before.
        UnsupportedBackendError: if it would train in several processes.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(f"make_trainer returned {type(trainer).__name__}, not a Trainer. {HOW}")
    if not isinstance(trainer.model, PreTrainedModel):
        raise TypeError(
            f"make_trainer returned a Trainer of a {type(trainer.model).__name__}, but a cell saves and loads its model as a "
            f"PreTrainedModel of transformers. {HOW}"
        )
    args = trainer.args
    if args.world_size > 1:
        raise UnsupportedBackendError(
            f"compare_criteria runs in one process, but the launcher started {args.world_size}: start it with plain python."
        )
    if getattr(trainer, "model_init", None) is not None:
        raise ValueError(f"make_trainer returned a Trainer with model_init, which would replace its model. {HOW}")
    if trainer.state.global_step:
        raise MPrunerError(
            f"make_trainer returned a Trainer that has trained already: make a new one each time. {HOW}"
        )
    if args.push_to_hub:
        raise ValueError("TrainingArguments(push_to_hub=True) would upload every cell's model. Leave it out.")
    if any(isinstance(one, LayerPruningCallback) for one in trainer.callback_handler.callbacks):
        raise ValueError(
            "make_trainer returned a Trainer with a LayerPruningCallback, but a comparison cuts the model itself. Leave "
            "the callback out."
        )
    for name in ("seed", "data_seed"):
        if getattr(args, name) not in (seed, None):
            raise ValueError(
                f"make_trainer(path, {seed}) returned a Trainer with TrainingArguments({name}={getattr(args, name)}): all "
                f"seeds would train on the data in one order. Pass TrainingArguments({name}=seed)."
            )
    check_judge(trainer, config)


def judge(trainer: Trainer, config: PruningConfig) -> dict[str, Any]:
    """Evaluate a Trainer's model as it is, unseen by its other callbacks.

    Returns:
        `dict`: every finite value by name; and for each value what it was measured on: `num_examples`, if it is known, and
        whether it is a share of them.
    """
    bench = Workbench(trainer, config)
    values = evaluate(bench)
    judged = {}
    for name in finite_values(values):
        on = bench.judged_on(name)
        judged[name] = {"num_examples": on.data.get("num_examples"), "is_share": on.is_share}
    return {"metrics": finite_values(values), "judged": judged}


def recover(trainer: Trainer, seed: int, epochs: int) -> dict[str, Any]:
    """Train a fresh Trainer within the recovery budget.

    Returns:
        `dict`: `recovery_seconds` and `steps`.
    """
    started = time.perf_counter()
    set_seed(seed)  # whatever was drawn before, the data's order and dropout are the seed's
    train(trainer, epochs)
    return {"recovery_seconds": time.perf_counter() - started, "steps": trainer.state.global_step}


def time_model(trainer: Trainer) -> tuple[float | None, dict[str, Any]]:
    """Seconds of a forward pass on the first batch that judges, and what was timed; see `time_forward`."""
    record, measured = PruningRecord({}), Measurement(0, 0)
    accelerator: Any = trainer.accelerator
    data: Any = trainer.eval_dataset
    first = next(iter(data)) if isinstance(data, Mapping) else None

    def batch() -> dict[str, Any]:
        with keep_rng_state():
            found = next(iter(trainer.get_eval_dataloader(first)))
        return {name: value for name, value in found.items() if hasattr(value, "shape")}

    if data is not None:
        model = trained_model(trainer)
        time_forward(model, batch, record, measured, mixed_precision=accelerator.mixed_precision, single=False)
    return measured.latency_seconds, record.latency


def read_value(metric: Metric, cell: Mapping[str, Any]) -> float | None:
    """The deciding value of a cell; `None` if it is not finite."""
    try:
        value = metric.read(cell["metrics"])
    except ValueError:  # only finite values are kept
        return None
    return value if math.isfinite(value) else None


def read_interval(metric: Metric, cell: Mapping[str, Any]) -> list[float] | None:
    """Wilson's interval, at 95 %, of a cell's deciding value, where it is a share of examples."""
    value, on = read_value(metric, cell), cell["judged"].get(metric.name, {})
    if value is None or not on.get("is_share"):
        return None
    return interval_of_share(value, on.get("num_examples"))
