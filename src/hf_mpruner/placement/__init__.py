"""Where a model's weights lie while it is measured: devices, memory, disk, fewer bits."""

from hf_mpruner.placement.devices import check_not_offloaded, input_device, is_dispatched, offloaded
from hf_mpruner.placement.quantized import is_quantised, measurable_stacks, unquantised
from hf_mpruner.placement.request import DTYPES, SHARING, Placement, streaming_places

__all__ = [
    "DTYPES",
    "SHARING",
    "Placement",
    "check_not_offloaded",
    "input_device",
    "is_dispatched",
    "is_quantised",
    "measurable_stacks",
    "offloaded",
    "streaming_places",
    "unquantised",
]
