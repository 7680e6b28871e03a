"""A folder that is to be pushed: which files go, whether they belong together, and whether they load."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from hf_mpruner.config import CONFIG_NAME
from hf_mpruner.errors import MPrunerError, PushError
from hf_mpruner.hub import NEVER_SENT, WEIGHTS, Secrets, find_leaks, matches, scrub_json
from hf_mpruner.narrowing import NARROWING_REPORT_NAME, NarrowingReport
from hf_mpruner.plan import PLAN_NAME, WIDTH_PLAN_NAME, PruningPlan, WidthPlan
from hf_mpruner.record import RECORD_NAME
from hf_mpruner.report import PAGE_NAME, REPORT_NAME, PruningReport
from hf_mpruner.verify.saved import quietly

from .fits import Plan, Report, check_fits, check_one_run

CARD = "README.md"
# What a Trainer leaves in a folder and no user of the model needs; hidden files and names with "_" stay as well.
_NOT_SENT = (
    *NEVER_SENT,
    "checkpoint-*",
    "optimizer.*",
    "scheduler.*",
    "scaler.*",
    "rng_state*",
    "trainer_state.json",
    "__pycache__",
    "*.tmp",
)
# Files of an earlier push that go if this one has none of that name: weights and pictures, and what says of a narrowed model
# how its layers were cut, or the other way round.
_REPLACED = (*WEIGHTS, "plots/similarity_round_*.png", "plots/similarity_after_*.png")
_OF_WIDTH = (WIDTH_PLAN_NAME, NARROWING_REPORT_NAME)
_OF_DEPTH = (PLAN_NAME, REPORT_NAME, RECORD_NAME, CONFIG_NAME, PAGE_NAME, "plots/*.png")
_TRUST = "Look at it, then pass --trust_remote_code (trust_remote_code=True) to run it."
_SCRUBBED_BYTES = 20_000_000


@dataclass(frozen=True)
class ModelFolder:
    """A pruned model on the disk that was found whole.

    Args:
        folder (`Path`): where it lies.
        files (`tuple[str, ...]`): what is sent, relative to the folder, README.md among it if there is one.
        config (`PreTrainedConfig`): of the model.
        model_class (type): what loads it.
        plan (`PruningPlan` or `WidthPlan`): how it was cut, or narrowed.
        report (`PruningReport` or `NarrowingReport`, *optional*): of the run that did it.
    """

    folder: Path
    files: tuple[str, ...]
    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    plan: Plan
    report: Report | None = None

    @property
    def replaces(self) -> tuple[str, ...]:
        """Patterns of files of an earlier push that go if this one has none of that name."""
        return (*_REPLACED, *(_OF_WIDTH if isinstance(self.plan, PruningPlan) else _OF_DEPTH))

    @property
    def num_bytes(self) -> int:
        """Size of all that is sent."""
        return sum((self.folder / name).stat().st_size for name in self.files)

    def load(self, where: str | os.PathLike[str] | None = None, **options: Any) -> PreTrainedModel:
        """The model of the folder, or of another place, in eval mode.

        Raises:
            MPrunerError: if weights are missing, left over, or of another shape.
        """
        place = self.folder if where is None else where
        loader: Any = self.model_class
        with quietly():
            model, info = loader.from_pretrained(
                place, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        faults = [f"{kind.replace('_', ' ')} {sorted(map(str, found))[:3]}" for kind, found in info.items() if found]
        if faults:
            raise MPrunerError(
                f"'{place}' is no whole {self.model_class.__name__}: loading it reports {'; '.join(faults)}. Save it "
                "again with model.save_pretrained(folder)."
            )
        return model.eval()

    def check_weights(self) -> None:
        """Load the weights and compare them with the plan.

        Raises:
            PlanMismatchError: if the plan leaves other layers, neurons or heads than there are.
            MPrunerError: if it does not load whole.
        """
        check_fits(self.load(), self.plan)

    def contents(self, secrets: Secrets) -> dict[str, Path | bytes]:
        """What is sent under each name, once nothing private is in it; local paths are taken out of JSON files.

        Raises:
            PushError: for a token, or for a local path that cannot be taken out.
        """
        found: dict[str, Path | bytes] = {}
        for name in self.files:
            file = self.folder / name
            content: Path | bytes = file
            if file.suffix == ".json" and file.stat().st_size <= _SCRUBBED_BYTES:
                content = scrub_json(file.read_bytes(), secrets)
            if leaks := find_leaks(content, secrets):
                raise PushError(
                    f"'{file}' holds {leaks[0]}, which must not leave this machine. Take it out of the file, or the file "
                    "out of the folder, then push again. Nothing was sent."
                )
            found[name] = content
        return found


def read_folder(folder: str | os.PathLike[str], *, trust_remote_code: bool = False) -> ModelFolder:
    """Look whether a folder holds a pruned model whose files belong together; weights are not read.

    Args:
        folder (path): as `hf-mpruner prune`, `apply` or `narrow` wrote it.
        trust_remote_code (`bool`): whether code that lies in the folder may be run to load it.

    Raises:
        ValueError: if it is no folder, or lacks the config, the weights or the plan.
        PlanMismatchError: if plan, report and settings are not of one run.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"'{folder}' is no folder. Pass the one that hf-mpruner prune wrote (its --output_dir).")
    files = tuple(find_files(root))
    _check_complete(root, files)
    plan: Plan
    report: Report | None = None
    if PLAN_NAME in files:
        plan = PruningPlan.from_pretrained(root)
        report = PruningReport.load(root) if REPORT_NAME in files else None
    else:
        plan = WidthPlan.from_pretrained(root)
        report = NarrowingReport.load(root) if NARROWING_REPORT_NAME in files else None
    check_one_run(root, files, plan, report)
    try:
        config = AutoConfig.from_pretrained(root, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if trust_remote_code or "trust_remote_code" not in str(error):
            raise
        raise ValueError(f"'{root}' holds a model with code of its own. {_TRUST}") from error
    return ModelFolder(root, files, config, find_class(config, root, trust_remote_code), plan, report)


def find_files(folder: Path) -> list[str]:
    """Names of what is sent of a folder, in order."""
    names = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file())
    return [name.as_posix() for name in names if not any(_stays(part) for part in name.parts)]


def find_class(config: PreTrainedConfig, folder: Path, trust_remote_code: bool = False) -> type[PreTrainedModel]:
    """The class that a folder's model was saved from.

    Raises:
        ValueError: if transformers does not have it, and no trusted code brings it.
    """
    name = next(iter(config.architectures or ()), None)
    own = [found for auto, found in (getattr(config, "auto_map", None) or {}).items() if auto.startswith("AutoModel")]
    own.sort(key=lambda found: found.rpartition(".")[2] != name)
    if own and trust_remote_code:
        found: type[PreTrainedModel] = get_class_from_dynamic_module(own[0], str(folder))
        return found
    if name is not None and hasattr(transformers, name):
        found = getattr(transformers, name)
        return found
    hint = f"It brings code of its own. {_TRUST}" if own else "Save it with model.save_pretrained(folder)."
    raise ValueError(f"The config in '{folder}' names the class {name!r}, which transformers does not have. {hint}")


def _stays(part: str) -> bool:
    return part.startswith((".", "_")) or any(fnmatchcase(part, pattern) for pattern in _NOT_SENT)


def _check_complete(root: Path, files: tuple[str, ...]) -> None:
    if "adapter_config.json" in files:
        raise ValueError(
            f"'{root}' holds adapters, not a whole model. Merge them and save that: "
            "model.merge_and_unload().save_pretrained(folder)."
        )
    if "config.json" not in files:
        raise ValueError(f"'{root}' has no config.json. Pass the folder that model.save_pretrained wrote.")
    weights = [name for name in files if matches(name, WEIGHTS)]
    tensors = [name for name in weights if not name.endswith(".index.json")]
    if not tensors:
        raise ValueError(
            f"'{root}' has no weights (model.safetensors, or its parts). Write them there with "
            "model.save_pretrained(folder), then push."
        )
    for name in weights:
        if name.endswith(".index.json"):
            parts = set(json.loads((root / name).read_text(encoding="utf-8"))["weight_map"].values())
            if missing := sorted(parts - set(files)):
                raise ValueError(
                    f"'{root}' lacks '{missing[0]}', which '{name}' names: {len(missing)} of {len(parts)} parts of the "
                    "weights are not there. Save the model again with model.save_pretrained(folder)."
                )
    if {PLAN_NAME, WIDTH_PLAN_NAME} <= set(files):
        raise ValueError(
            f"'{root}' has a {PLAN_NAME} and a {WIDTH_PLAN_NAME}, and a card tells of one. Take out the one of the earlier step, "
            "whose model is this one's source."
        )
    if not {PLAN_NAME, WIDTH_PLAN_NAME} & set(files):
        raise ValueError(
            f"'{root}' has no {PLAN_NAME}, and no {WIDTH_PLAN_NAME}, so nothing says how the model was pruned. Write it with "
            f"plan.save_pretrained(folder). A model that was not pruned is pushed by: hf upload REPO_ID {root}"
        )
