"""Where a model's weights lie while it is measured: devices, memory, disk, fewer bits."""

from hf_mpruner.placement.devices import check_not_offloaded, input_device, is_dispatched, offloaded

__all__ = ["check_not_offloaded", "input_device", "is_dispatched", "offloaded"]
