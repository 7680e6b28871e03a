"""`PruningPlan`: which layers of which stack stay, in the numbering of the model the plan was made for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mpruner.architectures import BlockStack, parameters_after
from hf_mpruner.clusters import LayerCluster
from hf_mpruner.config import resolve_protected
from hf_mpruner.errors import PlanMismatchError
from hf_mpruner.storage import write_json

from .stack import PlanPreview, StackPlan

if TYPE_CHECKING:
    from torch import nn

    from hf_mpruner.hub import Pushed

PLAN_NAME = "pruning_plan.json"
PLAN_VERSION = 1


@dataclass(frozen=True)
class PruningPlan:
    """Which layers stay, and why: data that can be printed, saved, replayed on a fresh model, byte for byte.

    Args:
        stacks (`dict[str, StackPlan]`): for each block stack (by module path) its depth and kept layers.
        model_type (`str`, *optional*): `config.model_type` of the model the plan was made for.
        source_model, source_revision (`str`, *optional*): where that model came from.
        evidence (`dict`): plain values that led to the plan (similarities, clusters, rounds).

    Example:
        >>> from hf_mpruner.architectures import BlockStack, ConfigField
        >>> stack = BlockStack("encoder.layer", "BertLayer", 6, ConfigField("num_hidden_layers"))
        >>> plan = PruningPlan.from_kept({"encoder.layer": [0, 1, 5]}, [stack])
        >>> plan.stacks["encoder.layer"].removed
        (2, 3, 4)
    """

    stacks: dict[str, StackPlan]
    model_type: str | None = None
    source_model: str | None = None
    source_revision: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """`{path: kept layers}`."""
        return {path: stack.kept for path, stack in self.stacks.items()}

    @property
    def merged(self) -> dict[str, Mapping[int, Mapping[int, float]]]:
        """`{path: StackPlan.merged}` of the stacks in which layers are merged."""
        return {path: stack.merged for path, stack in self.stacks.items() if stack.merged}

    @property
    def num_removed(self) -> int:
        """Number of layers that the plan removes, over all stacks."""
        return sum(len(stack.removed) for stack in self.stacks.values())

    @classmethod
    def from_kept(
        cls,
        kept: Mapping[str, Sequence[int]],
        stacks: Iterable[BlockStack],
        *,
        merged: Mapping[str, Mapping[int, Mapping[int, float]]] | None = None,
        **facts: Any,
    ) -> PruningPlan:
        """Plan by hand.

        Args:
            kept (`dict[str, list[int]]`): for each stack path the layers that stay; stacks left out stay whole.
            stacks (list of `BlockStack`): from `find_block_stacks(model)`.
            merged (`dict`, *optional*): for each stack path what `StackPlan.merged` holds.
            facts: `model_type`, `source_model`, `source_revision`, `evidence`.

        Raises:
            PlanMismatchError: for a path that is no stack of the model, or a pinned layer that would go.
            ValueError: for layers that do not exist, are repeated, or for an empty stack.
        """
        by_path = {stack.path: stack for stack in stacks}
        sums = {path: terms for path, terms in (merged or {}).items() if terms}
        for path in (*kept, *sums):
            if path not in by_path:
                raise PlanMismatchError(
                    f"'{path}' is no block stack of this model. Its stacks are: {_quoted(by_path)}."
                )
        plans = {}
        for path, stack in by_path.items():
            try:
                plans[path] = StackPlan(stack.depth, tuple(kept.get(path, range(stack.depth))), sums.get(path, {}))
            except ValueError as error:
                raise ValueError(f"Stack '{path}': {error}") from None
        for path, plan in plans.items():
            check_removed(by_path[path], plan.removed)
        return cls(plans, **facts)

    @classmethod
    def from_clusters(
        cls,
        clusters: Mapping[str, Sequence[LayerCluster]],
        stacks: Iterable[BlockStack],
        granularity: int = 1,
        protect: Sequence[int | str] = (),
        **facts: Any,
    ) -> PruningPlan:
        """Plan of Algorithm 4: of each cluster the members at positions `[1::granularity]` go.

        Args:
            clusters (`dict[str, list[LayerCluster]]`): from `find_clusters`, for each stack path.
            stacks (list of `BlockStack`): from `find_block_stacks(model)`.
            granularity (`int`): 1..3, the paper's k. 1 keeps only the first layer of a cluster.
            protect (list of `int` or `str`): layers that stay: `0`, `-1` (of every stack), `"encoder.block:0"`.
            facts: `model_type`, `source_model`, `source_revision`, `evidence`.

        Raises:
            PlanMismatchError: for a path that is no stack of the model or a cluster beyond its depth.
            ValueError: for a granularity outside 1..3 or a protected layer that does not exist.
        """
        if granularity not in (1, 2, 3):
            raise ValueError(f"granularity={granularity!r} is not allowed: pass 1, 2 or 3 (the paper's k).")
        stacks = list(stacks)
        by_path = {stack.path: stack for stack in stacks}
        protected = resolve_protected(protect, {stack.path: stack.depth for stack in stacks})
        kept: dict[str, list[int]] = {}
        for path, found in clusters.items():
            if path not in by_path:
                raise PlanMismatchError(
                    f"'{path}' is no block stack of this model. Its stacks are: {_quoted(by_path)}."
                )
            stack = by_path[path]
            deepest = max((layer for cluster in found for layer in cluster.layers), default=0)
            if deepest >= stack.depth:
                raise PlanMismatchError(
                    f"The clusters of '{path}' name layer {deepest}, but the model has {stack.depth} layers there. "
                    "Measure the similarity of this model again."
                )
            going = {layer for cluster in found for layer in cluster.layers[1::granularity]}
            going = set(stack.removable(going - protected[path]))
            kept[path] = [layer for layer in range(stack.depth) if layer not in going]
        return cls.from_kept(kept, stacks, **facts)

    def then(self, later: PruningPlan) -> PruningPlan:
        """The plan that does this one and then `later` (made for the cut model), in this plan's numbering.

        Layers that are merged in both are merged in one step, which agrees with two up to rounding.

        Raises:
            PlanMismatchError: if `later` was made for other depths than this plan leaves.
        """
        stacks = dict(self.stacks)
        for path, second in later.stacks.items():
            first = stacks.get(path)
            if first is None or len(first.kept) != second.depth:
                left = "no such stack" if first is None else f"{len(first.kept)} layers"
                raise PlanMismatchError(
                    f"The second plan expects {second.depth} layers in '{path}', the first leaves {left}. "
                    "Make the second plan for the model that the first one leaves."
                )
            stacks[path] = first.then(second)
        return replace(self, stacks=stacks)

    def preview(self, model: nn.Module) -> PlanPreview:
        """Count parameters and bytes before and after, on a model that the plan fits; nothing is changed."""
        whole = {path: range(stack.depth) for path, stack in self.stacks.items()}
        parameters_before, bytes_before = parameters_after(model, whole)
        parameters_left, bytes_left = parameters_after(model, self.kept)
        return PlanPreview(parameters_before, parameters_left, bytes_before, bytes_left, dict(self.stacks))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "plan_version": PLAN_VERSION,
            "model_type": self.model_type,
            "source_model": self.source_model,
            "source_revision": self.source_revision,
            "stacks": {path: stack.to_dict() for path, stack in self.stacks.items()},
            "evidence": self.evidence,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PruningPlan:
        """Build from `to_dict()`'s result.

        Raises:
            ValueError: if the values are no plan, or a plan of a newer format.
        """
        if "stacks" not in values:
            raise ValueError(f"This is no pruning plan: it has no 'stacks', only {_quoted(values)}.")
        if values.get("plan_version", PLAN_VERSION) > PLAN_VERSION:
            raise ValueError(
                f"This plan has format {values['plan_version']}, this hf_mpruner reads up to {PLAN_VERSION}. "
                "Update it: pip install -U hf_mpruner."
            )
        stacks = {path: StackPlan.from_dict(stack) for path, stack in values["stacks"].items()}
        facts = {key: values.get(key) for key in ("model_type", "source_model", "source_revision")}
        return cls(stacks, **facts, evidence=dict(values.get("evidence") or {}))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> Path:
        """Write `pruning_plan.json` into a folder and return its path."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        return write_json(folder / PLAN_NAME, self.to_dict())

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
    ) -> PruningPlan:
        """Read a plan from a JSON file, from a folder that holds `pruning_plan.json`, or from a Hub model id.

        Args:
            path (path or `str`): the file, the folder, or the id.
            revision (`str`, *optional*): of the repository on the Hub.
            token (`str` or `bool`, *optional*): for a private one; by default that of `HF_TOKEN` or of `hf auth login`.

        Raises:
            FileNotFoundError: if there is no plan at that place: no such folder, repository, revision, or none in it.
            PermissionError: if the repository may not be read.
            ConnectionError: if the Hub cannot say.
            ValueError: if what is there is no plan.
        """
        from .hub import read_plan_file

        return cls.from_dict(read_plan_file(path, PLAN_NAME, "pruning plan", revision, token))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        token: str | bool | None = None,
    ) -> Pushed:
        """Put `pruning_plan.json` into a model repository on the Hub, beside whatever lies there.

        Args:
            repo_id (`str`): the repository; it is made if there is none. Without a namespace, the user's own.
            private (`bool`, *optional*): for a repository that is made here.
            revision (`str`, *optional*): a branch, which is made if there is none; by default `"main"`.
            create_pr (`bool`): open a pull request instead.
            token (`str` or `bool`, *optional*): by default the one of `HF_TOKEN` or of `hf auth login`.

        Returns:
            `Pushed`: the commit, and its page.

        Raises:
            PushError: if it did not get there; says why and what to do.
            ValueError: for a name that is none.
        """
        from .hub import push_plan_file

        target = {"private": private, "revision": revision, "create_pr": create_pr, "token": token}
        return push_plan_file(repo_id, PLAN_NAME, self.to_dict(), **target)

    def __str__(self) -> str:
        """One line for each stack: depth before and after, the layers that go, and those that are merged."""
        return "\n".join(f"{path}: {stack.changes}" for path, stack in self.stacks.items())


def check_removed(stack: BlockStack, removed: Sequence[int]) -> None:
    """Check that some layers of a stack may go, and may go together.

    Args:
        stack (`BlockStack`): as it is now.
        removed (`Sequence[int]`): layers that would go, ascending.

    Raises:
        PlanMismatchError: a pinned layer among them, or a run that does not fit the stack's period.
    """
    for layer in removed:
        if layer in stack.pinned:
            raise PlanMismatchError(
                f"Layer {layer} of '{stack.path}' cannot be dropped: {stack.pinned[layer]}. "
                f"Keep it: add {layer} to the kept layers of '{stack.path}'."
            )
    fitting = stack.removable(removed)
    if fitting != tuple(removed):
        runs = (
            "from the end only"
            if stack.period == stack.depth
            else f"in runs of {stack.period} (or a multiple), or from the end"
        )
        instead = f"drop only {list(fitting)}" if fitting else "drop none there, or a whole run"
        raise PlanMismatchError(
            f"Layers {list(removed)} of '{stack.path}' cannot be dropped together: layers go {runs}, because "
            f"{stack.period_reason}. Of these, {instead}."
        )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
