"""`SimilarityAccumulator`: running HSIC sums of all pairs of layers, over any number of batches and processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_mpruner.errors import CalibrationError
from hf_mpruner.similarity.gram import centre_grams, multiply_rows
from hf_mpruner.similarity.hsic import gram_hsic, hsic_of_features, too_few_rows
from hf_mpruner.similarity.matrix import SimilarityMatrix
from hf_mpruner.similarity.null import CalibratedSimilarity, calibrate, null_moments, other_order, reorder_grams
from hf_mpruner.similarity.protocol import SimilarityProtocol
from hf_mpruner.similarity.spread import second_moments, standard_errors


class SimilarityAccumulator:
    """Streams batches of features into the similarity of every pair of layers.

    What is kept is one `(num_layers, num_layers)` float64 sum, three more for its standard errors, a weight and a count,
    whatever the number of batches. With `average="sums"` the sum is of HSICs, normalised once in `compute` (Nguyen et al.
    2020); with `"ratios"` it is of CKA values. Each group (a batch, or one example's tokens) is weighted by the number of
    examples it stands for.

    Args:
        num_layers (`int`): number of layers.
        protocol (`str` or `SimilarityProtocol`): estimator, rows and average.
        layer_names (`Sequence[str]`, *optional*): what errors call the layers, e.g. `"bert.encoder.layer.3"`.
        null_seed (`int`, *optional*): also compare the rows of each layer with those of each other one in another order,
            drawn by this seed, for `SimilarityMatrix.calibrated`; `state_dict` then holds four more sums. By default that is
            not measured.

    Example:
        >>> accumulator = SimilarityAccumulator(num_layers=2)
        >>> rows = torch.arange(24.0).reshape(8, 3).sin()
        >>> accumulator.update([rows, 2 * rows + 1])
        >>> [round(value, 6) for value in accumulator.compute().adjacent]
        [1.0]
    """

    def __init__(
        self,
        num_layers: int,
        protocol: str | SimilarityProtocol = "default",
        layer_names: Sequence[str] | None = None,
        null_seed: int | None = None,
    ) -> None:
        names = [f"layer {i}" for i in range(num_layers)] if layer_names is None else list(layer_names)
        if num_layers < 1 or len(names) != num_layers:
            raise ValueError(
                f"num_layers={num_layers} with {len(names)} layer_names: pass 1 or more layers, one name each."
            )
        self.num_layers = num_layers
        self.protocol = SimilarityProtocol.named(protocol)
        self.layer_names = tuple(names)
        self._sums = torch.zeros(num_layers, num_layers, dtype=torch.float64)
        self._moments = torch.zeros(3, num_layers, num_layers, dtype=torch.float64)
        self._weight = torch.zeros((), dtype=torch.float64)
        self._num_groups = torch.zeros((), dtype=torch.float64)
        self.null_seed = null_seed
        self._null: dict[str, Tensor] = {}
        if null_seed is not None:
            self._null = {"null_sums": torch.zeros_like(self._sums), "null_moments": torch.zeros_like(self._moments)}

    @property
    def num_groups(self) -> int:
        """Batches (or examples, where each is compared by itself) that were added."""
        return int(self._num_groups)

    @torch.no_grad()
    def update(
        self,
        features: Sequence[Tensor],
        row_mask: Tensor | None = None,
        weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        """Add one batch.

        Args:
            features (`Sequence[torch.Tensor]`): per layer `(rows, features)`, or `(groups, rows, features)` for groups
                that are compared each by itself.
            row_mask (`torch.Tensor` of shape `(groups, rows)`, *optional*): True at rows that count, for grouped features.
            weights (`Sequence[float]` of length `groups`, *optional*): examples each group stands for. Default: the
                number of rows for ungrouped features, 1 a group for grouped ones.

        Raises:
            ValueError: if the number of layers or the shapes do not fit.
            CalibrationError: if a group has too few rows, or a layer holds NaN or infinite values.
        """
        self._check_count(features)
        grouped = self._check_shapes(features, row_mask)
        if row_mask is None:
            num_rows = torch.full((features[0].shape[0] if grouped else 1,), features[0].shape[-2])
        else:
            num_rows = row_mask.sum(1)
        self._check_rows(num_rows)
        if weights is None:
            weights = torch.ones(len(num_rows)) if grouped else num_rows
        estimator = self.protocol.estimator
        if grouped:
            grams = centre_grams([multiply_rows(x, row_mask) for x in features], row_mask, estimator)
            self._add_grams(grams, num_rows, weights, row_mask)
        elif self._null:
            order = other_order(torch.ones(1, len(features[0]), dtype=torch.bool), self.null_seed or 0)[0]
            count = self.num_layers
            both = hsic_of_features([*features, *(x[order.to(x.device)] for x in features)], estimator)
            self._add(both[:, :count, :count], weights, both[:, :count, count:])
        else:
            self._add(hsic_of_features(features, estimator), weights)

    @torch.no_grad()
    def update_grams(
        self,
        grams: Sequence[Tensor],
        num_rows: Tensor,
        weights: Tensor | Sequence[float],
        row_mask: Tensor | None = None,
    ) -> None:
        """Add one batch of Gram matrices, for callers that do not want to hold features.

        Args:
            grams (`Sequence[torch.Tensor]`): per layer `(groups, rows * rows)` from `centre_grams`.
            num_rows (`torch.Tensor` of shape `(groups,)`): rows that count in each group.
            weights (`Sequence[float]` of length `groups`): examples each group stands for.
            row_mask (`torch.Tensor` of shape `(groups, rows)`, *optional*): True at rows that count; by default all do.

        Raises:
            ValueError: if the number of layers does not fit.
            CalibrationError: if a group has too few rows, or a Gram matrix holds NaN or infinite values.
        """
        self._check_count(grams)
        self._check_rows(num_rows)
        self._add_grams(grams, num_rows, weights, row_mask)

    def _add_grams(
        self, grams: Sequence[Tensor], num_rows: Tensor, weights: Tensor | Sequence[float], row_mask: Tensor | None
    ) -> None:
        estimator, null = self.protocol.estimator, None
        if self._null:
            groups, rows = len(grams[0]), math.isqrt(grams[0].shape[1])
            mask = torch.ones(groups, rows, dtype=torch.bool) if row_mask is None else row_mask.bool().cpu()
            order = other_order(mask, self.null_seed or 0)
            null = gram_hsic(grams, num_rows, estimator, [reorder_grams(gram, order) for gram in grams])
        self._add(gram_hsic(grams, num_rows, estimator), weights, null)

    def merge(self, other: SimilarityAccumulator) -> None:
        """Add what another accumulator has seen, e.g. on another process. Exact: sums are added.

        Raises:
            ValueError: if the other has another depth or protocol, or one of both measures no null.
        """
        if (other.num_layers, other.protocol) != (self.num_layers, self.protocol):
            raise ValueError(
                f"cannot merge {other.num_layers} layers under {other.protocol} into {self.num_layers} layers under "
                f"{self.protocol}: both must be the same."
            )
        if other._null.keys() != self._null.keys():
            raise ValueError(
                "cannot merge sums with a shuffled null into sums without: pass null_seed to both or none."
            )
        for name, total in self._state().items():
            total += other._state()[name]

    def since(self, earlier: SimilarityAccumulator) -> SimilarityAccumulator:
        """What was added after `earlier`, a copy of this accumulator's past."""
        later = SimilarityAccumulator(self.num_layers, self.protocol, self.layer_names, self.null_seed)
        later.load_state_dict({name: total - earlier._state()[name] for name, total in self._state().items()})
        return later

    def state_dict(self) -> dict[str, Tensor]:
        """The running sums. Adding two of these entry by entry is `merge`, so processes can all-reduce them."""
        return {name: total.clone() for name, total in self._state().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace the running sums.

        Raises:
            ValueError: if the state is of another depth.
        """
        shape = tuple(state["sums"].shape)
        if shape != (self.num_layers, self.num_layers):
            raise ValueError(
                f"this state holds sums of shape {shape}, but the accumulator has {self.num_layers} layers."
            )
        for name, total in self._state().items():
            total.copy_(state[name])

    def compute(self) -> SimilarityMatrix:
        """The similarity of all pairs over everything added so far, with standard errors if it is two groups or more.

        Raises:
            CalibrationError: if nothing was added, or a layer gives the same output for every row.
        """
        if self._weight == 0:
            raise CalibrationError("no batch was added: call update(features) before compute().")
        sums = (self._sums + self._sums.T) / 2
        values = self._normalised(sums) if self.protocol.average == "sums" else sums / self._weight
        # Rounding alone can lift a value above 1 or put the diagonal beside it.
        values = values.clamp(-1.0, 1.0).fill_diagonal_(1.0)
        return SimilarityMatrix(
            values=values,
            protocol=self.protocol,
            num_samples=round(self._weight.item()),
            errors=standard_errors(sums, self._moments, self.num_groups) if self.num_groups > 1 else None,
            num_groups=self.num_groups,
            calibrated=self._calibrated(sums) if self._null else None,
        )

    def _calibrated(self, sums: Tensor) -> CalibratedSimilarity:
        null, moments = self._null["null_sums"], self._null["null_moments"]
        return calibrate(sums, self._moments, (null + null.T) / 2, moments, self.num_groups)

    def _state(self) -> dict[str, Tensor]:
        return {
            "sums": self._sums,
            "moments": self._moments,
            "weight": self._weight,
            "num_groups": self._num_groups,
            **self._null,
        }

    def _add(self, hsic: Tensor, weights: Tensor | Sequence[float], null: Tensor | None = None) -> None:
        """Add HSICs (groups, layers, layers); one transfer to the CPU a batch."""
        hsic = hsic.detach().cpu()
        weights = torch.as_tensor(weights, dtype=torch.float64).cpu()
        if weights.shape != hsic.shape[:1]:
            raise ValueError(
                f"weights have shape {tuple(weights.shape)}, but there are {len(hsic)} groups: one weight each."
            )
        broken = ~hsic.diagonal(dim1=1, dim2=2).isfinite().all(0)
        if broken.any():
            name = self.layer_names[int(broken.nonzero()[0])]
            raise CalibrationError(
                f"{name} puts out NaN or infinite values (or values too large for a float32 product) on the calibration "
                "data. Run the model in float32 or bfloat16, or look for bad examples; nothing was averaged over them."
            )
        if null is not None:
            null = null.detach().cpu()
            null = (null + null.transpose(1, 2)) / 2
        if self.protocol.average == "ratios":
            energy = hsic.diagonal(dim1=1, dim2=2)
            hsic = self._normalised(hsic)
            null = null if null is None else null / (energy.unsqueeze(2) * energy.unsqueeze(1)).sqrt()
        if null is not None:
            self._null["null_sums"] += (null * weights.view(-1, 1, 1)).sum(0)
            self._null["null_moments"] += null_moments(hsic, null, weights)
        self._sums += (hsic * weights.view(-1, 1, 1)).sum(0)
        self._moments += second_moments(hsic, weights)
        self._weight += weights.sum()
        self._num_groups += len(hsic)

    def _normalised(self, hsic: Tensor) -> Tensor:
        """HSICs (..., layers, layers) to CKA."""
        energy = hsic.diagonal(dim1=-2, dim2=-1)
        constant = (energy <= 0).reshape(-1, self.num_layers).any(0)
        if constant.any():
            name = self.layer_names[int(constant.nonzero()[0])]
            raise CalibrationError(
                f"{name} gives the same output for every row of the calibration data, so its similarity to other layers "
                "is undefined. Use different examples, or rows='examples' if one position is the same everywhere."
            )
        return hsic / (energy.unsqueeze(-1) * energy.unsqueeze(-2)).sqrt()

    def _check_count(self, layers: Sequence[Tensor]) -> None:
        if len(layers) != self.num_layers:
            raise ValueError(f"got {len(layers)} layers, but this accumulator compares {self.num_layers}.")

    def _check_shapes(self, features: Sequence[Tensor], row_mask: Tensor | None) -> bool:
        """Whether features are grouped; refuses shapes that do not fit each other."""
        shapes = [tuple(x.shape) for x in features]
        if len({shape[:-1] for shape in shapes}) != 1 or len(shapes[0]) not in (2, 3):
            raise ValueError(
                f"features have shapes {shapes}; each layer needs (rows, features), or (groups, rows, features), "
                "with the same rows in all layers."
            )
        if row_mask is not None and tuple(row_mask.shape) != shapes[0][:-1]:
            raise ValueError(
                f"row_mask has shape {tuple(row_mask.shape)}, but the groups and rows are {shapes[0][:-1]}."
            )
        return len(shapes[0]) == 3

    def _check_rows(self, num_rows: Tensor) -> None:
        fewest = int(num_rows.min())
        if fewest < self.protocol.min_rows:
            raise CalibrationError(too_few_rows(fewest, self.protocol.estimator))
