"""`verify="full"`: run a cut on real inputs, against the skip reference and against a copy that went over the disk.

The proof of `architectures` compares structure. What a model's own code does at run time with the place of a layer shows
only in its outputs, so this check compares those.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args

from torch import nn

from hf_mpruner.architectures.adapters import without_adapters
from hf_mpruner.config import Verification
from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.features.measure import evaluating
from hf_mpruner.merging import Sums, merged_weights
from hf_mpruner.runtime import keep_rng_state
from hf_mpruner.verify.outputs import ROUNDING, Outputs, allowed_error, find_difference, run_still, without_layers
from hf_mpruner.verify.saved import BadCopyError, load_copy
from hf_mpruner.verify.skip import make_skip_reference

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Edit(Protocol):
    """A change of a model with an exact undo, such as a `ModelEdit`."""

    def apply(self) -> None:
        """Make the change."""

    def undo(self) -> None:
        """Take it back."""


class FullCheck:
    """What a cut model must compute, taken from the model before the cut.

    The model is left as it is: training flags, random state, configs, weights. Of a model with adapters the base is run.

    Args:
        model (`PreTrainedModel`): not yet cut.
        kept (`Mapping[str, Sequence[int]]`): by stack path, the layers that will stay.
        inputs (`Mapping`): arguments of the model's `forward`, one batch; tensors are copied to its device.
        merged (`Mapping`, *optional*): by stack path, `StackPlan.merged`: what is skipped is then the model with these
            weights, so it is the cut that is compared, not the sums.
        directory (`Path`, *optional*): where the saved copy goes for a moment; the system's temporary folder otherwise.

    Raises:
        ValueError: the model puts out no tensor on these inputs.
        UnsupportedArchitectureError: two passes over the same inputs differ, so nothing can be compared.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kept: Mapping[str, Sequence[int]],
        inputs: Mapping[str, Any],
        *,
        merged: Mapping[str, Sums] | None = None,
        directory: Path | None = None,
    ) -> None:
        """Run the uncut model: as it is, and with the blocks skipped that will go."""
        self._model, self._inputs, self._directory = model, inputs, directory
        self._cut = " and ".join(f"{path!r} to layers {list(layers)}" for path, layers in kept.items()) or "nothing"
        self._name = f"{type(model).__name__} (model_type {model.config.model_type!r})"
        self._allowed = allowed_error(model)
        self._lists = _list_lengths(model, kept)
        with keep_rng_state(), evaluating(model), without_adapters(model):
            whole = run_still(model, inputs)
            if not whole:
                raise ValueError(
                    f"verify='full' needs outputs to compare, but {type(model).__name__} gives no tensor on these inputs "
                    f"({', '.join(inputs)}). Pass the inputs of a forward pass that gives logits or hidden states."
                )
            if fault := find_difference(run_still(model, inputs), whole, self._allowed):
                raise UnsupportedArchitectureError(
                    f"{self._name}: verify='full' cannot compare anything, since two passes of the uncut model over the "
                    f"same inputs differ: {fault}. Switch off what is random in eval mode, or pass verify='structure'."
                )
            with merged_weights(model, merged or {}):
                self._reference = make_skip_reference(model, kept, inputs)

    def run(self) -> None:
        """Compare the cut model; call this while the cut is in force.

        Warns (`UserWarning`) where the skip reference is not defined: then only the saved copy was compared.

        Raises:
            UnsupportedArchitectureError: the cut model fails, is not the original with the blocks skipped, or is not
                what is loaded after saving it. The model is still cut.
            OSError: the copy cannot be written.
        """
        with keep_rng_state(), evaluating(self._model), without_adapters(self._model):
            try:
                outputs = run_still(self._model, self._inputs)
            except Exception as error:  # the cut model may fail anywhere in its own code
                raise self._refusal(f"it fails on the inputs: {type(error).__name__}: {_one_line(error)}") from error
            self._check_skipped(outputs)
            if self._directory is not None:
                self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="_hf_mpruner-verify-", dir=self._directory) as folder:
                self._check_copy(outputs, Path(folder))

    def _check_skipped(self, outputs: Outputs) -> None:
        reference = self._reference
        pairs = [(without_layers(outputs, wanted), without_layers(wanted, outputs)) for wanted in reference.outputs]
        faults = [find_difference(*pair, self._allowed) for pair in pairs]
        if all(faults) and not all(find_difference(*pair, max(self._allowed, ROUNDING)) for pair in pairs):
            # models that compute with all layers at once (detectors) add up a shorter row of numbers after a cut
            self._warn(f"equals the uncut model with the removed layers skipped up to rounding only: {faults[0]}")
            return
        shrunk = [
            path for path, length in _list_lengths(self._model, ()).items() if self._lists.get(path, length) != length
        ]
        doubts = [*reference.doubts, *(f"{path!r} gets shorter with the stack" for path in shrunk)]
        if all(faults) and not doubts:
            raise self._refusal(f"it is not the uncut model with the removed layers skipped: {faults[0]}")
        if all(faults) or reference.not_run:
            doubts = (
                doubts if all(faults) else [f"{name!r} does not run on these inputs" for name in reference.not_run]
            )
            self._warn(
                "was compared with a saved and reloaded copy only. What the removed layers would have handed on is not "
                f"known: {'; '.join(doubts[:3])}"
            )

    def _warn(self, text: str) -> None:
        warnings.warn(f"{self._name}: with verify='full', cutting {self._cut} {text}.", stacklevel=6)

    def _check_copy(self, outputs: Outputs, folder: Path) -> None:
        try:
            copy = load_copy(self._model, folder)
        except BadCopyError as error:
            raise self._refusal(str(error)) from error
        try:
            again = run_still(copy, self._inputs)
        except Exception as error:  # whatever the model's own code raises
            text = f"a copy that was saved and loaded again fails on the inputs: {type(error).__name__}: "
            raise self._refusal(text + _one_line(error)) from error
        if fault := find_difference(again, outputs, self._allowed):
            raise self._refusal(f"a copy that was saved and loaded again puts out something else: {fault}")

    def _refusal(self, fault: str) -> UnsupportedArchitectureError:
        return UnsupportedArchitectureError(
            f"{self._name}: cutting {self._cut} did not pass verify='full': {fault}. The model was not changed."
        )


def apply_verified_(edit: Edit, check: FullCheck | None) -> None:
    """Make a cut; if it does not pass its check, take it back.

    Args:
        edit (`ModelEdit`): prepared, of the model that the check was made for.
        check (`FullCheck`, *optional*): without one, the edit is only applied.

    Raises:
        UnsupportedArchitectureError: the cut did not pass; the model is as it was.
    """
    edit.apply()
    if check is None:
        return
    try:
        check.run()
    except BaseException:
        edit.undo()
        raise


def check_request(verify: str, inputs: Mapping[str, Any] | None) -> None:
    """Refuse a way of verifying that does not exist, or that does not fit what was passed.

    Raises:
        ValueError: the text says what to pass instead.
    """
    allowed = get_args(Verification)
    if verify not in allowed:
        raise ValueError(f"verify={verify!r} is not known: pass one of {', '.join(map(repr, allowed))}.")
    if verify == "full" and not inputs:
        raise ValueError(
            "verify='full' runs the model on real inputs, and got none: pass inputs=batch, the arguments of its forward, "
            "e.g. inputs=tokenizer('some text', return_tensors='pt'). Or pass verify='structure'."
        )
    if verify != "full" and inputs is not None:
        raise ValueError(f"inputs are not used with verify={verify!r}: pass verify='full' to run the model on them.")


def _list_lengths(model: nn.Module, without: Iterable[str]) -> dict[str, int]:
    """Lengths of all lists of modules but some and what is inside them."""
    cut = tuple(f"{path}." for path in without)
    return {
        path: len(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not f"{path}.".startswith(cut)
    }


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
