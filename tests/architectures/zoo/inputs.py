"""Inputs that a model runs on, read off the signature of its forward and its config."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from zoo import overrides
from zoo.sizes import FIRST_TEXT_TOKEN, IMAGE, STAGED_IMAGE, VOCABULARY

BATCH = 2
LENGTH = 9


def walk(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """The config and all below it, itself first."""
    found = [config]
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            found += walk(value)
    return found


class Maker:
    """Makes the inputs of one model."""

    def __init__(self, model: PreTrainedModel, model_type: str, seed: int) -> None:
        self.model = model
        self.config = model.config
        self.model_type = model_type
        self.generator = torch.Generator().manual_seed(seed + 2)
        self.parameters = list(inspect.signature(model.forward).parameters)
        self.notes = ""

    def noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def numbers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def ids(self, length: int = LENGTH, batch: int = BATCH, vocabulary: int | None = None) -> torch.Tensor:
        vocabulary = vocabulary or self.find("vocab_size", VOCABULARY)
        return self.numbers(min(FIRST_TEXT_TOKEN, vocabulary // 2), vocabulary, batch, length)

    def find(self, name: str, default: Any = None, under: PreTrainedConfig | None = None) -> Any:
        """A value of the config or the first of its sub-configs that holds it."""
        for config in walk(under or self.config):
            value = vars(config).get(config.attribute_map.get(name, name))
            if value is not None:
                return value
        return default

    def number(self, *names: str, default: int, under: PreTrainedConfig | None = None) -> int:
        """The first of the names that the config knows as one number."""
        for name in names:
            value = self.find(name, under=under)
            if isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
                value = value[-1]
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return default

    @property
    def vision(self) -> PreTrainedConfig:
        for config in walk(self.config):
            for name in ("vision_config", "vision_encoder_config", "image_encoder"):
                value = vars(config).get(name)
                if isinstance(value, PreTrainedConfig):
                    return value
        return self.config

    def image_side(self) -> tuple[int, int]:
        for config in [*walk(self.vision), *walk(self.config)]:
            for name in ("image_size", "input_size", "img_size", "resolution"):
                value = vars(config).get(name)
                if isinstance(value, int) and value >= 16:
                    return value, value
                if isinstance(value, (list, tuple)) and len(value) == 2:
                    return value[0], value[1]
        staged = self.find("depths") is not None or self.find("patch_size") is None
        return (STAGED_IMAGE, STAGED_IMAGE) if staged else (IMAGE, IMAGE)

    def image(self, *before: int) -> torch.Tensor:
        channels = self.number("num_channels", "in_channels", "in_chans", default=3, under=self.vision)
        return self.noise(*(before or (BATCH,)), channels, *self.image_side())

    def patches(self, grid: torch.Tensor) -> torch.Tensor:
        """Pixels of all images, one flattened patch per row."""
        channels = self.number("in_channels", "num_channels", "in_chans", default=3, under=self.vision)
        frames = self.number("temporal_patch_size", default=1, under=self.vision)
        side = self.number("patch_size", default=8, under=self.vision)
        return self.noise(int(grid.prod(-1).sum()), channels * frames * side * side)

    def grid(self) -> torch.Tensor:
        merge = self.number("spatial_merge_size", "merge_size", "merge_kernel_size", default=2, under=self.vision)
        return torch.tensor([[1, 2 * merge, 2 * merge]] * BATCH)


def make_text(maker: Maker) -> dict[str, Any]:
    names = maker.parameters
    made: dict[str, Any] = {}
    if "input_ids" in names:
        made["input_ids"] = maker.ids()
        made["attention_mask"] = torch.ones_like(made["input_ids"])
    if "decoder_input_ids" in names and maker.config.is_encoder_decoder:
        made["decoder_input_ids"] = maker.ids()
    if "bbox" in names:
        made["bbox"] = maker.numbers(0, 40, BATCH, LENGTH, 4).sort(-1).values
    return made


def make_pixels(maker: Maker, names: list[str]) -> dict[str, Any]:
    """Pixels in the form that a function with these parameters wants."""
    grid = maker.grid()
    for name in ("image_grid_thw", "grid_thw", "image_grid_hws", "image_grid_hw"):
        if name in names:
            pixels = "hidden_states" if "hidden_states" in names else "pixel_values"
            return {pixels: maker.patches(grid), name: grid if name.endswith("thw") else grid[:, 1:]}
    if "spatial_shapes" in names:
        patches = maker.patches(torch.tensor([[1, 4, 4]] * BATCH)).unflatten(0, (BATCH, 16))
        found = {"pixel_values": patches, "spatial_shapes": torch.tensor([[4, 4]] * BATCH)}
        return {**found, "pixel_attention_mask": torch.ones(BATCH, 16, dtype=torch.long)}
    made: dict[str, Any] = {"pixel_values": maker.image()}
    if "image_sizes" in names:
        made["image_sizes"] = torch.tensor([list(maker.image_side())] * BATCH)
    return made


def get_feature_function(model: PreTrainedModel, kind: str) -> Any:
    for holder in (model, getattr(model, "model", None), getattr(model, "base_model", None)):
        function = getattr(holder, f"get_{kind}_features", None)
        if function is not None:
            return function
    return None


def count_features(output: Any) -> int:
    """Rows of features in what `get_image_features` and its like return, over the batch."""
    output = getattr(output, "pooler_output", output)
    if isinstance(output, torch.Tensor):
        return output.shape[:-1].numel()
    return sum(count_features(item) for item in output if item is not None)


def find_token(maker: Maker, kind: str) -> int | None:
    names = [
        f"{kind}_token_id",
        f"{kind}_token_index",
        f"{kind}_patch_id",
        f"{kind}_patch_token_id",
        f"{kind}_pad_token_id",
    ]
    return next((found for name in names if isinstance(found := maker.find(name), int)), None)


def put_tokens(maker: Maker, made: dict[str, Any], token: int, count: int) -> None:
    """Placeholders for `count` features per row, after the first token of the text."""
    ids = made["input_ids"]
    holes = torch.full((BATCH, count), token)
    made["input_ids"] = torch.cat([ids[:, :1], holes, ids[:, 1:]], dim=1)
    made["attention_mask"] = torch.ones_like(made["input_ids"])
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in maker.parameters:
            made[name] = (made["input_ids"] == token).long()


def add_features(maker: Maker, made: dict[str, Any], kind: str, data: dict[str, Any]) -> bool:
    """Hand `data` to the model and put as many placeholders into the text as it makes features of it."""
    function, token = get_feature_function(maker.model, kind), find_token(maker, kind)
    if function is None or token is None:
        return False
    parameters = inspect.signature(function).parameters
    with torch.no_grad():
        count = count_features(function(**{name: value for name, value in data.items() if name in parameters}))
    made.update(data)
    put_tokens(maker, made, token, count // BATCH)
    return True


def make_audio(maker: Maker, names: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if "input_features" in names:
        bins = maker.number(
            "feature_projection_input_dim", "num_mel_bins", "feature_size", "input_feat_per_channel", default=80
        )
        positions = maker.find("max_source_positions")
        if (positions and "whisper" in type(maker.model).__module__) or "qwen" in maker.model_type:
            made["input_features"] = maker.noise(BATCH, bins, positions * 2)
        else:
            made["input_features"] = maker.noise(BATCH, 64, bins)
    if "input_values" in names:
        made["input_values"] = maker.noise(BATCH, 1200)
    return made


def make_inputs(model: PreTrainedModel, model_type: str, seed: int) -> tuple[dict[str, Any], str]:
    """Inputs for one forward, and what of the model they leave out."""
    maker = Maker(model, model_type, seed)
    special = overrides.INPUTS.get(model_type, {})
    if callable(special):
        return special(maker), maker.notes
    made = {} if special.get("only") else guess(maker)
    for name, value in special.items():
        if name == "only":
            continue
        if value is None:
            made.pop(name, None)
        elif isinstance(value, tuple):
            made[name] = maker.noise(*value)
        elif isinstance(value, list):
            made[name] = torch.tensor(value)
        else:
            made[name] = value(maker) if callable(value) else value
    return {name: value for name, value in made.items() if name in maker.parameters}, maker.notes


def guess(maker: Maker) -> dict[str, Any]:
    names, main = maker.parameters, maker.model.main_input_name
    made = make_text(maker)
    if (
        main in ("input_features", "input_values")
        or (not made
        and ("input_features" in names or "input_values" in names))
    ):
        made.update(make_audio(maker, names))
    if main == "pixel_values_videos":
        made["pixel_values_videos"] = maker.image(BATCH, maker.number("frames_per_clip", default=2))
    elif "pixel_values" in names or "grid_thw" in names:
        pixels = make_pixels(maker, names)
        if "input_ids" not in made:
            made.update(pixels)
        elif not add_features(maker, made, "image", pixels):
            if find_token(maker, "image") is not None:
                maker.notes = "no pixels"
            else:
                made.update(pixels)
    if "encoder_hidden_states" in names and not made.get("input_ids", None) is not None:
        made["encoder_hidden_states"] = maker.noise(
            BATCH, 7, maker.number("encoder_hidden_size", "hidden_size", default=32)
        )
        if "query_embeds" in names:
            made["query_embeds"] = maker.noise(BATCH, 4, maker.number("hidden_size", default=32))
    if not made:
        raise ValueError(f"no inputs for {main}: {names}")
    return made
