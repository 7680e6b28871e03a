"""Where a model's weights lie while it is measured: devices, memory, disk, fewer bits."""
