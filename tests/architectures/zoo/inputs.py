"""Inputs that a model runs on, read off the signature of its forward and its config."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from zoo import overrides
from zoo.sizes import FIRST_TEXT_TOKEN, IMAGE, STAGED_IMAGE, VOCABULARY, WIDTH

BATCH = 2
LENGTH = 9
KINDS = ("image", "video", "audio")
"""As `mm_token_type_ids` counts them, from 1."""


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
        vocabulary = vocabulary or self.vocabulary()
        return self.numbers(min(FIRST_TEXT_TOKEN, vocabulary // 2), vocabulary, batch, length)

    def vocabulary(self) -> int:
        text = self.config if "vocab_size" in vars(self.config) else vars(self.config).get("text_config")
        found = self.find("vocab_size", VOCABULARY, under=text)
        return min(found, VOCABULARY)

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
        frames = self.number("temporal_patch_size", "patch_temporal", default=1, under=self.vision)
        side = self.number("patch_size", default=8, under=self.vision)
        return self.noise(int(grid.prod(-1).sum()), channels * frames * side * side)

    def places(self, side: int) -> torch.Tensor:
        """Column and row of each patch of a square, per row of the batch."""
        return torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(-1).expand(BATCH, -1, -1).clone()

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
    frames = maker.number("num_frames", default=0)
    if "pixel_attention_mask" in names:  # several images per row
        made: dict[str, Any] = {"pixel_values": maker.image(BATCH, 1)}
    else:
        made = {"pixel_values": maker.image(BATCH, frames) if frames else maker.image()}
    if "image_sizes" in names and maker.vision.model_type == "pixtral":
        made["image_sizes"] = torch.tensor([list(maker.image_side())] * BATCH)
    return made


def get_feature_function(model: PreTrainedModel, kind: str) -> Any:
    for holder in (getattr(model, "model", None), getattr(model, "base_model", None), model):
        function = getattr(holder, f"get_{kind}_features", None)
        if function is not None:
            return function
    return None


def count_features(output: Any) -> int:
    """Rows of features in what `get_image_features` and its like return, over the batch."""
    found = [getattr(output, name, None) for name in ("pooler_output", "last_hidden_state")]
    output = next((value for value in found if value is not None), output)
    if hasattr(output, "deepstack_features") and not isinstance(output, torch.Tensor):
        output = output.deepstack_features[0][1]  # the same number of features for each of several layers
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
    kinds = {token: number for number, kind in enumerate(KINDS) if (token := find_token(maker, kind)) is not None}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in maker.parameters:
            made[name] = sum((made["input_ids"] == token).long() * (number + 1) for token, number in kinds.items())


def add_features(maker: Maker, made: dict[str, Any], kind: str, data: dict[str, Any]) -> bool:
    """Hand `data` to the model and put as many placeholders into the text as it makes features of it."""
    function, token = get_feature_function(maker.model, kind), find_token(maker, kind)
    if function is None or token is None:
        return False
    parameters = inspect.signature(function).parameters
    with torch.no_grad():
        wanted = {name: value for name, value in data.items() if name in parameters}
        count = count_features(function(**(wanted or data)))
    made.update(data)
    put_tokens(maker, made, token, count // BATCH)
    return True


def get_required(function: Any) -> list[str]:
    return [name for name, value in inspect.signature(function).parameters.items() if value.default is value.empty]


def make_audio(maker: Maker, names: list[str]) -> dict[str, Any]:
    """Sound in the form that a function with these parameters wants."""
    made: dict[str, Any] = {}
    if "input_features" in names:
        bins = maker.number(
            "feature_projection_input_dim", "num_mel_bins", "feature_size", "input_feat_per_channel", default=80
        )
        positions = maker.find("max_source_positions")
        spectrum = "speech_to_text" not in maker.model_type and maker.find("feature_projection_input_dim") is None
        if isinstance(positions, int) and spectrum:
            made["input_features"] = maker.noise(BATCH, bins, positions * 2)
        else:
            made["input_features"] = maker.noise(BATCH, 64, bins)
        for name in ("feature_attention_mask", "input_features_mask"):
            if name in names:
                made[name] = torch.ones(BATCH, max(made["input_features"].shape[1:]), dtype=torch.long)
    elif "input_values" in names:
        mono = any(maker.find(name) is not None for name in ("audio_channels", "codebook_size", "upsampling_ratios"))
        made["input_values"] = maker.noise(BATCH, 1, 960) if mono else maker.noise(BATCH, 1200)
    return made


def make_inputs(model: PreTrainedModel, model_type: str, seed: int) -> tuple[dict[str, Any], str]:
    """Inputs for one forward, and what of the model they leave out."""
    maker = Maker(model, model_type, seed)
    special = overrides.INPUTS.get(model_type, {})
    parts = {kind: fill(maker, special[kind]) for kind in ("image", "audio") if isinstance(special.get(kind), dict)}
    rest = {name: value for name, value in special.items() if name not in (*parts, "only", "notes", "tokens")}
    made = {} if special.get("only") else guess(maker, parts)
    made.update(fill(maker, rest))
    for kind, count in special.get("tokens", {}).items():
        put_tokens(maker, made, find_token(maker, kind), count)
    maker.notes = special.get("notes", maker.notes).strip()
    made = {name: value for name, value in made.items() if value is not None}
    if not made:
        raise ValueError(f"no inputs for {model.main_input_name}: {maker.parameters}")
    return {name: value for name, value in made.items() if name in maker.parameters}, maker.notes


def fill(maker: Maker, values: dict[str, Any]) -> dict[str, Any]:
    """Tensors for what the table of overrides says."""
    found = {}
    for name, value in values.items():
        if isinstance(value, tuple):
            found[name] = maker.noise(*value)
        elif isinstance(value, list):
            found[name] = torch.tensor(value)
        else:
            found[name] = value(maker) if callable(value) else value
    return found


def guess(maker: Maker, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Text, pictures, sound: what the signature asks for."""
    names, main = maker.parameters, maker.model.main_input_name
    made = make_text(maker)
    has_sound = "input_features" in names or "input_values" in names
    if main in ("input_features", "input_values") or (not made and has_sound):
        made.update(parts.get("audio") or make_audio(maker, names))
    if main == "pixel_values_videos":
        made["pixel_values_videos"] = maker.image(BATCH, maker.number("frames_per_clip", "num_frames", default=2))
    elif "pixel_values" in names or "grid_thw" in names or "image" in parts:
        pixels = parts["image"] if "image" in parts else make_pixels(maker, names)
        if "input_ids" not in made:
            made.update(pixels)
        elif pixels and not add_features(maker, made, "image", pixels):
            if find_token(maker, "image") is not None and "pixel_values" not in get_required(maker.model.forward):
                maker.notes = "no pixels"
            else:
                made.update(pixels)
    if has_sound and main == "input_ids" and find_token(maker, "audio") is not None:
        sound = parts["audio"] if "audio" in parts else make_audio(maker, names)
        if not sound or not add_features(maker, made, "audio", sound):
            maker.notes += " no sound"
    add_hidden(maker, made)
    return made


def add_hidden(maker: Maker, made: dict[str, Any]) -> None:
    """Hidden states, for parts of models that are models of their own."""
    names, required = maker.parameters, get_required(maker.model.forward)
    width = maker.number("hidden_size", "d_model", default=WIDTH)
    for name in ("inputs_embeds", "hidden_states"):
        if not made and name in names and name in (*required, maker.model.main_input_name, "inputs_embeds"):
            made[name] = maker.noise(BATCH, LENGTH, width)
    if "encoder_hidden_states" in names and "input_ids" not in made:
        made["encoder_hidden_states"] = maker.noise(
            BATCH, 7, maker.number("encoder_hidden_size", "hidden_size", default=WIDTH)
        )
        if "query_embeds" in names:
            made["query_embeds"] = maker.noise(BATCH, 4, width)
