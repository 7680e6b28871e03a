"""Linear CKA between layers: the estimator, the streaming accumulator, the matrix. Torch only.

Torch is loaded with the first name that needs it, so that a command line can show its flags without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hf_mpruner.similarity.protocol import MIN_ROWS, PROTOCOLS, SimilarityProtocol
from hf_mpruner.similarity.sampling import MIN_GROUPS, Sampling

if TYPE_CHECKING:
    from hf_mpruner.similarity.accumulator import SimilarityAccumulator
    from hf_mpruner.similarity.gram import Gram, centre_grams, centred_gram, multiply_rows
    from hf_mpruner.similarity.hsic import feature_space_hsic, gram_hsic, linear_cka
    from hf_mpruner.similarity.matrix import SimilarityMatrix

__all__ = [
    "MIN_GROUPS",
    "MIN_ROWS",
    "PROTOCOLS",
    "Gram",
    "Sampling",
    "SimilarityAccumulator",
    "SimilarityMatrix",
    "SimilarityProtocol",
    "centre_grams",
    "centred_gram",
    "feature_space_hsic",
    "gram_hsic",
    "linear_cka",
    "multiply_rows",
]

_MODULE_OF = {
    "Gram": "gram",
    "SimilarityAccumulator": "accumulator",
    "SimilarityMatrix": "matrix",
    "centre_grams": "gram",
    "centred_gram": "gram",
    "feature_space_hsic": "hsic",
    "gram_hsic": "hsic",
    "linear_cka": "hsic",
    "multiply_rows": "gram",
}


def __getattr__(name: str) -> object:
    """Import the module of a name on first use (PEP 562).

    Raises:
        AttributeError: for a name that is not of this package.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Its names: {', '.join(__all__)}.")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
