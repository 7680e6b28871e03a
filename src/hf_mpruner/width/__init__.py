"""Neurons and attention heads: which go, by CKA, mutual information or weights."""

from hf_mpruner.width.base import NeuronCriterion, NeuronInputs, NeuronOrder
from hf_mpruner.width.cka import greedy_cka_order
from hf_mpruner.width.measure import measure_units
from hf_mpruner.width.moments import Moments
from hf_mpruner.width.planning import plan_width
from hf_mpruner.width.registry import find_neuron_criterion, known_neuron_criteria, register_neuron_criterion
from hf_mpruner.width.terc import sweep_layers

__all__ = [
    "Moments",
    "NeuronCriterion",
    "NeuronInputs",
    "NeuronOrder",
    "find_neuron_criterion",
    "greedy_cka_order",
    "known_neuron_criteria",
    "measure_units",
    "plan_width",
    "register_neuron_criterion",
    "sweep_layers",
]
