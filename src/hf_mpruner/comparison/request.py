"""`Request`: what is to be compared, checked before anything is computed."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_mpruner.architectures import BlockStack
from hf_mpruner.config import PruningConfig, resolve_protected, resolve_targets
from hf_mpruner.config.layers import target_entries
from hf_mpruner.config.limits import UNITS
from hf_mpruner.criteria import Criterion, LayerScores, find_criterion, pick_lowest
from hf_mpruner.errors import CalibrationError, UnsupportedArchitectureError

# Fields of the config that mean something here; what else differs from its default is refused.
FIELDS = (
    "preset", "estimator", "rows", "token_groups", "average", "linkage", "calibration_samples", "calibration_batch_size",
    "protect", "stacks", "metric", "greater_is_better", "recovery_epochs",
)  # fmt: skip
HOW = (
    "It gets a folder and a seed, and must load its model from there:\n"
    "    def make_trainer(path, seed):\n"
    "        model = AutoModelForSequenceClassification.from_pretrained(path)\n"
    "        args = TrainingArguments(..., seed=seed)\n"
    "        return Trainer(model, args, train_dataset=..., eval_dataset=..., compute_metrics=...)"
)
_INSTEAD = {
    "criterion": "pass compare_criteria(criteria=[...])",
    "target_num_layers": "pass compare_criteria(num_layers=[...])",
    **dict.fromkeys(UNITS, "pass numbers of layers, compare_criteria(num_layers=[...])"),
    "seed": "pass compare_criteria(seeds=[...])",
}


@dataclasses.dataclass(frozen=True)
class Depth:
    """One number of layers to compare at.

    Args:
        entries (`tuple[str, ...]`): as `PruningConfig.target_num_layers`.
    """

    entries: tuple[str, ...]

    @property
    def label(self) -> str:
        """How it is written: `8`, or `encoder.block:6,decoder.block:8`."""
        return ",".join(self.entries)

    def num_removed(self, stacks: Sequence[BlockStack]) -> dict[str, int]:
        """For each stack that is named how many layers go.

        Raises:
            ValueError: for an unknown stack, or more layers than there are.
        """
        depths = {stack.path: stack.depth for stack in stacks}
        return {path: depths[path] - left for path, left in resolve_targets(self.entries, depths).items()}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be compared.

    Args:
        criteria (`dict[str, Criterion]`): by name, in the order that was asked for.
        depths (`tuple[Depth, ...]`): numbers of layers.
        seeds (`tuple[int, ...]`): each draws a calibration sample, and orders the recovery's data.
        config (`PruningConfig`): how it is measured and judged.
    """

    criteria: dict[str, Criterion]
    depths: tuple[Depth, ...]
    seeds: tuple[int, ...]
    config: PruningConfig

    @classmethod
    def read(
        cls, make_trainer: object, model: object, criteria: Any, num_layers: Any, seeds: Any, config: PruningConfig
    ) -> Request:
        """Check the arguments of `compare_criteria` that need no model.

        Raises:
            TypeError: for a `make_trainer` or a `model` that is none.
            ValueError: for an unknown criterion, no depth, no seed, or a setting that means nothing here.
        """
        if not callable(make_trainer) or not _takes_two(make_trainer):
            what = "a function of one folder only" if callable(make_trainer) else f"a {type(make_trainer).__name__}"
            raise TypeError(f"make_trainer is {what}. {HOW}")
        if not isinstance(model, str | os.PathLike):
            raise TypeError(
                f"model is a {type(model).__name__}, but each cell loads its model anew: pass the folder or the Hub id that it "
                "is loaded from. Save it with model.save_pretrained(folder) if it is nowhere."
            )
        _check_config(config)
        criteria = [criteria] if isinstance(criteria, str | Criterion) else list(criteria)
        num_layers = [num_layers] if isinstance(num_layers, int | str | Mapping) else list(num_layers)
        seeds = tuple(range(seeds)) if isinstance(seeds, int) else tuple(dict.fromkeys(map(int, seeds)))
        for name, given in (("criteria", criteria), ("num_layers", num_layers), ("seeds", seeds)):
            if not given:
                raise ValueError(f"{name} is empty: there is nothing to compare. Pass {name}={_EXAMPLES[name]}, say.")
        found = [find_criterion(one) for one in criteria]
        depths = tuple(dict.fromkeys(_depth(one) for one in num_layers))
        return cls({one.name: one for one in found}, depths, seeds, config)

    def check_data(self, calibration: Any) -> None:
        """Refuse criteria that measure on data where there is none.

        Raises:
            CalibrationError: naming them.
        """
        needing = [name for name, one in self.criteria.items() if one.needs - {"weights"}]
        if calibration is None and needing:
            raise CalibrationError(
                f"calibration is missing: {', '.join(needing)} measure on data. Pass calibration=dataset, a part of the "
                "training set for instance, with labels for criteria that need the loss."
            )
        if calibration is not None and isinstance(calibration, Iterator):
            raise CalibrationError(
                f"calibration is a {type(calibration).__name__}, which can be read once only, but every criterion and seed reads "
                "it. Pass a dataset, or list(calibration)."
            )
        if calibration is not None and hasattr(calibration, "__len__") and not len(calibration):
            raise CalibrationError(
                "The calibration data is empty. Pass a data set with examples like those that judge."
            )

    def choose_stacks(self, stacks: Sequence[BlockStack]) -> list[BlockStack]:
        """The stacks that are compared, of those that a model has; checks that so many layers can go.

        Raises:
            ValueError: for what no criterion could do: a number of layers that the model has not, or that cannot be
                reached; nothing to remove.
            UnsupportedArchitectureError: if there is no stack.
        """
        paths = [stack.path for stack in stacks]
        unknown = [path for path in self.config.stacks or () if path not in paths]
        if unknown:
            raise ValueError(f"stacks={unknown} are none of this model. Its stacks are: {', '.join(paths)}.")
        chosen = [stack for stack in stacks if self.config.stacks is None or stack.path in self.config.stacks]
        if not chosen:
            raise UnsupportedArchitectureError("This model has no stack of blocks that can be cut.")
        protected = resolve_protected(self.config.protect, {stack.path: stack.depth for stack in stacks})
        for depth in self.depths:
            removed = depth.num_removed(chosen)
            if not any(removed.values()):
                raise ValueError(
                    f"num_layers={depth.label} removes no layer: {', '.join(f'{s.path} has {s.depth}' for s in chosen)}. "
                    "The uncut model is measured anyway; leave this number out."
                )
            for stack in chosen:
                if number := removed.get(stack.path, 0):
                    level = [None if layer in stack.pinned else 0.0 for layer in range(stack.depth)]
                    pick_lowest(LayerScores(stack.path, tuple(level)), stack, number, protected[stack.path])
        return chosen

    def most_removed(self, stacks: Sequence[BlockStack]) -> dict[str, int]:
        """For each stack the most layers that any depth takes."""
        removed = [depth.num_removed(stacks) for depth in self.depths]
        return {path: max(one.get(path, 0) for one in removed) for path in {key: 0 for one in removed for key in one}}


_EXAMPLES = {"criteria": "['cka', 'block_influence', 'tail']", "num_layers": "[8, 6]", "seeds": "(0, 1, 2)"}


def _depth(given: Any) -> Depth:
    entries = target_entries(given.split(",") if isinstance(given, str) else given)
    if entries is None:
        raise ValueError("num_layers holds None: write how many layers are to be left, e.g. 8.")
    return Depth(tuple(entries))


def _check_config(config: PruningConfig) -> None:
    plain = PruningConfig()
    other = [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in FIELDS and getattr(config, field.name) != getattr(plain, field.name)
    ]
    if other:
        instead = [_INSTEAD[name] for name in other if name in _INSTEAD]
        told = f" Instead {', '.join(instead)}." if instead else ""
        raise ValueError(
            f"compare_criteria makes no use of PruningConfig({', '.join(f'{n}={getattr(config, n)!r}' for n in other)}): leave "
            f"it out.{told} What it uses: {', '.join(FIELDS)}."
        )


def _takes_two(make_trainer: Any) -> bool:
    try:
        inspect.signature(make_trainer).bind("folder", 0)
    except TypeError:
        return False
    except ValueError:  # no signature to read
        return True
    return True
