"""Slice the checkpoint of every model type on disk, and compare with loading, cutting and saving it, to the byte.

python -m zoo.slices --jobs 2 --output slices.jsonl     # all types; --types, --shard, --resume for less
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from hf_mpruner import PruningPlan, apply_plan_
from hf_mpruner.architectures import examine
from hf_mpruner.errors import CheckpointError, MPrunerError
from hf_mpruner.slicing import Slicing
from hf_mpruner.verify.saved import same_bits
from zoo.checks import find_cuts, name_cut, quiet
from zoo.probe import Kept, one_line

if TYPE_CHECKING:
    from zoo.tiny import Specimen

STATUSES = {
    "identical": "every cut that can be made in memory gives the same folder on disk, to the byte",
    "refused": "slicing on disk is refused with a reason",
    "wrong": "another folder than in memory",
    "no cut": "the model cannot be cut in memory either",
    "not built": "no tiny model of it could be made and saved",
    "crash": "an error that is no refusal",
    "timeout": "took too long",
}


@dataclass
class SliceVerdict:
    """What came out for one model type.

    Args:
        cuts: how many cuts were made both ways.
        refusals: "cut: reason" of those that were made in memory only.
        failures: "cut: what differs".
        notes: of cuts that cannot be made in memory, and of types that loading changes.
    """

    model_type: str
    model_class: str = ""
    status: str = ""
    reason: str = ""
    cuts: int = 0
    refusals: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)


def check_slices(model_type: str, seed: int = 0, most: int = 3) -> SliceVerdict:
    """Build a tiny model of a type, save it, and make up to `most` cuts of it both ways."""
    from zoo.tiny import NotBuildable, build_specimen

    torch.set_num_threads(1)
    try:
        with quiet():
            specimen = build_specimen(model_type, seed)
    except NotBuildable as error:
        return SliceVerdict(model_type, status="not built", reason=str(error))
    except Exception as error:  # the builder runs the code of the type
        return SliceVerdict(model_type, status="not built", reason=one_line(error))
    verdict = SliceVerdict(model_type, type(specimen.model).__name__)
    try:
        with quiet():
            judge(specimen, verdict, most)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        verdict.status = "crash"
        verdict.reason = f"{one_line(error)} ({place.filename.rpartition('/')[2]}:{place.lineno})"
    return verdict


def judge(specimen: Specimen, verdict: SliceVerdict, most: int) -> None:
    """A few cuts of a model, both ways."""
    try:
        stacks = examine(specimen.model).stacks
    except MPrunerError as error:
        verdict.status, verdict.reason = "no cut", str(error)
        return
    if not stacks:
        verdict.status, verdict.reason = "no cut", "no stack"
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            specimen.model.save_pretrained(folder / "whole")
        except Exception as error:  # whatever the model's own code raises
            verdict.status, verdict.reason = "not built", f"it cannot be saved: {one_line(error)}"
            return
        cuts = list(find_cuts(stacks))
        numbers = (len(cuts) - 1, min(1, len(cuts) - 1), len(cuts) // 2)  # the last one cuts all stacks
        for number in list(dict.fromkeys(numbers))[:most] if cuts else ():
            try_cut(specimen, stacks, cuts[number], folder / str(number), verdict)
    verdict.status = (
        "wrong" if verdict.failures else "refused" if verdict.refusals else "identical" if verdict.cuts else "no cut"
    )
    verdict.reason = (verdict.failures + verdict.refusals + verdict.notes + [""])[0]


def try_cut(specimen: Specimen, stacks: Any, kept: Kept, folder: Path, verdict: SliceVerdict) -> None:
    """One cut in memory, then on disk, then the comparison."""
    cut, whole = name_cut(stacks, kept), folder.parent / "whole"
    kind: Any = type(specimen.model)
    folder.mkdir()
    try:
        plan = PruningPlan.from_kept(kept, stacks)
        model, info = kind.from_pretrained(whole, dtype="auto", output_loading_info=True)
        if info["missing_keys"]:
            verdict.notes.append(f"{cut}: the saved model lacks {sorted(info['missing_keys'])[0]}")
            return
        apply_plan_(model, plan)
        model.save_pretrained(folder / "memory")
    except Exception as error:  # what cannot be done in memory is no matter here
        verdict.notes.append(f"{cut}: not in memory: {one_line(error)}")
        return
    try:
        write_slice(whole, plan, folder / "disk", kind)
    except CheckpointError as error:
        verdict.refusals.append(f"{cut}: {error}")
        return
    verdict.cuts += 1
    if retyped := find_retyped(folder / "memory", folder / "disk"):
        verdict.notes.append(f"{cut}: stored in another type than loaded, and kept so: {', '.join(retyped)}")
        differs = compare_loaded(kind, folder / "memory", folder / "disk")
    else:
        differs = compare(folder / "memory", folder / "disk")
    if differs:
        verdict.failures.append(f"{cut}: {differs}")


def write_slice(whole: Path, plan: PruningPlan, target: Path, kind: Any) -> None:
    """As `slice_checkpoint` does, for classes that transformers does not export as well."""
    slicing = Slicing(whole, model_class=kind)
    slicing.cut(plan)
    target.mkdir()
    slicing.write(target, progress=False)


def compare(memory: Path, disk: Path) -> str:
    """What differs between two folders, "" for nothing: names of files and their bytes."""
    names = {file.name for folder in (memory, disk) for file in folder.iterdir()}
    for name in sorted(names):
        one, other = (folder / name for folder in (memory, disk))
        if not one.is_file() or not other.is_file():
            return f"{name} is only {'in memory' if one.is_file() else 'on disk'}"
        if one.read_bytes() != other.read_bytes():
            return f"{name} differs{_first_difference(one, other)}"
    return ""


def find_retyped(memory: Path, disk: Path) -> list[str]:
    """Tensors that loading casts, so that memory writes another type than the one that was stored and that stays on disk."""
    one, other = (load_file(folder / "model.safetensors") for folder in (memory, disk))
    return [name for name in one if name in other and one[name].dtype != other[name].dtype]


def compare_loaded(kind: Any, memory: Path, disk: Path) -> str:
    """What differs between two folders in all but the types of stored tensors: files beside, and models loaded, to the bit."""
    for name in ("config.json", "generation_config.json"):
        files = [folder / name for folder in (memory, disk)]
        if [file.exists() for file in files] != [files[0].exists()] * 2:
            return f"{name} is only in one"
        if files[0].exists() and files[0].read_bytes() != files[1].read_bytes():
            return f"{name} differs{_first_difference(*files)}"
    one, other = (kind.from_pretrained(folder, dtype="auto").state_dict() for folder in (memory, disk))
    if names := sorted(one.keys() ^ other.keys()):
        return f"{names[0]} is only in one loaded model"
    return next((f"{name} differs once loaded" for name in one if not same_bits(one[name], other[name])), "")


def _first_difference(one: Path, other: Path) -> str:
    if one.suffix != ".safetensors":
        lines = zip(one.read_text().splitlines(), other.read_text().splitlines(), strict=False)
        return next((f": {a.strip()} / {b.strip()}" for a, b in lines if a != b), " in length")
    a, b = load_file(one), load_file(other)
    if names := sorted(a.keys() ^ b.keys()):
        return f": {names[0]} is only in one"
    return next((f": {name}" for name in a if not torch.equal(a[name], b[name])), ": headers")


def summarize(results: Sequence[dict[str, Any]]) -> str:
    """Counts, every type that is wrong, and the reasons of those that are refused."""
    counts = Counter(result["status"] for result in results)
    lines = [
        f"{len(results)} types: " + ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    ]
    retyped = sum(any("another type" in note for note in result.get("notes", ())) for result in results)
    cuts = sum(result.get("cuts", 0) for result in results)
    lines.append(
        f"{cuts} cuts made both ways; in {retyped} types some tensor is cast by loading, and stays as it is stored"
    )
    for status in ("wrong", "crash", "timeout", "refused"):
        for result in sorted(results, key=lambda result: result["model_type"]):
            if result["status"] == status:
                lines.append(f"{result['model_type']}: {status}: {result.get('reason', '')}"[:400])
    return "\n".join(lines)


if __name__ == "__main__":
    from zoo.sweep import main

    sys.exit(main(check="zoo.slices:check_slices", summary=summarize))
