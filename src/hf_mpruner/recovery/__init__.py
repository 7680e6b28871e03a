"""How a cut model recovers: what trains, and at which learning rate."""

from hf_mpruner.recovery.schedule import RestartedRate, restart_factor
from hf_mpruner.recovery.touched import FrozenParameters, freeze_untouched_, touched_layers

__all__ = ["FrozenParameters", "RestartedRate", "freeze_untouched_", "restart_factor", "touched_layers"]
