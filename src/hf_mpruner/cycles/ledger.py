"""`Ledger`: what a run in cycles keeps on disk, in an order that a killed run can go on from.

`pruning_record.json` is written before anything else, and after each verdict. The model of an accepted round is whole in
its folder before the record says so, and an older one is deleted only after that.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mpruner.checkpoint import checksums, find_fault
from hf_mpruner.config import PruningConfig
from hf_mpruner.errors import MPrunerError
from hf_mpruner.plan import PLAN_NAME
from hf_mpruner.record import RECORD_NAME, PruningRecord
from hf_mpruner.report import REPORT_NAME, PruningReport
from hf_mpruner.storage import new_folder, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The last accepted model of a run that has ended. While it runs, that of round 2 is in `model-2`.
MODEL = "model"
_OURS = (MODEL, f"{MODEL}-*", "candidate-*", PLAN_NAME, REPORT_NAME)
_STRAYS = (f".{MODEL}*.tmp", f".{MODEL}*.old", ".candidate-*.tmp", ".pruning_*.tmp", ".report.json.*.tmp")


@dataclasses.dataclass
class Ledger:
    """The output folder of a run.

    Args:
        folder (`Path`): `output_dir`.
        weights (`str`): digest of the uncut model.
        steps (`int`): optimizer steps that were trained before the first cut.
        files (`dict`): sizes and checksums of the last accepted model's files.
    """

    folder: Path
    weights: str = ""
    steps: int = 0
    files: dict[str, Any] = dataclasses.field(default_factory=dict)

    def read(self) -> PruningRecord | None:
        """The record of the run that is in the folder, without a round that has no verdict; `None` for a new run.

        Raises:
            MPrunerError: for a folder that holds something else.
        """
        file = self.folder / RECORD_NAME
        if not file.is_file():
            found = sorted(entry.name for pattern in _OURS for entry in self.folder.glob(pattern))
            if found:
                raise MPrunerError(
                    f"output_dir='{self.folder}' holds '{found[0]}', but no run that could be gone on with. Pass a new folder."
                )
            return None
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            facts = values["cycles"]
            record = PruningRecord.from_dict(values)
            self.weights, self.steps, self.files = facts["weights"], facts["steps"], facts["files"]
        except (ValueError, TypeError, KeyError) as error:
            raise MPrunerError(
                f"'{file}' is no record of prune_in_cycles ({type(error).__name__}: {error}). Pass another output_dir."
            ) from error
        if record.pending is not None:
            record.rounds.pop()
        return record

    def check_same_run(
        self, record: PruningRecord, config: PruningConfig, model: PreTrainedModel, weights: str
    ) -> None:
        """Refuse to go on with the run of another model or config.

        Args:
            record (`PruningRecord`): of the run in the folder.
            config (`PruningConfig`): of this call.
            model (`PreTrainedModel`): uncut.
            weights (`str`): its digest.

        Raises:
            MPrunerError: naming what differs.
        """
        past, kind = PruningConfig.from_dict(record.config), model.config.model_type
        names = dict(model.named_modules())
        depths = {path: len(names[path]._modules) for path in record.depths if path in names}
        fields = [f.name for f in dataclasses.fields(config) if getattr(past, f.name) != getattr(config, f.name)]
        other = ""
        if record.model_type != kind:
            other = f"of a '{record.model_type}', but the model is a '{kind}'"
        elif record.depths != depths:
            other = f"of a model with {record.depths} layers, but this one has {depths}"
        elif fields:
            told = ", ".join(f"{name}={getattr(past, name)!r} (now {getattr(config, name)!r})" for name in fields)
            other = f"with PruningConfig({told})"
        elif self.weights != weights:
            other = "of a model with other weights, or with another data type"
        if other:
            raise MPrunerError(
                f"output_dir='{self.folder}' holds another run, {other}. Pass another output_dir, or what that run was "
                "given to go on with it. Nothing was changed."
            )

    def write(self, record: PruningRecord) -> None:
        """Write the record; what it says is on the disk already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {"weights": self.weights, "steps": self.steps, "files": self.files}
        write_json(self.folder / RECORD_NAME, {**record.to_dict(), "cycles": facts})

    def path_of(self, number: int) -> Path:
        """Folder of the model that round `number` left; 0 for the one that was trained before the first cut."""
        return self.folder / f"{MODEL}-{number}"

    def candidate(self, number: int) -> Path:
        """Folder of the model that round `number` trains."""
        return self.folder / f"candidate-{number}"

    def accept(self, number: int, record: PruningRecord) -> None:
        """Let the model in `path_of(number)` be the last accepted one, and delete what came before."""
        folder = self.path_of(number)
        self.files = checksums(folder, [file for file in folder.rglob("*") if file.is_file()])
        self.write(record)
        self.sweep(record)

    def current(self, record: PruningRecord) -> Path | None:
        """Folder of the last accepted model; `None` for the uncut one.

        Raises:
            MPrunerError: if it is gone, or not as it was written.
        """
        if not self.files:
            return None
        folder = self.path_of(last_accepted(record))
        # a run that ended may have been killed before or after the folder got its last name
        folder = folder if folder.is_dir() else self.folder / MODEL
        if fault := find_fault(folder, self.files):
            raise MPrunerError(
                f"The last accepted model of this run should be in '{folder}', but {fault}. Put it back, or begin anew with "
                "another output_dir."
            )
        return folder

    def sweep(self, record: PruningRecord) -> None:
        """Delete folders of models that are no longer needed, and what a killed run has left half-written."""
        keep = self.path_of(last_accepted(record)) if self.files else None
        for pattern in (f"{MODEL}-*", "candidate-*", *_STRAYS):
            for entry in self.folder.glob(pattern):
                if entry.is_dir() and entry != keep:
                    shutil.rmtree(entry)
                elif entry.is_file():
                    entry.unlink()

    @contextmanager
    def last_folder(self, record: PruningRecord) -> Iterator[Path | None]:
        """Give the last accepted model its last name, then write plan and report.

        Yields:
            `Path`: an empty folder to save the uncut model into; `None` if there is nothing to do.
        """
        folder = self.folder / MODEL
        current = self.current(record)
        if current is None and not folder.is_dir():
            with new_folder(folder) as draft:
                yield draft
        else:
            if current is not None and current != folder:
                current.rename(folder)
            yield None
        report = PruningReport(record)
        report.plan.save_pretrained(self.folder)
        report.save(self.folder)
        self.sweep(record)


def last_accepted(record: PruningRecord) -> int:
    """Number of the last round that was accepted; 0 if none was."""
    return next((round_.number for round_ in reversed(record.rounds) if round_.verdict in ("accepted", "unjudged")), 0)
