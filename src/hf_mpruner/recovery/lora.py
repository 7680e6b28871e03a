"""Low-rank adapters on the frozen cut model, merged if the cut is kept (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_mpruner.errors import MPrunerError
from hf_mpruner.optimizer import OptimizerLoan
from hf_mpruner.plan import PruningPlan
from hf_mpruner.recovery.trainable import Trainable
from hf_mpruner.runtime import keep_rng_state

if TYPE_CHECKING:
    from peft import LoraModel

_NAME = "hf_mpruner_recovery"


class LowRankAdapters(Trainable):
    """LoRA on linear layers of the blocks. The model itself, its head included, stays frozen.

    The adapters begin at a change of zero, seeded, beside the random state of the run; they are the same on every
    process. The optimizer trains them in place of its own parameters, with the schedule as it is.

    Args:
        rank (`int`): r of each adapter.
        alpha (`int`): the change is scaled by `alpha / rank`.
        target_modules (`Sequence[str]`, *optional*): last parts of the names of linear layers, e.g. `query`; all of
            the blocks' by default.
        seed (`int`): draws the first matrices.
    """

    base_is_frozen = adds_modules = True

    def __init__(self, rank: int, alpha: int, target_modules: Sequence[str] | None, seed: int) -> None:
        """Remember what was asked for; PEFT is needed from now on."""
        self.rank, self.alpha, self.seed = rank, alpha, seed
        self.target_modules = None if target_modules is None else list(target_modules)
        self._tuner: LoraModel | None = None
        self._loan: OptimizerLoan | None = None
        self._flags: list[tuple[nn.Parameter, bool]] = []
        self._asked_for_gradients: nn.Module | None = None
        self._before_merge: list[tuple[nn.Parameter, Tensor]] = []

    def apply(self, model: nn.Module, optimizer: Any, plan: PruningPlan, whole: nn.Module | None = None) -> None:
        """Put adapters on the blocks, freeze the model, and lend the optimizer to them.

        Raises:
            MPrunerError: if no layer could get one, or PEFT refuses; nothing is changed then.
        """
        from peft import LoraConfig, LoraModel

        layers = find_linear_layers(model, plan.stacks, self.target_modules)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            # a pattern: a list would match ends of names, also those of other parts of the model
            target_modules="|".join(re.escape(name) for name in layers),
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
        )
        self._flags = [(param, param.requires_grad) for param in (model if whole is None else whole).parameters()]
        try:
            with keep_rng_state(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="fan_in_fan_out is set")  # of models with both kinds
                torch.manual_seed(self.seed)
                self._tuner = LoraModel(model, config, _NAME)
            own = {id(param) for param, _ in self._flags}
            for param, _ in self._flags:
                param.requires_grad_(False)  # also what is around the model, which PEFT does not see
            adapters = {
                name: param for name, param in model.named_parameters() if param.requires_grad and id(param) not in own
            }
            if optimizer is not None:
                weights: list[Any] = [layer.weight for layer in layers.values()]
                self._loan = OptimizerLoan(optimizer, adapters, like=weights)
                self._loan.apply()
            self._let_gradients_in(model)
        except BaseException as error:
            self.undo()
            if isinstance(error, ValueError):
                raise MPrunerError(
                    f"recovery='lora' cannot put adapters on {type(model).__name__}: {error}. Choose other layers with "
                    f"lora_target_modules (there are {', '.join(sorted(_endings(layers)))}), or pass recovery='full'."
                ) from error
            raise

    def _let_gradients_in(self, model: nn.Module) -> None:
        """Reentrant activation checkpoints give no gradient to what is inside, if nothing that goes in has one."""
        checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        if checkpointed and not hasattr(model, "_require_grads_hook"):
            model.enable_input_require_grads()  # type: ignore[operator]
            self._asked_for_gradients = model

    @torch.no_grad()
    def settle(self) -> None:
        """Merge: a sum that is rounded once is not to the bit what base and adapter give apart."""
        from peft.tuners.lora import LoraLayer

        if self._tuner is None or self._before_merge:
            return
        layers: list[Any] = [module for module in self._tuner.modules() if isinstance(module, LoraLayer)]
        weights = [layer.get_base_layer().weight for layer in layers]
        self._before_merge = [(weight, weight.detach().to("cpu", copy=True)) for weight in weights]
        for layer in layers:
            layer.merge()

    @torch.no_grad()
    def undo(self) -> None:
        """Take the adapters out; the weights are as they were."""
        if self._loan is not None:
            self._loan.undo()  # first: it may refuse
        for weight, values in self._before_merge:
            weight.copy_(values)
        self._take_out()

    @torch.no_grad()
    def keep(self) -> None:
        """Add what the adapters learned to the weights, and take them out."""
        from peft.tuners.lora import LoraLayer

        if self._loan is not None:
            self._loan.undo()
        if self._tuner is not None and not self._before_merge:
            for module in self._tuner.modules():
                if isinstance(module, LoraLayer):
                    module.merge()
        self._take_out()

    def _take_out(self) -> None:
        if self._tuner is not None:
            model = self._tuner.unload()
            model.__dict__.pop("peft_config", None)  # older PEFT leaves it behind
        if self._asked_for_gradients is not None:
            self._asked_for_gradients.disable_input_require_grads()  # type: ignore[operator]
        for param, requires_grad in self._flags:
            param.requires_grad_(requires_grad)
            param.grad = None
        self._tuner = self._loan = self._asked_for_gradients = None
        self._flags, self._before_merge = [], []


def find_linear_layers(
    model: nn.Module, paths: Iterable[str], endings: Sequence[str] | None = None
) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers inside block stacks that can carry an adapter.

    Subclasses are left out, since their code may use the weight without calling the layer, as PyTorch's own attention
    does; and layers whose weight is tied to another place, which a merge would change, too.

    Args:
        model (`nn.Module`): holds the stacks.
        paths (`Iterable[str]`): of the stacks.
        endings (`Sequence[str]`, *optional*): last parts of the names to choose.

    Returns:
        `dict`: layers by their full names.

    Raises:
        MPrunerError: if there is none.

    Example:
        >>> model = nn.ModuleDict({"layers": nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.ReLU())])})
        >>> list(find_linear_layers(model, ["layers"]))
        ['layers.0.0']
    """
    inside = tuple(f"{path}." for path in paths)
    places: dict[int, int] = {}
    for _, param in model.named_parameters(remove_duplicate=False):
        places[id(param)] = places.get(id(param), 0) + 1
    found = {
        name: module
        for name, module in model.named_modules()
        if name.startswith(inside) and type(module) in (nn.Linear, Conv1D) and places[id(module.weight)] == 1
    }
    chosen = {
        name: module
        for name, module in found.items()
        if endings is None or any(name == ending or name.endswith(f".{ending}") for ending in endings)
    }
    if not chosen:
        given = "" if endings is None else f" that lora_target_modules={list(endings)} names"
        there = ", ".join(sorted(_endings(found))) or "none"
        raise MPrunerError(
            f"recovery='lora' finds no linear layer{given} in the blocks of {type(model).__name__}. Those that could get an "
            f"adapter are: {there}. Pass some of these as lora_target_modules, or recovery='full'."
        )
    return chosen


def _endings(names: Iterable[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}
