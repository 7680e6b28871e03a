"""`ModelFacts`: what a card says about the model itself, from the live one or from its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from hf_mpruner.heads import find_head

from .front import read_metadata

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# File beside the model -> the Auto class that reads it; the first that is there.
_PROCESSOR_FILES = (
    ("processor_config.json", "AutoProcessor"),
    ("tokenizer_config.json", "AutoTokenizer"),
    ("tokenizer.json", "AutoTokenizer"),
)
_DEFAULT_IMAGE_SIZE = 224


@dataclass(frozen=True)
class ModelFacts:
    """What a card says about the model itself.

    Args:
        class_name (`str`): e.g. `"BertForSequenceClassification"`.
        loader (`str`, *optional*): what `from_pretrained` is called on: the Auto class of its task, or its own class;
            `None` if only the author's script has that class.
        module (`str`, *optional*): what the loader is imported from.
        task (`str`, *optional*): name in `hf_mpruner.heads`; `None` if the class has no head of a known task.
        pipeline_tag (`str`, *optional*): what the Hub calls the task.
        model_type (`str`, *optional*): `config.model_type`.
        processor (`str`, *optional*): the Auto class of what lies beside the model; `None` if nothing does.
        own_code (`bool`): whether the model brings Python code of its own.
        base_model (`str`, *optional*): what the README.md in the folder says it was made from.
        config (`dict`): the values of `config.json`.
    """

    class_name: str
    loader: str | None = None
    module: str | None = None
    task: str | None = None
    pipeline_tag: str | None = None
    model_type: str | None = None
    processor: str | None = None
    own_code: bool = False
    base_model: str | None = None
    config: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def auto_class(self) -> str | None:
        """The loader, if it is an Auto class."""
        return self.loader if self.loader and self.loader.startswith("Auto") else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(channels, height, width)` of a picture as the model takes it."""
        size = self.config.get("image_size") or _DEFAULT_IMAGE_SIZE
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return self.config.get("num_channels") or 3, height, width

    @classmethod
    def of_model(cls, model: PreTrainedModel, processing_class: Any = None) -> ModelFacts:
        """Of a model in memory, and the tokenizer or processor that is saved with it."""
        kind = type(model)
        return cls._made(
            kind.__name__,
            kind.__module__,
            model.config.to_dict(),
            model.config.model_type,
            _auto_class(processing_class),
        )

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str]) -> ModelFacts:
        """Of a saved model: `config.json`, which processor lies beside it, and the base that its README.md names.

        No code of the model is run.

        Raises:
            FileNotFoundError: if there is no `config.json`.
            ValueError: if it names no class.
        """
        file = Path(folder) / "config.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"No model in '{folder}': there is no config.json. Pass the folder that save_pretrained wrote."
            )
        config = json.loads(file.read_text(encoding="utf-8"))
        names = config.get("architectures") or []
        if not names:
            raise ValueError(
                f"'{file}' names no class ('architectures' is {config.get('architectures')!r}). Save the model with "
                "model.save_pretrained(folder)."
            )
        facts = cls._made(names[0], None, config, config.get("model_type"), processor_in(Path(folder)))
        return replace(facts, base_model=_base_in(Path(folder) / "README.md"))

    @classmethod
    def _made(
        cls, class_name: str, module: str | None, config: dict[str, Any], model_type: str | None, processor: str | None
    ) -> ModelFacts:
        auto_map = config.get("auto_map") or {}
        like = SimpleNamespace(model_type=model_type, auto_map=auto_map, architectures=[class_name])
        head = find_head(cast("PreTrainedConfig", like), class_name)
        loader, source = _loader(class_name, module, auto_map, head.auto_class if head else None)
        return cls(
            class_name=class_name,
            loader=loader,
            module=source,
            task=head.task if head else None,
            pipeline_tag=head.pipeline_tag if head else None,
            model_type=model_type,
            processor=processor,
            own_code=any(name == loader for name in auto_map),
            config=config,
        )


def _loader(
    class_name: str, module: str | None, auto_map: Mapping[str, Any], auto_class: str | None
) -> tuple[str | None, str | None]:
    """Name and module of what loads the model, if anyone but its author can import that."""
    import transformers

    if auto_class:
        return auto_class, "transformers"
    own = [auto for auto, code in auto_map.items() if isinstance(code, str) and code.rpartition(".")[2] == class_name]
    if own:
        return own[0], "transformers"
    if hasattr(transformers, class_name) and (module is None or module.startswith("transformers.")):
        return class_name, "transformers"
    # a class of a script can be imported by nobody else
    return (class_name, module) if module not in (None, "__main__") else (None, None)


def _auto_class(processing_class: Any) -> str | None:
    if processing_class is None:
        return None
    from transformers import FeatureExtractionMixin, PreTrainedTokenizerBase, ProcessorMixin

    if isinstance(processing_class, ProcessorMixin):
        return "AutoProcessor"
    if isinstance(processing_class, PreTrainedTokenizerBase):
        return "AutoTokenizer"
    if isinstance(processing_class, FeatureExtractionMixin):
        return "AutoFeatureExtractor"
    return "AutoImageProcessor" if "ImageProcessor" in type(processing_class).__name__ else "AutoProcessor"


def processor_in(folder: Path) -> str | None:
    """The Auto class of the tokenizer or processor in a model's folder; `None` if there is none."""
    for name, auto in _PROCESSOR_FILES:
        if (folder / name).is_file():
            return auto
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return None
    values = json.loads(file.read_text(encoding="utf-8"))
    return "AutoFeatureExtractor" if "feature_extractor_type" in values else "AutoImageProcessor"


def _base_in(card: Path) -> str | None:
    if not card.is_file():
        return None
    try:
        base = read_metadata(card.read_text(encoding="utf-8")).get("base_model")
    except ValueError:  # whoever writes the card says what is wrong with it
        return None
    base = base[0] if isinstance(base, list) and len(base) == 1 else base
    return base if isinstance(base, str) else None
