"""What a Trainer can tell of its data, its settings, and what its evaluations were of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .data import describe_data
from .environment import describe_device, library_versions
from .metric import is_share
from .record import PruningRecord
from .trainers import evaluator_name
from .verdict import Judged

if TYPE_CHECKING:
    from transformers import Trainer

_SETTINGS = (
    "weight_decay", "max_grad_norm", "label_smoothing_factor", "per_device_train_batch_size",
    "gradient_accumulation_steps", "seed", "data_seed", "bf16", "fp16",
)  # fmt: skip


class Seen(NamedTuple):
    """What one pass over an evaluation set has shown.

    Args:
        num_examples (`int`, *optional*): that were evaluated.
        one_label_each (`bool`): whether each of them has one class as its label.
    """

    num_examples: int | None
    one_label_each: bool


@contextmanager
def watch_evaluations(trainer: Trainer, seen: dict[str, Seen]) -> Iterator[None]:
    """Look at what a Trainer's evaluations return, on this object only.

    Args:
        trainer (`Trainer`): about to evaluate.
        seen (`dict`): gets an entry for each evaluation set, by its `metric_key_prefix`.
    """
    own, original = vars(trainer).get("evaluation_loop"), trainer.evaluation_loop

    def loop(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        seen[str(kwargs.get("metric_key_prefix", "eval"))] = _look(output, trainer.args.dataloader_drop_last)
        return output

    trainer.evaluation_loop = loop  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del trainer.evaluation_loop
        else:
            trainer.evaluation_loop = own  # type: ignore[method-assign]


def _look(output: Any, drops_last: bool) -> Seen:
    labels = getattr(output, "label_ids", None)
    if isinstance(labels, np.ndarray) and labels.ndim:
        # a label below 0 marks an example that a metric leaves out
        one_each = labels.ndim == 1 and labels.dtype.kind in "iu" and bool((labels >= 0).all())
        return Seen(len(labels), one_each)
    # the Trainer's own number is that of the data set, also where the loader leaves out its last batch
    return Seen(None if drops_last else getattr(output, "num_samples", None), False)


def split_metric(trainer: Trainer, metric: str) -> tuple[str, str]:
    """Which of a Trainer's evaluation sets a metric is of (empty if there is one set), and its name without that."""
    data: Any = trainer.eval_dataset
    part = ""
    if isinstance(data, Mapping):
        part = max((str(name) for name in data if metric.startswith(f"{name}_")), key=len, default="")
    return part, metric.removeprefix(f"{part}_") if part else metric


def find_judged(trainer: Trainer, metric: str, seen: Mapping[str, Seen], prefix: str) -> Judged:
    """What a metric of the last evaluation was measured on.

    Args:
        trainer (`Trainer`): that evaluated.
        metric (`str`): its name, without the prefix of the evaluation, with that of one of several sets.
        seen (`dict[str, Seen]`): see `watch_evaluations`.
        prefix (`str`): of the evaluation.
    """
    part, base = split_metric(trainer, metric)
    data: Any = trainer.eval_dataset
    data = data.get(part, data) if isinstance(data, Mapping) else data
    evaluator = evaluator_name(trainer)
    if evaluator is not None and base not in ("loss", "perplexity"):
        return Judged({"source": f"an evaluator ({evaluator})"})
    shown = seen.get(f"{prefix}_{part}" if part else prefix, Seen(None, False))
    facts = describe_data(data, "evaluation set")
    facts.pop("num_examples", None)
    if shown.num_examples is None:
        return Judged(facts)
    share = shown.one_label_each and is_share(base)
    return Judged({**facts, "num_examples": int(shown.num_examples)}, share)


def write_facts(record: PruningRecord, trainer: Trainer, measured: Mapping[str, dict[str, Any]]) -> None:
    """Write into a record what a run inside or beside a Trainer has, before it begins.

    Args:
        record (`PruningRecord`): gets `data` (what judges is known later), `training`, `versions`, `device`,
            `metric_sources` and `world_size`.
        trainer (`Trainer`): that trains.
        measured (`dict`): facts about the data that layers are measured on, by its name in the record: `"calibration"`,
            or `"choosing"`.
    """
    record.world_size = trainer.args.world_size
    record.data.update(measured)
    if trainer.train_dataset is not None:
        record.data["training"] = describe_data(trainer.train_dataset, "training set")
    earlier, record.training = record.training, training_facts(trainer)
    if earlier and "optim" not in earlier and earlier.get("optimizer") == record.training.get("optimizer"):
        # a run that is gone on with: groups of layers that were cut are not in the user's optimizer any more
        record.training.pop("optim", None)
        record.training |= {name: earlier[name] for name in ("learning_rate", "weight_decay") if name in earlier}
    # of scoring.ComputeMetrics, which goes on filling it with each evaluation
    record.metric_sources = getattr(trainer.compute_metrics, "sources", record.metric_sources)
    record.versions, record.device = library_versions(), describe_device(trainer.args.device)


def training_facts(trainer: Trainer) -> dict[str, Any]:
    """Settings that a Trainer trains with, as JSON; of an optimizer or scheduler that the user made, what it says itself.

    Args:
        trainer (`Trainer`): with the optimizer and scheduler it trains with, or before it has made its own.
    """
    args: Any = trainer.args
    facts = {name: value for name in _SETTINGS if (value := getattr(args, name, None)) is not None}
    facts |= (
        {"max_steps": args.max_steps} if args.max_steps > 0 else {"num_train_epochs": float(args.num_train_epochs)}
    )
    facts |= {"world_size": args.world_size, **_optimizer_facts(trainer)}
    if trainer.lr_scheduler is None or getattr(trainer, "_created_lr_scheduler", False):
        facts |= {"lr_scheduler_type": _plain(args.lr_scheduler_type), "warmup_steps": args.warmup_steps}
    else:
        facts["scheduler"] = type(getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)).__name__
    return facts


def _optimizer_facts(trainer: Trainer) -> dict[str, Any]:
    args: Any = trainer.args
    asked = {"optim": _plain(args.optim), "learning_rate": args.learning_rate}
    if trainer.optimizer is None:
        return asked
    optimizer: Any = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    name, groups = type(optimizer).__name__, optimizer.param_groups
    rates = sorted({float(group.get("initial_lr", group["lr"])) for group in groups})
    decays = sorted({float(group["weight_decay"]) for group in groups if "weight_decay" in group})
    as_asked = rates == [args.learning_rate] and set(decays) <= {0.0, args.weight_decay}
    if as_asked and name.lower() in asked["optim"].replace("_", ""):
        return {**asked, "optimizer": name}
    # made by the user: the arguments say nothing of it
    return {
        "optimizer": name,
        "learning_rate": rates[0] if len(rates) == 1 else rates,
        "weight_decay": decays[-1] if decays else 0.0,
    }


def _plain(setting: Any) -> str:
    return str(getattr(setting, "value", setting))
