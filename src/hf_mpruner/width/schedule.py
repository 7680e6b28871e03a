"""Rounds of pruning neurons with training between them: how many go in each, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Of = Literal["left", "original"]


@dataclass(frozen=True)
class NeuronRound:
    """What one round did.

    Args:
        number (`int`): from 1.
        removed (`dict`): layer name to the neurons that went, ascending, in the numbering that `prune` uses.
        widths (`dict`): layer name to the neurons that are left.
        before (`dict`): what `evaluate` gave after pruning, before training; empty without it.
        after (`dict`): the same after training.
    """

    number: int
    removed: dict[str, tuple[int, ...]]
    widths: dict[str, int]
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)


def numbers_by_round(width: int, fraction: float, rounds: int, of: Of = "left", layer: str = "layer") -> list[int]:
    """How many neurons of a layer go in each round.

    Args:
        width (`int`): neurons at the start.
        fraction (`float`): p, of each round.
        rounds (`int`): j.
        of (`str`): `"left"` takes the fraction of the neurons that are left, `"original"` that of the neurons at the start.
            The text of Higgins 2023 (section 3) says "p% of the neurons in the layer" and repeats j times; its published code
            takes those that are left, rounded to the nearest, and only so are 15 rounds of 0.2 possible.
        layer (`str`): what errors call the layer.

    Raises:
        ValueError: for a fraction outside 0 to 1, fewer than 1 round, another `of`, or if no neuron would be left.

    Example:
        >>> numbers_by_round(512, 0.2, 4)
        [102, 82, 66, 52]
        >>> sum(numbers_by_round(512, 0.2, 15))
        494
        >>> numbers_by_round(512, 0.2, 4, of="original")
        [102, 102, 102, 102]
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction={fraction} is not from 0 to 1: for a fifth of the neurons in each round pass 0.2.")
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: pass 1 or more.")
    if of not in ("left", "original"):
        raise ValueError(f"of='{of}' is not known: pass 'left' or 'original'.")
    left = width
    numbers: list[int] = []
    for _ in range(rounds):
        number = round(fraction * (left if of == "left" else width))
        if number >= left:
            raise ValueError(
                f"Round {len(numbers) + 1} of {rounds} takes {number} neurons from '{layer}', which then has {left} of "
                f"{width}: a layer without neurons passes nothing on. Take a smaller fraction than {fraction}, fewer "
                "rounds, or of='left'."
            )
        numbers.append(number)
        left -= number
    return numbers


def prune_in_rounds(
    widths: Mapping[str, int],
    fraction: float,
    rounds: int,
    prune: Callable[[dict[str, int]], Mapping[str, Iterable[int]]],
    retrain: Callable[[int], None],
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    of: Of = "left",
) -> list[NeuronRound]:
    """Prune, retrain, and again: the iterative schedule of Higgins 2023, section 3, for any model and measure.

    Every round's numbers are known, and checked, before the first neuron goes.

    Args:
        widths (`dict`): layer name to its neurons at the start.
        fraction (`float`): see `numbers_by_round`.
        rounds (`int`): likewise.
        prune (callable): is given how many neurons of each layer go now, takes them out, and returns which.
        retrain (callable): trains the model; is given the number of the round, from 1.
        evaluate (callable, *optional*): measures the model, called before and after each training.
        of (`str`): see `numbers_by_round`.

    Raises:
        ValueError: as `numbers_by_round`, or if `prune` took out another number than asked.

    Example:
        >>> alive = {"fc1": list(range(10))}
        >>> def last_ones(numbers):
        ...     return {name: [alive[name].pop() for _ in range(number)] for name, number in numbers.items()}
        >>> history = prune_in_rounds({"fc1": 10}, 0.5, 2, last_ones, retrain=lambda number: None)
        >>> [done.widths for done in history]
        [{'fc1': 5}, {'fc1': 3}]
    """
    plans = {name: numbers_by_round(width, fraction, rounds, of, name) for name, width in widths.items()}
    left, history = dict(widths), []
    for number in range(1, rounds + 1):
        asked = {name: plan[number - 1] for name, plan in plans.items()}
        removed = {name: tuple(sorted(int(i) for i in gone)) for name, gone in prune(dict(asked)).items()}
        for name, count in asked.items():
            if len(set(removed.get(name, ()))) != count:
                raise ValueError(
                    f"prune was asked for {count} neurons of '{name}' in round {number} and took {len(removed.get(name, ()))}"
                    f": {list(removed.get(name, ()))}. It has to take as many as asked, each once."
                )
            left[name] -= count
        before = dict(evaluate()) if evaluate is not None else {}
        retrain(number)
        after = dict(evaluate()) if evaluate is not None else {}
        history.append(NeuronRound(number, removed, dict(left), before, after))
    return history
