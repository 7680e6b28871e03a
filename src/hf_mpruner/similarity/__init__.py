"""Linear CKA between layers: the estimator, the streaming accumulator, the matrix. Torch only."""

from hf_mpruner.similarity.accumulator import SimilarityAccumulator
from hf_mpruner.similarity.hsic import centred_gram, feature_space_hsic, gram_hsic, linear_cka
from hf_mpruner.similarity.matrix import SimilarityMatrix
from hf_mpruner.similarity.protocol import MIN_ROWS, PROTOCOLS, SimilarityProtocol

__all__ = [
    "MIN_ROWS",
    "PROTOCOLS",
    "SimilarityAccumulator",
    "SimilarityMatrix",
    "SimilarityProtocol",
    "centred_gram",
    "feature_space_hsic",
    "gram_hsic",
    "linear_cka",
]
