"""`analyze --profile`: what the analysis cost, stage by stage, and beside plain forward passes of the same batches."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import align
from .processes import rank

if TYPE_CHECKING:
    from hf_mpruner.architectures import BlockStack
    from hf_mpruner.config import PruningConfig
    from hf_mpruner.footprint.profile import Beside

    from .measure import Rows

PROFILE_NAME = "profile.json"
_OWN = "plain passes of this profile"


def add_flag(parser: argparse.ArgumentParser) -> None:
    """The flag of `analyze`."""
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also say what the analysis cost: seconds and memory by stage, and a few plain forward passes to compare with",
    )


class Profile:
    """Times the stages of a command, and runs plain passes beside its measurement; without the flag it does nothing.

    Args:
        wanted (`bool`): whether `--profile` was given.
    """

    def __init__(self, wanted: bool) -> None:
        """The first stage begins."""
        self.wanted = wanted
        if wanted:
            from hf_mpruner.footprint.profile import Stages

            self._stages = Stages()
        self._open = ExitStack()
        self._beside: Beside | None = None
        self._values: dict[str, Any] = {}

    def mark(self, stage: str) -> None:
        """A stage ends here."""
        if self.wanted:
            self._open.close()
            self._stages.mark(stage)

    def measure(self, rows: Rows, config: PruningConfig, stacks: list[BlockStack]) -> None:
        """Run plain passes, and watch what follows until the next mark: it is the measurement."""
        if not self.wanted:
            return
        from hf_mpruner.footprint.peak import PeakMemory
        from hf_mpruner.footprint.profile import counting_passes, run_beside
        from hf_mpruner.placement import input_device

        self.mark("loading the model")
        self._beside = run_beside(
            rows.model, rows.batches(config), stacks if config.plans_by_threshold else None, config.protocol
        )
        self._stages.mark(_OWN)
        self._device = input_device(rows.model)
        self._memory = self._open.enter_context(PeakMemory(self._device))
        self._count = self._open.enter_context(counting_passes(rows.model))

    def to_values(self) -> dict[str, Any]:
        """What `--format json` says; empty without the flag, or before anything was measured."""
        if self._beside is None:
            return {}
        import torch

        from hf_mpruner.environment import describe_device

        beside, memory, before = self._beside, self._memory, self._beside.memory
        seconds = self._stages.seconds
        measuring = seconds["measuring"]
        on_device = self._device.type != "cpu"
        return {
            "profile": {
                "device": describe_device(self._device),
                "threads": torch.get_num_threads(),
                "seconds": dict(seconds),
                "forward_passes": self._count.passes,
                "examples": self._count.examples,
                "examples_per_second": self._count.examples / measuring,
                "plain": {
                    "batches": beside.batches,
                    "examples": beside.examples,
                    "seconds": beside.plain,
                    "measured_seconds": beside.measured,
                    "ratio": beside.ratio,
                    "ratio_of_all": measuring / (self._count.examples * beside.seconds_per_example)
                    if self._count.examples
                    else None,
                },
                "memory": {
                    "of": "the accelerator" if on_device else "the process",
                    "loaded_bytes": memory.loaded_bytes,
                    "measuring_bytes": _above(memory, before, on_device),
                    "plain_bytes": before.device_bytes if on_device else before.host_bytes,
                },
            }
        }

    def to_table(self) -> str:
        """The same for people, below the table of the analysis."""
        found = self.to_values().get("profile")
        if found is None:
            return ""
        from hf_mpruner.report import format_bytes, format_rate

        passes, threads = found["forward_passes"], found["threads"]
        total = sum(found["seconds"].values())
        rows = [[name, f"{value:.2f}", f"{value / total:.0%}"] for name, value in found["seconds"].items()]
        plain, memory = found["plain"], found["memory"]
        lines = [
            f"\n\ncost of this analysis on {found['device']}, {threads} thread{'' if threads == 1 else 's'}\n",
            align(["stage", "seconds", "share"], [*rows, ["together", f"{total:.2f}", ""]], right=[1, 2]) + "\n",
            f"measuring: {passes} forward pass{'' if passes == 1 else 'es'}, {found['examples']:,} examples, "
            f"{format_rate(found['examples_per_second'])} examples a second",
        ]
        if plain["ratio"] is not None:
            lines.append(
                f"similarity: {plain['ratio']:.3f} times the seconds of plain forward passes, over the same "
                f"{plain['batches']} batches, medians of {len(plain['seconds'])}"
            )
        elif plain["ratio_of_all"] is not None:
            lines.append(f"scoring: {plain['ratio_of_all']:.2f} times the seconds of as many plain forward passes")
        if memory["measuring_bytes"] is not None and memory["plain_bytes"] is not None:
            lines.append(
                f"memory of {memory['of']} above the loaded model: {format_bytes(memory['measuring_bytes'])} at most while "
                f"measuring, {format_bytes(memory['plain_bytes'])} in plain passes"
            )
        return "\n".join(lines)

    def write(self, folder: Path | None) -> None:
        """The last stage, writing, ends: write `profile.json` beside what the analysis has written."""
        self.mark("writing")
        if folder is not None and self._beside is not None and rank() == 0:
            from hf_mpruner.storage import write_json

            write_json(folder / PROFILE_NAME, self.to_values()["profile"])


def _above(memory: Any, before: Any, on_device: bool) -> int | None:
    """Growth while measuring above what there was before any pass: passes before it have left memory that it used again."""
    if on_device:
        return memory.device_bytes
    if memory.host_bytes is None or before.loaded_bytes is None:
        return None
    return memory.host_bytes + memory.loaded_bytes - before.loaded_bytes
