"""Forward hooks that turn block outputs into rows and feed the accumulator. They hoard nothing."""

from hf_mpruner.features.layerwise import measure_layer_by_layer
from hf_mpruner.features.measure import measure_similarity
from hf_mpruner.features.rows import padding_mask

__all__ = ["measure_layer_by_layer", "measure_similarity", "padding_mask"]
