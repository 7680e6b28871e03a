"""A tiny random model of any model type of the installed transformers, with inputs it runs on."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from zoo import overrides
from zoo.inputs import make_inputs
from zoo.sizes import tiny_config

# Heads in the order they are wanted: a generating one first, the base model last.
_AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForSeq2SeqLM",
    "AutoModelForRNNT",
    "AutoModelForTDT",
    "AutoModelForCTC",
    "AutoModelForZeroShotObjectDetection",
    "AutoModelForZeroShotImageClassification",
    "AutoModelForObjectDetection",
    "AutoModelForUniversalSegmentation",
    "AutoModelForImageClassification",
    "AutoModelForSemanticSegmentation",
    "AutoModelForVideoClassification",
    "AutoModelForDepthEstimation",
    "AutoModelForMaskGeneration",
    "AutoModelForKeypointMatching",
    "AutoModelForKeypointDetection",
    "AutoModelForPoseEstimation",
    "AutoModelForImageToImage",
    "AutoModelForAudioClassification",
    "AutoModelForTimeSeriesPrediction",
    "AutoModelForTextToSpectrogram",
    "AutoModelForTextToWaveform",
    "AutoModelForTextRecognition",
    "AutoModelForTableRecognition",
    "AutoModelForImageMatting",
    "AutoModelForNormalEstimation",
    "AutoModelForPointmapEstimation",
    "AutoModelForDecision",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForVisualQuestionAnswering",
    "AutoModelForMaskedLM",
    "AutoModel",
    "AutoModelForPreTraining",
    "AutoModelForInstanceSegmentation",
    "AutoModelForMaskedImageModeling",
    "AutoBackbone",
)
# Older versions of transformers lack some.
AUTO_CLASSES = tuple(name for name in _AUTO_CLASSES if hasattr(transformers, name))


class NotBuildable(Exception):
    """No specimen of this type can be built; the text says why."""


@dataclass
class Specimen:
    """A tiny model and inputs that run it."""

    model_type: str
    model: PreTrainedModel
    inputs: dict[str, Any]
    auto_class: str | None
    """The Auto class that loads the saved checkpoint into the same class, None where there is none."""
    notes: str = ""
    """What of the model the inputs leave out."""


def model_types() -> list[str]:
    return sorted(CONFIG_MAPPING_NAMES)


def get_auto_model(auto_class: str, config_class: type[PreTrainedConfig]) -> type[PreTrainedModel] | None:
    """The class that the Auto class has for a config, None where it has none."""
    mapping = getattr(transformers, auto_class)._model_mapping
    if config_class not in mapping.keys():  # noqa: SIM118 - `in` of this lazy mapping compares names only
        return None
    found = mapping[config_class]
    return found[0] if isinstance(found, tuple) else found


def find_auto_class(model_class: type[PreTrainedModel], config_class: type[PreTrainedConfig]) -> str | None:
    for auto_class in ("AutoModelForCausalLM", *AUTO_CLASSES):
        if auto_class == "AutoBackbone":  # does not load from a folder
            continue
        known = config_class in getattr(transformers, auto_class)._model_mapping
        if known and get_auto_model(auto_class, config_class) is model_class:
            return auto_class
    return None


def find_model_class(model_type: str, config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """The class with a head where there is one."""
    if model_type in overrides.CLASSES:
        name = overrides.CLASSES[model_type]
        found = getattr(transformers, name, None) or find_in_module(config_class, name)
        if found is not None:
            return found
    order = list(AUTO_CLASSES)
    if get_auto_model("AutoModelForMaskedLM", config_class) is None or is_decoder_only(config_class):
        order.insert(order.index("AutoModelForSeq2SeqLM") + 1, "AutoModelForCausalLM")
    for auto_class in order:
        found = get_auto_model(auto_class, config_class)
        if found is not None:
            return found
    found = find_in_module(config_class)
    if found is None:
        raise NotBuildable("no model class of its own")
    return found


def is_decoder_only(config_class: type[PreTrainedConfig]) -> bool:
    return get_auto_model("AutoModelForMaskedLM", config_class) is None


def find_in_module(config_class: type[PreTrainedConfig], name: str | None = None) -> type[PreTrainedModel] | None:
    """A class that no Auto class knows: the first in the model's own module that holds this config."""
    module_name = config_class.__module__.replace(".configuration_", ".modeling_")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError:
        return None
    candidates = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, PreTrainedModel)
        and value.__module__ == module_name
        and (value.__name__ == name if name else value.config_class is config_class)
        and not value.__name__.endswith("PreTrainedModel")
        and not is_unimplemented(value)
    ]
    for ending in ("ForCausalLM", "Model", ""):  # a head before the whole model before a part of it
        for candidate in candidates:
            if candidate.__name__.endswith(ending):
                return candidate
    return None


def is_unimplemented(model_class: type[PreTrainedModel]) -> bool:
    return model_class.forward is torch.nn.Module.forward


def is_recomputed(model: PreTrainedModel, name: str) -> bool:
    """Whether a checkpoint leaves the parameter out: it is a formula, such as sinusoidal positions."""
    return any(re.search(pattern, name) for pattern in model._keys_to_ignore_on_save or ())


def randomize_(model: PreTrainedModel, seed: int) -> None:
    """No two parameters alike: fresh norms and biases are ones and zeros, which would hide a mix-up."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        recomputed = {name for name, _ in model.named_parameters() if is_recomputed(model, name)}
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and name not in recomputed:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        for module in model.modules():
            for name, low in (("running_mean", -0.1), ("running_var", 0.9)):
                buffer = getattr(module, name, None)
                if isinstance(buffer, torch.Tensor) and buffer.is_floating_point():
                    buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.2 + low)


def build_config(model_type: str) -> PreTrainedConfig:
    return tiny_config(CONFIG_MAPPING[model_type])


def build_specimen(model_type: str, seed: int = 0) -> Specimen:
    """A model of the type with inputs, the same on every call with the same seed.

    Raises:
        NotBuildable: With the reason in a few words.
    """
    if model_type in overrides.NOT_BUILDABLE:
        raise NotBuildable(overrides.NOT_BUILDABLE[model_type])
    config_class = CONFIG_MAPPING[model_type]
    model_class = find_model_class(model_type, config_class)
    backends = missing_backends(model_class)
    if backends:
        raise NotBuildable(f"needs package {backends}")
    if is_unimplemented(model_class):
        raise NotBuildable("no plain forward")
    config = build_config(model_type)
    torch.manual_seed(seed)
    model = model_class(config).float().eval()
    randomize_(model, seed)
    inputs, notes = make_inputs(model, model_type, seed)
    return Specimen(model_type, model, inputs, find_auto_class(model_class, config_class), notes)


def missing_backends(model_class: type) -> str:
    """Packages that the class wants and that are not here: transformers hands out a dummy in its place."""
    if not getattr(model_class, "is_dummy", False) and "dummy" not in model_class.__module__:
        return ""
    return ", ".join(getattr(model_class, "_backends", ["?"]))


def main(names: list[str]) -> None:
    """Print per type whether it is built and runs, and the totals."""
    transformers.logging.set_verbosity(50)
    torch.set_num_threads(1)
    counts: dict[str, int] = {}
    for name in names or model_types():
        start = time.perf_counter()
        try:
            specimen = build_specimen(name)
            built = time.perf_counter()
            with torch.no_grad():
                specimen.model(**specimen.inputs)
            state = "ok"
            more = f"{type(specimen.model).__name__} {specimen.auto_class} {sorted(specimen.inputs)} {specimen.notes}"
            more += f" {built - start:.2f}s {time.perf_counter() - built:.3f}s"
        except NotBuildable as error:
            state, more = "not buildable", str(error)
        except Exception as error:  # the command is there to see what goes wrong
            state, more = "fails", f"{type(error).__name__}: {str(error)[:300]}"
        counts[state] = counts.get(state, 0) + 1
        print(f"{name}: {state}: {more}", flush=True)  # noqa: T201
    print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
