"""Adapters in a cut: they go with their blocks, and their config is written so that peft builds what is left.

As the base model is compared with a build from its shortened config, so are the adapters with what peft builds from
their rewritten config around that build.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from hf_mpruner.architectures import ABSENT, CutProof, Examination
from hf_mpruner.architectures.adapters import CUT_MARK, adapted_modules, adapter_configs
from hf_mpruner.architectures.compare import renumber
from hf_mpruner.architectures.reference import build_quietly, describe_modules, plain
from hf_mpruner.architectures.rewrite import shorten_config
from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.surgery.names import Names, rewrite_config
from hf_mpruner.surgery.steps import Write

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What peft's layers compute with, by adapter.
_NUMBERS = (
    "r", "lora_alpha", "alpha", "scaling", "use_rslora", "use_dora", "lora_bias", "lora_variant", "rank_dropout",
    "module_dropout", "rank_dropout_scale", "is_feedforward", "fan_in_fan_out", "parameter_name",
)  # fmt: skip


def check_places(model: nn.Module, proof: CutProof) -> None:
    """Refuse a cut through modules that adapters stand in for: what peft made a copy of would not be cut.

    Args:
        model (`nn.Module`): the transformers model, not yet cut.
        proof (`CutProof`): of the cut.

    Raises:
        UnsupportedArchitectureError: with the module; nothing was changed.
    """
    written = [value.path for value in proof.values]
    written += [path for move in proof.moves for path in (move.source, move.target)]
    written += [part.path for part in proof.slices]
    for adapted in adapted_modules(model):
        blocks = [path for path in proof.cuts if _inside(path, adapted) or adapted.removeprefix(f"{path}.").isdigit()]
        touched = [path for path in written if _inside(path, adapted)]
        if blocks or touched:
            raise UnsupportedArchitectureError(
                f"{'The blocks of' if blocks else 'Module'} {(blocks or touched)[0]!r} would change with the cut, but an "
                f"adapter stands in for {adapted!r}. Leave that module out of target_modules and modules_to_save."
            )


def prepare_adapters(
    model: PreTrainedModel, found: Examination, kept: Mapping[str, Sequence[int]], proof: CutProof
) -> list[Write]:
    """What a cut changes about a model's adapters, apart from those that go with their blocks.

    Args:
        model (`PreTrainedModel`): not yet cut.
        found (`Examination`): of this model.
        kept (`Mapping[str, Sequence[int]]`): by stack path, the layers that stay.
        proof (`CutProof`): of the cut.

    Returns:
        `list[Write]`: new settings of peft configs, and the mark that says that the base is another one now. Empty for
        a model without adapters.

    Raises:
        UnsupportedArchitectureError: if no config was found from which peft builds the adapters that are left.
    """
    configs = adapter_configs(model)
    if not configs:
        return []
    blueprint = found.blueprint
    shortened = blueprint.rebuild(shorten_config(blueprint.config, found.stacks, kept))
    names = Names(
        [name for name, _ in blueprint.reference.named_modules(remove_duplicate=False)],
        [name for name, _ in shortened.named_modules(remove_duplicate=False)],
        [name for name, _ in blueprint.reference.named_parameters(remove_duplicate=False)],
        [name for name, _ in shortened.named_parameters(remove_duplicate=False)],
        proof.cuts,
    )
    changes = {adapter: rewrite_config(config, names) for adapter, config in configs.items()}
    rewritten = {adapter: copy.deepcopy(config) for adapter, config in configs.items()}
    for adapter, settings in changes.items():
        vars(rewritten[adapter]).update(copy.deepcopy(settings))
    _check_build(model, shortened, rewritten, proof)
    writes = [
        Write.prepare(vars(configs[adapter]), setting, value, f"peft_config['{adapter}'].{setting}")
        for adapter, settings in changes.items()
        for setting, value in settings.items()
    ]
    return [*writes, Write(vars(model), CUT_MARK, vars(model).get(CUT_MARK, ABSENT), True, "the mark of a cut base")]


def _check_build(model: nn.Module, shortened: nn.Module, configs: Mapping[str, Any], proof: CutProof) -> None:
    """Compare the adapters that are left with those that peft puts into a model of the shortened config."""
    live = {
        new: (described, _numbers(model.get_submodule(path)))
        for path, described in describe_modules(model).items()
        if (new := renumber(path, proof.cuts)) is not None
    }
    wrapped = [new for path in adapted_modules(model) if (new := renumber(path, proof.cuts)) is not None]
    try:
        with build_quietly():
            _inject(shortened, configs)
    except Exception as error:  # peft raises whatever its tuners raise
        text = " ".join(str(error).split())[:300]
        raise _refusal(f"peft cannot build them: {type(error).__name__}: {text}") from error
    built = {
        path: (described, _numbers(shortened.get_submodule(path)))
        for path, described in describe_modules(shortened).items()
    }
    wrapped += adapted_modules(shortened)
    for path in sorted(name for name in live.keys() | built.keys() if any(_inside(name, one) for one in wrapped)):
        if path not in built or path not in live:
            raise _refusal(f"{path!r} would be {'built in addition' if path in built else 'missing'}")
        (one, numbers), (other, others) = live[path], built[path]
        if (one.kind, one.tensors) != (other.kind, other.tensors) or numbers != others:
            difference = next(
                (
                    f"{key}={numbers[key]} and would be {others.get(key)}"
                    for key in numbers
                    if numbers[key] != others.get(key)
                ),
                f"{one.kind.rpartition('.')[2]} of {dict(one.tensors)} and would be "
                f"{other.kind.rpartition('.')[2]} of {dict(other.tensors)}",
            )
            raise _refusal(f"{path!r} has {difference}")


def _inject(base: nn.Module, configs: Mapping[str, Any]) -> None:
    """Put adapters into a model on the meta device, in the order in which they were put into the live one."""
    tuners = importlib.import_module("peft.mapping").PEFT_TYPE_TO_TUNER_MAPPING
    tuner: Any = None
    for adapter, config in configs.items():
        config.inference_mode = False
        if tuner is None:
            tuner = tuners[config.peft_type](base, {adapter: config}, adapter, low_cpu_mem_usage=True)
        else:
            tuner.peft_config[adapter] = config
            tuner.inject_adapter(base, adapter, low_cpu_mem_usage=True)


def _numbers(module: nn.Module) -> dict[str, Any]:
    return {name: plain(vars(module)[name]) for name in _NUMBERS if name in vars(module)}


def _inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")


def _refusal(text: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"The adapters that this cut leaves cannot be built again from their config: {text}. Are the adapters what "
        "model.peft_config says? Name the modules in another way (target_modules), or merge the adapters first: "
        "model = model.merge_and_unload(). The model was not changed."
    )
