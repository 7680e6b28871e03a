"""Flags that say where a model's weights lie while it is measured, and in how many bits."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .parser import UsageError
from .processes import check_one_process

if TYPE_CHECKING:
    from hf_mpruner.config import PruningConfig
    from hf_mpruner.placement import Placement

# Written out, so that --help needs no torch; a test compares.
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
QUANTIZATIONS = ("8bit", "4bit")
_FLAGS = ("device_map", "max_memory", "offload_folder", "dtype", "quantization")


def add_placement_flags(parser: argparse.ArgumentParser) -> None:
    """The flags, with the names that `from_pretrained` has for them."""
    group = parser.add_argument_group("memory", "for models that are larger than it; names as in from_pretrained")
    group.add_argument(
        "--device_map",
        metavar="MAP",
        help="auto: fill accelerators, then memory, then leave weights on the disk; or a device, or JSON from modules to "
        "devices (default: the whole model in memory, then on the accelerator)",
    )
    group.add_argument(
        "--max_memory",
        nargs="+",
        metavar="DEVICE=SIZE",
        help="the most to use of each, e.g. 0=20GB cpu=60GB; with --device_map",
    )
    group.add_argument(
        "--offload_folder", metavar="DIR", help="for weights that are not on the disk as the model needs them"
    )
    group.add_argument("--dtype", default="auto", help=f"of the weights: {', '.join(DTYPES)} (default: as saved)")
    group.add_argument("--quantization", choices=QUANTIZATIONS, help="load the blocks in so many bits (bitsandbytes)")
    group.add_argument(
        "--stream_layers",
        action="store_true",
        help="read each layer from the disk once and run all examples through it, instead of all layers for each batch; "
        "without --device_map, weights beyond half of the accelerator's free memory (without one, all) stay on the disk",
    )


def read_placement(args: argparse.Namespace) -> Placement:
    """What the flags ask for.

    Raises:
        UsageError: for what cannot be, naming what can.
    """
    from hf_mpruner.placement import Placement, streaming_places

    device_map, max_memory = _device_map(args.device_map), _max_memory(args.max_memory or ())
    if args.stream_layers and device_map is None:
        device_map, most = streaming_places()
        max_memory = {**most, **max_memory}
    try:
        return Placement(
            device_map=device_map,
            max_memory=max_memory,
            offload_folder=args.offload_folder,
            dtype=args.dtype,
            quantization=args.quantization,
        )
    except ValueError as error:
        raise UsageError(f"--{error}" if str(error).startswith(_FLAGS) else str(error)) from error


def check_streams(args: argparse.Namespace, config: PruningConfig) -> None:
    """Refuse `--stream_layers` for what needs the whole model for each batch.

    Raises:
        UsageError: saying what to leave out.
    """
    if not args.stream_layers:
        return
    from hf_mpruner.similarity import SimilarityProtocol

    check_one_process("hf-mpruner analyze --stream_layers")
    obstacles = {
        "--halves": args.halves,
        f"--criterion {config.criterion} with a number of layers": not config.plans_by_threshold,
        "--similarity_error_rate": config.stop is not None,
        "all tokens of a batch in one Gram matrix": SimilarityProtocol.named(config.protocol).is_pooled,
    }
    for what in (name for name, asked in obstacles.items() if asked):
        raise UsageError(
            f"--stream_layers runs all examples through one layer before it reads the next, and {what} looks at all layers of "
            "each batch. Leave out one of them; --device_map auto alone measures models that do not fit, too."
        )


def check_alone_in_memory(placement: Placement) -> None:
    """Refuse several processes that would each spread a model over the same devices.

    Raises:
        UsageError: saying what to leave out.
    """
    if placement.device_map is not None:
        check_one_process(
            "hf-mpruner analyze --device_map",
            "Or leave out --device_map: each process then holds a whole model, on a device of its own.",
        )


def is_placed(args: argparse.Namespace) -> bool:
    """Whether the model was not loaded whole, as it was saved: nobody would train it the same way."""
    return args.device_map is not None or args.quantization is not None or args.stream_layers


def _device_map(text: str | None) -> Any:
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f'--device_map {text}: no JSON object ({error}). Write e.g. \'{{"": "disk"}}\', quoted for the shell.'
        ) from error
    return found


def _max_memory(words: Sequence[str]) -> dict[int | str, int | str]:
    """`["0=20GB", "cpu=60GB"]` as accelerate takes it."""
    found: dict[int | str, int | str] = {}
    for word in words:
        device, equals, size = word.partition("=")
        if not equals:
            raise UsageError(f"--max_memory {word}: write DEVICE=SIZE, e.g. 0=20GB or cpu=60GB.")
        found[int(device) if device.isdigit() else device] = size
    return found
