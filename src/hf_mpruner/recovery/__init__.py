"""How a cut model recovers: what trains, at which learning rate, and from which teacher."""

from hf_mpruner.config import PruningConfig
from hf_mpruner.recovery.distillation import divergence, hidden_difference, kind_of, recorded
from hf_mpruner.recovery.lora import LowRankAdapters, find_linear_layers
from hf_mpruner.recovery.schedule import RecoveryRate, restart_factor
from hf_mpruner.recovery.touched import FrozenParameters, freeze_untouched_, touched_layers
from hf_mpruner.recovery.trainable import BesideCuts, Trainable, WholeModel

__all__ = [
    "BesideCuts",
    "FrozenParameters",
    "LowRankAdapters",
    "RecoveryRate",
    "Trainable",
    "WholeModel",
    "divergence",
    "find_linear_layers",
    "freeze_untouched_",
    "hidden_difference",
    "kind_of",
    "make_trainable",
    "recorded",
    "restart_factor",
    "touched_layers",
]


def make_trainable(config: PruningConfig) -> Trainable:
    """What trains between a cut and its verdict, as the config says; one for each cut.

    Example:
        >>> type(make_trainable(PruningConfig(freeze_untouched=True))).__name__
        'BesideCuts'
    """
    if config.recovery == "lora":
        return LowRankAdapters(config.lora_rank, config.lora_alpha, config.lora_target_modules, config.seed)
    return BesideCuts() if config.freeze_untouched else WholeModel()
