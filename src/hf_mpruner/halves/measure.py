"""`measure_halves`: how much the attention and the feed-forward half of each block matter, apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from hf_mpruner.architectures import BlockStack
from hf_mpruner.architectures.adapters import unwrap_adapters
from hf_mpruner.criteria import CriterionInputs
from hf_mpruner.criteria.output_change import angular, outputs_of
from hf_mpruner.errors import CalibrationError
from hf_mpruner.features.rows import fit_mask, padding_mask
from hf_mpruner.halves.bench import Bench, capture_calls, first_tensor, is_float
from hf_mpruner.halves.config import describe_skips, find_skips
from hf_mpruner.halves.find import Half, find_halves
from hf_mpruner.halves.report import HalfScore, HalvesReport, StackHalves
from hf_mpruner.placement import measurable_stacks
from hf_mpruner.skipping import silence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Found = dict[str, list[tuple[Half, ...]]]
_FEW = 2  # examples to find the halves with


def measure_halves(
    model: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    stacks: Sequence[BlockStack] | None = None,
    *,
    show_progress: bool | None = None,
) -> HalvesReport:
    """Measure, for each half of each block, its influence on the residual stream and on the model's output.

    Costs one forward pass over the data, and one more for each half. The model runs in eval mode without gradients and is
    left as it was. Without a half means that its residual branch adds zero: a pre-norm block then hands that stream on as
    it is, a post-norm block still applies the norm behind the sum.

    Args:
        model (`torch.nn.Module`): the model, not wrapped, but for peft's wrapper.
        loader (`Iterable[Mapping]`): batches as the model's forward takes them; can be iterated again and again.
        stacks (`Sequence[BlockStack]`, *optional*): what to measure. Default: `find_block_stacks(model)`.
        show_progress (`bool`, *optional*): progress bar; by default only on a terminal.

    Returns:
        `HalvesReport`: stacks whose blocks have no two halves that can be told apart are in it with the reason.

    Raises:
        CalibrationError: if there is no data, or a block puts out values that are not finite.

    Example:
        >>> from transformers import LlamaConfig, LlamaModel
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 9}
        >>> model = LlamaModel(LlamaConfig(num_hidden_layers=2, **sizes))
        >>> report = measure_halves(model, [{"input_ids": torch.tensor([[1, 2, 3]])}])
        >>> report.stacks["layers"].layout, list(report.stacks["layers"].layers[0])
        ('pre-norm', ['attention', 'feed_forward'])
    """
    model = unwrap_adapters(model)
    stacks = measurable_stacks(model) if stacks is None else stacks
    inputs = CriterionInputs(model, stacks, loader, show_progress=show_progress)
    with inputs.counting() as cost, torch.no_grad():
        first = next(inputs.each_batch("Finding the halves of blocks"))
        found, notes = find_all_halves(inputs, first)
        measured = _Measured(inputs, found, compares=_can_compare(inputs, first))
        for batch in inputs.each_batch("Measuring halves of blocks") if found else ():
            measured.add(batch)
        spent = cost()
    described = {
        stack.path: measured.of(stack) if stack.path in found else StackHalves(stack.path, note=notes[stack.path])
        for stack in stacks
    }
    return HalvesReport(described, spent.forward_passes, spent.seconds)


def find_all_halves(inputs: CriterionInputs, batch: Mapping[str, Any]) -> tuple[Found, dict[str, str]]:
    """The halves of every block, and why not, by path of the stack.

    Args:
        inputs (`CriterionInputs`): model and stacks.
        batch (`Mapping`): to run the model on; a few of its examples are used.
    """
    size = inputs.size(batch)
    few = {name: value[:_FEW] if value.shape[:1] == (size,) else value for name, value in batch.items()}
    found: Found = {}
    notes: dict[str, str] = {}
    for stack in inputs.stacks:
        blocks = inputs.blocks(stack)
        try:
            calls = capture_calls(inputs.forward, blocks, few)
        except Exception:  # some models pack their examples, so that these are not its first rows
            calls = capture_calls(inputs.forward, blocks, batch)
        for layer, block in enumerate(blocks):
            try:
                if block not in calls:
                    raise ValueError("it does not run on the calibration data")
                found.setdefault(stack.path, []).append(find_halves(Bench(block, calls.pop(block))))
            except (ValueError, RuntimeError, TypeError, AttributeError) as error:  # whatever its code does apart
                notes[stack.path] = (
                    f"The halves of block {layer} cannot be told apart: {' '.join(str(error).split())}."
                )
                found.pop(stack.path, None)
                break
    return found, notes


def _can_compare(inputs: CriterionInputs, batch: Mapping[str, Any]) -> bool:
    try:
        outputs_of(inputs, batch)
    except CalibrationError:
        return False
    return True


class _Measured:
    """Sums over batches: of each half's influence, and of the change of the output without it."""

    def __init__(self, inputs: CriterionInputs, found: Found, *, compares: bool) -> None:
        self._inputs, self._found, self._compares = inputs, found, compares
        self._watched = {path: [_Watch(halves) for halves in layers] for path, layers in found.items()}
        self._changes: dict[tuple[str, int, str], list[float]] = {}

    def add(self, batch: Mapping[str, Any]) -> None:
        """Measure one batch."""
        inputs = self._inputs
        with ExitStack() as undo:
            for path, watches in self._watched.items():
                mask = padding_mask(inputs.model, path, batch)
                for layer, (watch, block) in enumerate(zip(watches, _blocks(inputs.model, path), strict=True)):
                    watch.attach(block, mask, f"{path}.{layer}", undo)
            whole = outputs_of(inputs, batch) if self._compares else inputs.forward(batch)
        if not self._compares:
            return
        for path, layers in self._found.items():
            for layer, halves in enumerate(layers):
                block = inputs.model.get_submodule(f"{path}.{layer}")
                for half in halves:
                    with silence([block.get_submodule(half.module)]):
                        changed = [angular(*pair) for pair in zip(whole, outputs_of(inputs, batch), strict=True)]
                    sums = self._changes.setdefault((path, layer, half.kind), [0.0, 0.0])
                    sums[0] += float(sum(rows.cpu().double().sum() for rows in changed))
                    sums[1] += sum(map(len, changed))

    def of(self, stack: BlockStack) -> StackHalves:
        """What was measured of a stack."""
        path, model = stack.path, cast("PreTrainedModel", self._inputs.model)
        layers: list[dict[str, HalfScore]] = []
        for layer, (halves, watch) in enumerate(zip(self._found[path], self._watched[path], strict=True)):
            scores: dict[str, HalfScore] = {}
            for half, influence in zip(halves, watch.influences(f"{path}.{layer}"), strict=True):
                total, count = self._changes.get((path, layer, half.kind), (0.0, 0.0))
                scores[half.kind] = HalfScore(half.module, influence, total / count if count else None)
            layers.append(scores)
        skips = find_skips(model, stack, self._found[path])
        note = describe_skips(model, stack, skips)
        return StackHalves(path, _layout(self._found[path][0]), tuple(layers), skips, note)


class _Watch:
    """The residual stream of one block, before and after each half."""

    def __init__(self, halves: Sequence[Half]) -> None:
        self._halves = halves
        self._sums = [0.0] * len(halves)
        self._count = 0
        self._given: Tensor | None = None
        self._seen: dict[str, Tensor] = {}

    def attach(self, block: nn.Module, mask: Tensor | None, name: str, undo: ExitStack) -> None:
        """Watch a block until `undo` closes."""

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = kwargs.get("hidden_states")
            given: Any = hidden if is_float(hidden) else next(filter(is_float, (*args, *kwargs.values())))
            self._given = given.clone()  # what a block is given it may change in place
            self._seen.clear()

        def note(name: str) -> Any:
            def keep(module: nn.Module, args: Any, output: Any) -> None:
                value = first_tensor(output)
                if value is not None:
                    self._seen[name] = value.clone()

            return keep

        def end(module: nn.Module, args: Any, output: Any) -> None:
            self._add(mask, name)

        undo.callback(block.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for inner in {inner for half in self._halves for inner in (half.module, half.norm) if inner is not None}:
            undo.callback(block.get_submodule(inner).register_forward_hook(note(inner)).remove)
        undo.callback(block.register_forward_hook(end).remove)

    def _add(self, mask: Tensor | None, name: str) -> None:
        if self._given is None:
            return
        stream = before = self._given.float()
        real = None if mask is None else fit_mask(mask, (stream.shape[0], stream.shape[1]), name).to(stream.device)
        for place, half in enumerate(self._halves):
            scale = half.scale.to(stream.device) if isinstance(half.scale, Tensor) else half.scale
            branch = scale * self._seen[half.module].float().view(stream.shape)
            before = before if half.parallel else stream
            after = before + branch
            stream = stream + branch
            if half.norm is not None:
                after = stream = self._seen[half.norm].float()
            cosines = nn.functional.cosine_similarity(before, after, dim=-1)
            self._sums[place] += float((1 - (cosines if real is None else cosines[real])).sum())
        self._count += cosines.numel() if real is None else int(real.sum())

    def influences(self, name: str) -> list[float]:
        """One a half.

        Raises:
            CalibrationError: if one is not finite.
        """
        values = [total / self._count if self._count else math.nan for total in self._sums]
        if not all(map(math.isfinite, values)):
            raise CalibrationError(
                f"{name} puts out values that are not finite on the calibration data, so its halves cannot be measured."
            )
        return values


def _blocks(model: nn.Module, path: str) -> list[nn.Module]:
    return list(cast("nn.ModuleList", model.get_submodule(path)))


def _layout(halves: Sequence[Half]) -> str:
    if any(half.norm is not None for half in halves):
        return "post-norm"
    return "parallel" if any(half.parallel for half in halves) else "pre-norm"
