"""`Blueprint`: a model rebuilt from its own config, and the proof that the two agree (proof B)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import UnsupportedArchitectureError
from .reference import ModuleDescription, build_reference, describe_modules, plain, reload_config
from .registry import Rules, rules_for


@dataclass(frozen=True)
class Blueprint:
    """What a model's class and config promise, built on the meta device.

    Args:
        model_class (`type[PreTrainedModel]`): the model's class.
        config (`PreTrainedConfig`): its config as it would be after saving and reloading.
        reference (`PreTrainedModel`): the class built from that config, on the meta device.
    """

    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    reference: PreTrainedModel

    @property
    def name(self) -> str:
        """How messages call the model, e.g. `BertModel (model_type 'bert')`."""
        return f"{self.model_class.__name__} (model_type {self.config.model_type!r})"

    @cached_property
    def rules(self) -> Rules:
        """What is known about names in this model."""
        return rules_for(self.config)

    @cached_property
    def modules(self) -> dict[str, ModuleDescription]:
        """Description of every module, by path."""
        return describe_modules(self.reference)

    def rebuild(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Build the class from an edited config, the way `from_pretrained` would after saving it.

        Args:
            config (`PreTrainedConfig`): left as it is.

        Returns:
            `PreTrainedModel`: on the meta device.

        Raises:
            UnsupportedArchitectureError: the config is not valid, or the class cannot be built from it.
        """
        return build_reference(self.model_class, reload_config(config))


def make_blueprint(model: nn.Module) -> Blueprint:
    """Rebuild a model from its config and check that the live model is what the config says.

    Args:
        model (`nn.Module`): a `PreTrainedModel` whose class takes its config as the only argument; left as it is.

    Returns:
        `Blueprint`: built from the saved-and-reloaded config.

    Raises:
        UnsupportedArchitectureError: not such a model, or its parameters or layer numbers are not those of its config
            (cut by hand, adapters inside, quantized).

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> make_blueprint(BertModel(BertConfig(num_hidden_layers=2, vocab_size=9))).name
        "BertModel (model_type 'bert')"
    """
    pretrained = _check_kind(model)
    config = reload_config(pretrained.config)
    blueprint = Blueprint(type(pretrained), config, build_reference(type(pretrained), config))
    _check_live(pretrained, blueprint)
    return blueprint


def _check_kind(model: nn.Module) -> PreTrainedModel:
    kind = type(model).__name__
    if getattr(model, "hf_quantizer", None) is not None:
        raise UnsupportedArchitectureError(
            f"{kind} is quantized: what is left after a cut was never compared with what would be loaded again. Load it "
            "without quantization_config, prune it, and quantize the pruned model."
        )
    if isinstance(model, PreTrainedModel) and isinstance(getattr(model, "config", None), PreTrainedConfig):
        return model
    inner = next((name for name in ("module", "_orig_mod") if hasattr(model, name)), None)
    hint = (
        f"It wraps another module: pass the one inside, model.{inner}."
        if inner
        else "Pass a transformers model, e.g. AutoModelForSequenceClassification.from_pretrained(...)."
    )
    raise UnsupportedArchitectureError(
        f"{kind} is not a transformers PreTrainedModel with a config, so there is no config to rebuild it from. {hint}"
    )


def _check_live(model: PreTrainedModel, blueprint: Blueprint) -> None:
    """Proof B: names and shapes of the live parameters, and the positions of the layers, are those of the config."""
    live, promised = _shapes(model), _shapes(blueprint.reference)
    problems = [
        _list("has no", promised.keys() - live.keys()),
        _list("has in addition", live.keys() - promised.keys()),
        _list("has another shape of", (n for n in live.keys() & promised.keys() if live[n] != promised[n])),
    ]
    if not any(problems):
        problems = [_list("numbers differently", _renumbered(model, blueprint))]
    if any(problems):
        raise UnsupportedArchitectureError(
            f"{blueprint.name}: the model and its config disagree. Compared with what its config builds, the model "
            f"{'; '.join(problem for problem in problems if problem)}. Was it cut by hand, quantized, or given "
            "adapters? Load it again with from_pretrained, or bring model.config in line with the model."
        )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}


def _renumbered(model: nn.Module, blueprint: Blueprint) -> Iterable[str]:
    """Position attributes of the live model that are not those of the reference."""
    promised = blueprint.modules
    for path, module in model.named_modules(remove_duplicate=False):
        for name in blueprint.rules.positions.keys() & vars(module).keys():
            live, values = plain(vars(module)[name]), promised[path].values if path in promised else {}
            if live is not None and name in values and live != values[name]:
                yield f"{path}.{name}"


def _list(verb: str, names: Iterable[str]) -> str:
    """`"has no 'a', 'b' (and 3 more)"`, or nothing for no names."""
    found = sorted(names)
    if not found:
        return ""
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return f"{verb} {', '.join(repr(name) for name in found[:3])}{more}"
