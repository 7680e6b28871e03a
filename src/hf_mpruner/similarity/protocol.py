"""What is compared with what: the rows of a Gram matrix, the estimator, and how batches are averaged."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

Estimator = Literal["unbiased", "biased"]

# HSIC_1 divides by n (n - 3), the biased HSIC by (n - 1)^2.
MIN_ROWS: dict[Estimator, int] = {"unbiased": 4, "biased": 2}


@dataclass(frozen=True)
class SimilarityProtocol:
    """One way to measure the similarity of two layers.

    Args:
        estimator (`str`): `"unbiased"` is HSIC_1 (Song et al. 2012; Nguyen et al. 2020, arXiv 2010.15327) and needs 4
            rows or more; its value does not depend on the batch size. `"biased"` is equations 1-5 of MPruner
            (arXiv 2408.13482), needs 2, and tends to 1 when features outnumber rows.
        rows (`str`): what a row is. `"examples"`: one example, its positions side by side, padded ones zero;
            `"tokens"`: one token; `"mean"`, `"first"`, `"last"`: one example, the mean of its tokens, its first or its
            last one. Padding never counts.
        token_groups (`str`): for `rows="tokens"` only: the tokens of one `"example"` make one Gram matrix, or all tokens
            of a `"batch"` together.
        average (`str`): over batches (or examples): `"sums"` adds HSICs and normalises once, `"ratios"` takes the mean
            of the CKA of each.

    Raises:
        ValueError: if a value is none of those.

    Example:
        >>> SimilarityProtocol(rows="mean").estimator
        'unbiased'
    """

    estimator: Estimator = "unbiased"
    rows: Literal["examples", "tokens", "mean", "first", "last"] = "examples"
    token_groups: Literal["example", "batch"] = "batch"
    average: Literal["sums", "ratios"] = "sums"

    def __post_init__(self) -> None:
        """Refuse unknown values by name."""
        hints = get_type_hints(type(self))
        for entry in fields(self):
            value, allowed = getattr(self, entry.name), get_args(hints[entry.name])
            if value not in allowed:
                choices = ", ".join(map(repr, allowed))
                raise ValueError(f"SimilarityProtocol: {entry.name}={value!r} is not one of {choices}.")

    @property
    def min_rows(self) -> int:
        """Fewest rows of a Gram matrix that the estimator can use."""
        return MIN_ROWS[self.estimator]

    @property
    def is_per_example(self) -> bool:
        """Whether each example is a group of its own: one Gram matrix of its tokens."""
        return self.rows == "tokens" and self.token_groups == "example"

    @property
    def is_pooled(self) -> bool:
        """Whether all tokens of a batch share one Gram matrix."""
        return self.rows == "tokens" and self.token_groups == "batch"

    @classmethod
    def named(cls, protocol: str | SimilarityProtocol) -> SimilarityProtocol:
        """The protocol of that name (a key of `PROTOCOLS`), or the protocol given, unchanged.

        Raises:
            ValueError: if no protocol has that name.

        Example:
            >>> SimilarityProtocol.named("paper").rows
            'tokens'
        """
        if isinstance(protocol, cls):
            return protocol
        if protocol not in PROTOCOLS:
            names = ", ".join(map(repr, PROTOCOLS))
            raise ValueError(f"protocol={protocol!r} is not one of {names}. Pass one of them or a SimilarityProtocol.")
        return PROTOCOLS[str(protocol)]


PROTOCOLS: dict[str, SimilarityProtocol] = {
    "default": SimilarityProtocol(),
    # The reference code for BERT: rows are the tokens of one unpadded sentence, CKA values are averaged.
    "paper": SimilarityProtocol(estimator="biased", rows="tokens", token_groups="example", average="ratios"),
}
