"""`Placement`: what a user asks for in words, checked, as arguments of `from_pretrained`."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from hf_mpruner.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedConfig

Quantization = Literal["8bit", "4bit"]
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
SHARING = ("auto", "balanced", "balanced_low_0", "sequential")
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "float": "float32"}

# transformers reads names of modules to leave alone as patterns. By default it means to leave out the head, but takes the
# last parameter for it, which is a bias as often as not.
_OUTSIDE = r"(?!.*\.\d+\.).*"


@dataclass(frozen=True)
class Placement:
    """Where a model's weights lie, and in how many bits. Names and values are those of `from_pretrained`.

    Args:
        device_map (`str` or `Mapping[str, int | str]`, *optional*): `"auto"` (fill accelerators, then memory, then the disk)
            or another of accelerate's words, a device, or for each module where it goes. By default the model is loaded
            into memory and moved to the accelerator as a whole.
        max_memory (`Mapping[int | str, int | str]`, *optional*): the most to use of each accelerator (by number) and of `"cpu"`,
            e.g. `{0: "20GB", "cpu": "60GB"}`; what does not fit goes to the disk.
        offload_folder (`str`, *optional*): for weights that are on the disk in another form than the model needs (old
            `.bin` files, experts that are put together); ordinary safetensors are read where they are.
        dtype (`str`): `"auto"` for the type they were saved in, or one of `DTYPES`.
        quantization (`"8bit"` or `"4bit"`, *optional*): load the linear layers of blocks in so many bits, with bitsandbytes; heads
            and embeddings stay as they are.

    Raises:
        ValueError: for what cannot be, naming what can.

    Example:
        >>> Placement(device_map="auto", max_memory={"cpu": "8GB"}, dtype="bfloat16").arguments()
        {'dtype': torch.bfloat16, 'device_map': 'auto', 'max_memory': {'cpu': '8GB'}}
    """

    device_map: str | Mapping[str, int | str] | None = None
    max_memory: Mapping[int | str, int | str] = field(default_factory=dict)
    offload_folder: str | None = None
    dtype: str = "auto"
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be loaded, before anything is."""
        if self.dtype not in DTYPES:
            meant = _SHORT.get(self.dtype.removeprefix("torch."), self.dtype.removeprefix("torch."))
            hint = f" Did you mean {meant!r}?" if meant in DTYPES else ""
            raise ValueError(f"dtype={self.dtype!r} is not one of {', '.join(DTYPES)}.{hint}")
        if self.quantization is not None and self.quantization not in get_args(Quantization):
            raise ValueError(f"quantization={self.quantization!r} is not one of {', '.join(get_args(Quantization))}.")
        if self.quantization and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                f"quantization={self.quantization!r} needs bitsandbytes, which is not installed: pip install bitsandbytes."
            )
        for name in ("max_memory", "offload_folder"):
            if getattr(self, name) and self.device_map is None:
                raise ValueError(
                    f"{name} says where parts of a model go, and needs device_map: pass device_map='auto'."
                )
        self._check_devices()
        self._check_memory()
        if self.offload_folder is not None:
            _check_folder(self.offload_folder)

    @property
    def is_default(self) -> bool:
        """Whether the model is loaded as it was saved, as a whole."""
        return self == Placement()

    @property
    def places(self) -> bool:
        """Whether loading puts the weights where they stay, so that the model must not be moved."""
        return self.device_map is not None or self.quantization is not None

    def arguments(self, config: PreTrainedConfig | None = None) -> dict[str, Any]:
        """Arguments of `from_pretrained`.

        Args:
            config (`PreTrainedConfig`, *optional*): of the checkpoint: says its type of numbers, and whether it is quantised
                already.

        Raises:
            ValueError: if quantisation is asked for of a checkpoint that is quantised.
        """
        own = None if config is None else getattr(config, "quantization_config", None)
        if own is not None and self.quantization is not None:
            method = own.get("quant_method") if isinstance(own, Mapping) else getattr(own, "quant_method", "")
            raise ValueError(
                f"The checkpoint is quantised already ({getattr(method, 'value', method) or 'see its config.json'}) and is "
                "loaded as it is: leave out quantization."
            )
        found: dict[str, Any] = {"dtype": self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)}
        for name in ("device_map", "max_memory", "offload_folder"):
            if value := getattr(self, name):
                found[name] = dict(value) if isinstance(value, Mapping) else value
        if isinstance(self.device_map, Mapping):
            found["device_map"] = as_accelerate_takes_it(self.device_map)
        if self.quantization is not None:
            found["quantization_config"] = self._quantised(getattr(config, "dtype", None))
        return found

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Around `from_pretrained`, which writes to `offload_folder` as it goes: how much is known only then.

        Raises:
            CheckpointError: if the folder's disk is full; names the folder and what to do.
        """
        from safetensors import SafetensorError

        try:
            yield
        except SafetensorError as error:
            if self.offload_folder is None or "serializ" not in str(error):  # it reads files, too
                raise
            files = list(Path(self.offload_folder).expanduser().glob("*.safetensors"))
            raise CheckpointError(
                f"offload_folder={self.offload_folder!r} cannot hold the weights ({error}). {len(files)} files lie there, "
                f"{sum(file.stat().st_size for file in files)} bytes, which are of no use without the others: delete them, "
                "and pass a folder on a disk with more room; or a checkpoint in safetensors, which is read where it is."
            ) from error

    def _quantised(self, saved: Any) -> BitsAndBytesConfig:
        from transformers import BitsAndBytesConfig

        if self.quantization == "8bit":
            # what does not fit on an accelerator stays in 32 bits beside it, instead of being refused
            spills = self.device_map is not None
            return BitsAndBytesConfig(
                load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=spills, llm_int8_skip_modules=[_OUTSIDE]
            )
        compute = saved if self.dtype == "auto" else getattr(torch, self.dtype)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            llm_int8_skip_modules=[_OUTSIDE],
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute if isinstance(compute, torch.dtype) else torch.float32,
        )

    def _check_devices(self) -> None:
        where = self.device_map
        if where is None or where in SHARING:
            return
        for device in set(where.values()) if isinstance(where, Mapping) else {where}:
            if device == "disk" and isinstance(where, Mapping):
                continue
            try:
                kind = torch.device(device)
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"device_map={where!r}: {device!r} is no device. Pass one of {', '.join(SHARING)}, a device "
                    f"({', '.join(_devices())}), or a JSON object from modules to devices, e.g. "
                    '{"": "disk"} for all on the disk.'
                ) from error
            if kind.type != "cpu" and (kind.type, kind.index or 0) not in _accelerators():
                raise ValueError(
                    f"device_map={where!r}: there is no {device!r} here. Devices: {', '.join(_devices())}. 'auto' takes what "
                    "there is."
                )

    def _check_memory(self) -> None:
        from accelerate.utils import convert_file_size_to_int

        known = {*_numbers(), "cpu"}
        for device, size in self.max_memory.items():
            if device not in known:
                raise ValueError(
                    f"max_memory names {device!r}, which is not here. Allowed: "
                    f"{', '.join(map(str, sorted(known, key=str)))} (accelerators by number, and cpu)."
                )
            try:
                convert_file_size_to_int(size)
            except (ValueError, TypeError) as error:
                raise ValueError(f"max_memory: {size!r} is no size. Write e.g. 20GB or 500MB.") from error


def streaming_places() -> tuple[str | dict[str, int | str], dict[int | str, int]]:
    """Where the weights of a model lie by default that is read layer by layer, as `device_map` and `max_memory`.

    Nothing stays in memory: what does not fit into half of each accelerator's free memory stays on the disk and comes to
    the accelerator layer by layer; the other half is for what the layers put out. Without an accelerator all stays on the disk.

    Example:
        >>> device_map, max_memory = streaming_places()
        >>> (device_map, max_memory) == ({"": "disk"}, {}) or max_memory["cpu"] == 0
        True
    """
    from accelerate.utils import get_max_memory

    # Macs share one memory with their accelerator, which get_max_memory names "mps".
    most: dict[int | str, int] = {
        device: size // 2 for device, size in get_max_memory().items() if device in _numbers()
    }
    return ("auto", {**most, "cpu": 0}) if most else ({"": "disk"}, {})


def as_accelerate_takes_it(device_map: Mapping[str, int | str]) -> dict[str, int | str]:
    """The map; before 1.15 accelerate refuses one that leaves all of a model on the disk, but for the name of a module.

    Args:
        device_map (`Mapping[str, int | str]`): from modules to devices.
    """
    from accelerate.utils import compare_versions

    alone = set(device_map.values()) == {"disk"} and compare_versions("accelerate", "<", "1.15.0")
    return {**device_map, "no_module_of_the_model": "cpu"} if alone else dict(device_map)


def _accelerators() -> list[tuple[str, int]]:
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [] if kind is None else [(kind.type, number) for number in range(torch.accelerator.device_count())]


def _numbers() -> range:
    return range(len(_accelerators()))


def _devices() -> list[str]:
    return [*(f"{kind}:{number}" for kind, number in _accelerators()), "cpu"]


def _check_folder(folder: str) -> None:
    """Refuse a folder that cannot be written to; it is made, as `from_pretrained` would."""
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"offload_folder={folder!r} cannot be written to ({error.strerror or error}). Pass a folder of your own on a "
            "disk with room for the weights that do not fit into memory."
        ) from error
