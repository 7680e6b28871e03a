"""What the tests of running Trainers share: a tiny task, scripted verdicts, and a look at all that training touches."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_mpruner import LayerPruningCallback, PruningConfig

STACK = "bert.encoder.layer"
EVERYTHING_ALIKE = 0.0  # with this threshold all layers are one cluster, so k = 1 keeps only the first

# The name that transformers gives it after 5.14.
CHECKPOINTING = "activation_checkpointing"
if not hasattr(TrainingArguments, CHECKPOINTING):
    CHECKPOINTING = "gradient_checkpointing"


class Rows(Dataset):
    """Sequences of different lengths; the label says whether the first token is from the lower half."""

    def __init__(self, size: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.rows = []
        for _ in range(size):
            ids = torch.randint(2, 99, (int(torch.randint(5, 9, (1,), generator=generator)),), generator=generator)
            mask = torch.zeros(8, dtype=torch.long)
            mask[: len(ids)] = 1
            padded = torch.zeros(8, dtype=torch.long)
            padded[: len(ids)] = ids
            self.rows.append({"input_ids": padded, "attention_mask": mask, "labels": int(ids[0] < 50)})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


class Scripted:
    """A `compute_metrics` that returns given values in turn: baseline first, then a value a verdict."""

    def __init__(self, *values):
        self.values = list(values)

    def __call__(self, prediction):
        return {"accuracy": self.values.pop(0)}


class Begun(TrainerCallback):
    """Knows the step that a training began with."""

    step = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.step = state.global_step


def begun_at(trainer):
    """The step that a Trainer of `build_trainer` has resumed from; 0 if it began anew."""
    return next(one.step for one in trainer.callback_handler.callbacks if isinstance(one, Begun))


def build_trainer(
    model, output_dir, compute_metrics=accuracy, callbacks=None, optimizers=(None, None), model_init=None, eval_rows=16,
    **arguments,
):  # fmt: skip
    """Three epochs of three steps, quiet, on the CPU; `arguments` go to `TrainingArguments`."""
    settings = {
        "output_dir": str(output_dir), "num_train_epochs": 3, "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8, "learning_rate": 1e-3, "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "epoch", "eval_strategy": "no", "seed": 1,
    }  # fmt: skip
    return Trainer(
        model, TrainingArguments(**{**settings, **arguments}), train_dataset=Rows(24, 0), eval_dataset=Rows(eval_rows, 1),
        compute_metrics=compute_metrics, callbacks=[Begun(), *(callbacks or [])], optimizers=optimizers, model_init=model_init,
    )  # fmt: skip


def add(trainer, **config):
    settings = {"threshold": EVERYTHING_ALIKE, "max_metric_drop": 0.05, "calibration_samples": 16, **config}
    callback = LayerPruningCallback(trainer, PruningConfig(**settings), calibration=Rows(16, 2))
    trainer.add_callback(callback)
    return callback


# What differs between two runs that are equal to the bit.
TIMES = ("evaluation_seconds", "latency_seconds", "analysis_seconds", "recovery_seconds", "seconds")
TIMES += ("spent", "peak_memory", "latency_range", "single_latency_seconds", "single_latency_range", "target_latency")


def facts_of(record):
    """All that a record says, as JSON, but how long it took; that something was timed stays."""

    def timeless(values):
        if isinstance(values, dict):
            return {key: value is not None if key in TIMES else timeless(value) for key, value in values.items()}
        return [timeless(value) for value in values] if isinstance(values, list | tuple) else values

    return timeless(record.to_dict())


def everything(trainer):
    """All that a rollback must restore, as comparable values: weights, flags, config, optimizer, structure."""
    model, optimizer = trainer.model, trainer.optimizer
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = {id(p): name for name, p in model.named_parameters()}
    state = {
        names[id(p)]: {key: value.clone() if torch.is_tensor(value) else value for key, value in values.items()}
        for p, values in optimizer.state.items()
    }
    groups = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    return weights, state, groups, flags, model.config.to_dict()


def assert_same(first, second):
    weights, state, groups, flags, config = first
    others, other_state, other_groups, other_flags, other_config = second
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert state.keys() == other_state.keys()
    for name, values in state.items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other_state[name][key])), (name, key)
    assert (groups, flags, config) == (other_groups, other_flags, other_config)


def realigned(model):
    """Copy weights out of the file they were read from: another alignment in memory may give other last bits."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()


class Spy(TrainerCallback):
    """Looks at the Trainer at an event; added before or after the pruning callback it sees either side of it."""

    def __init__(self, **looks):
        self.looks, self.seen = looks, {event: [] for event in looks}

    def __getattribute__(self, name):
        looks = object.__getattribute__(self, "__dict__").get("looks", {})
        if name in looks:
            return lambda *args, **kwargs: self.seen[name].append(looks[name]())
        return object.__getattribute__(self, name)
