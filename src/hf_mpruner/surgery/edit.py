"""`ModelEdit`: one cut of a model, proved, applied and undone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_mpruner.architectures import CutProof, Examination, TensorSlice, examine, prove_cut
from hf_mpruner.architectures.adapters import without_adapters
from hf_mpruner.architectures.rules import POSITION_ATTRIBUTES, STOCHASTIC_DEPTH
from hf_mpruner.architectures.size import remaining_parameters
from hf_mpruner.merging import Merge, Sums
from hf_mpruner.placement import check_not_offloaded
from hf_mpruner.surgery.adapters import check_places, prepare_adapters
from hf_mpruner.surgery.checkpointing import checkpointed_every, prepare_marks
from hf_mpruner.surgery.once import Edit
from hf_mpruner.surgery.steps import (
    Rewire,
    Trim,
    kept_part,
    prepare_config,
    prepare_move,
    prepare_swap,
    prepare_value,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Some models exchange attention modules as they run, for ones that do not know their number (big_bird).
_MAY_BE_UNSET = POSITION_ATTRIBUTES.keys() | STOCHASTIC_DEPTH.keys()


class ModelEdit(Edit):
    """One cut of a model: proved when it is made, applied and undone on call, both at most once and in this order.

    Making it changes nothing. The removed blocks are kept by reference until the edit is dropped.

    Args:
        model (`PreTrainedModel`): the model to cut.
        kept (`Mapping[str, Sequence[int]]`): by stack path the layers that stay, in the numbering of the model as it
            is; stacks that are not named stay whole.
        found (`Examination`, *optional*): what `examine(model)` gave for the model as it is now, if at hand.
        merged (`Mapping`, *optional*): by stack path, what kept layers take over from others: `StackPlan.merged`.

    Attributes:
        proof (`CutProof`): the edits, as data.
        removed_blocks (`dict[str, tuple[nn.Module, ...]]`): by stack path, the blocks that go.
        removed_parameters (`list[nn.Parameter]`): the parameters that leave the model, each once.
        num_removed_parameters (`int`): how many scalars leave the model, the removed layers' room in others included.
        trimmed_parameters (`dict[nn.Parameter, TensorSlice]`): parameters that lose the removed layers' room.
        merges (`list[Merge]`): the kept layers whose weights become sums, a stack each.
        checkpointed_every (`int`): of the uncut model: n if the activations of every n-th layer are checkpointed; else 0.

    Raises:
        PlanMismatchError: `kept` names an unknown stack or no valid selection of its layers.
        UnsupportedArchitectureError: the cut cannot be proved right, or layers cannot be merged.
        UnsupportedBackendError: weights of layers that stay would change, and are offloaded.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=4, hidden_size=8, num_attention_heads=2, vocab_size=9))
        >>> edit = ModelEdit(model, {"encoder.layer": [0, 3]})
        >>> edit.apply()
        >>> len(model.encoder.layer), model.config.num_hidden_layers
        (2, 2)
        >>> edit.undo()
        >>> len(model.encoder.layer), model.config.num_hidden_layers
        (4, 4)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kept: Mapping[str, Sequence[int]],
        *,
        found: Examination | None = None,
        merged: Mapping[str, Sums] | None = None,
    ) -> None:
        """Find the stacks, prove the cut and prepare its steps."""
        super().__init__()
        found = found or examine(model)
        self.proof: CutProof = prove_cut(model, found, kept)
        self.removed_blocks: dict[str, tuple[nn.Module, ...]] = {}
        followers = {stack.path: [follower.path for follower in stack.followers] for stack in found.stacks}
        self.merges = [
            Merge(model, path, sums, followers.get(path, ())) for path, sums in (merged or {}).items() if sums
        ]
        self._steps += self.merges
        self._removed: tuple[nn.Module, ...] = ()
        self.trimmed_parameters: dict[nn.Parameter, TensorSlice] = {}
        check_places(model, self.proof)
        with without_adapters(model):  # paths are those of the base model
            self._prepare_blocks(model, self.proof.cuts.keys() & kept.keys())
            self._prepare_values(model)
        self._steps += prepare_adapters(model, found, kept, self.proof)
        self.checkpointed_every = checkpointed_every(model)
        self._steps += prepare_marks(model, self._removed)
        self._leaving = self._find_leaving(model)
        room = (p.numel() // t.cut.depth * (t.cut.depth - len(t.cut.kept)) for p, t in self.trimmed_parameters.items())
        self.num_removed_parameters = sum(p.numel() for p in self.removed_parameters) + sum(room)

    def _prepare_blocks(self, model: nn.Module, stacks: Set[str]) -> None:
        """New entries for the lists of blocks, and for those that follow them."""
        containers: set[int] = set()
        for path, cut in self.proof.cuts.items():
            container = model.get_submodule(path)
            if id(container) in containers:  # one list under two names
                continue
            containers.add(id(container))
            blocks = list(container._modules.values())  # a list that follows may have empty places (informer)
            gone = (blocks[layer] for layer in range(cut.depth) if layer not in cut.kept)
            removed = tuple(block for block in gone if block is not None)
            if path in stacks:
                self.removed_blocks[path] = removed
            self._removed += removed
            survivors: dict[str, nn.Module | None] = {str(n): blocks[layer] for n, layer in enumerate(cut.kept)}
            self._steps.append(Rewire(container._modules, dict(container._modules), survivors, repr(path)))

    def _prepare_values(self, model: PreTrainedModel) -> None:
        """What else the proof found that must be written."""
        written: set[tuple[int, str]] = set()  # a shared module has several paths
        for value in self.proof.values:
            module = model.get_submodule(value.path)
            replaced = vars(module).get(value.name) is None and value.name in _MAY_BE_UNSET
            if not replaced and (id(module), value.name) not in written:
                written.add((id(module), value.name))
                self._steps.append(prepare_value(module, value))
        self._steps += [prepare_move(model, move) for move in self.proof.moves]
        self._steps += [prepare_swap(model, path, module) for path, module in self.proof.swaps.items()]
        for part in self.proof.slices:
            parameter = model.get_submodule(part.path).get_parameter(part.name)
            if parameter not in self.trimmed_parameters:  # tied ones once
                self.trimmed_parameters[parameter] = part
                self._steps.append(Trim(parameter, parameter.data, part, f"parameter '{part.path}.{part.name}'"))
        self._steps += [prepare_config(model, edit) for edit in self.proof.configs]
        if self.merges or self.trimmed_parameters:  # whole blocks go by reference, wherever they lie
            check_not_offloaded(
                model, "This cut changes weights of layers that stay", "Load the whole model into memory and cut that."
            )

    def _find_leaving(self, model: nn.Module) -> dict[int, nn.Parameter]:
        """Parameters of removed blocks that nothing else in the model holds, and that do not move to another block."""
        gone = {id(parameter): parameter for block in self._removed for parameter in block.parameters()}
        for parameter in remaining_parameters(model, self.proof.cuts, self.proof.moves):
            gone.pop(id(parameter), None)
        return gone

    @property
    def removed_parameters(self) -> list[nn.Parameter]:
        """The parameters that leave the model, each once."""
        return list(self._leaving.values())

    @property
    def trims(self) -> dict[nn.Parameter, Callable[[torch.Tensor], torch.Tensor]]:
        """What takes the removed layers' room out of a tensor of a trimmed parameter's shape, such as its moments."""
        return {parameter: partial(kept_part, part=part) for parameter, part in self.trimmed_parameters.items()}

    def apply(self) -> None:
        """Cut the model. Warns (`UserWarning`) if transformers cannot generate with a cache any more.

        Raises:
            RuntimeError: the edit was applied before, or the model changed since it was made; the model is as it was.
        """
        super().apply()
        if self.proof.warning:
            warnings.warn(self.proof.warning, stacklevel=2)
