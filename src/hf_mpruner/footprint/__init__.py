"""What a model takes: bytes on disk and in memory, cache per token, peak memory of a piece of work."""

from .cache import CacheSize, measure_cache
from .measure import measure_costs
from .peak import PeakMemory
from .saved import saved_bytes, weight_files_bytes

__all__ = ["CacheSize", "PeakMemory", "measure_cache", "measure_costs", "saved_bytes", "weight_files_bytes"]
