"""Seconds and memory to write a checkpoint with fewer layers: sliced on disk, copied, by a model in memory, by mergekit.

Run: `python benchmarks/slicing.py [--gb 6] [--mergekit PYTHON] [--json FILE]`. PYTHON is an interpreter that has
mergekit, in an environment of its own, since it needs older versions: `pip install mergekit "transformers<5"`.

A Llama-like checkpoint of random bfloat16 weights in shards of `--shard_gb` is written without holding it in memory.
Then, in one run and in turn, each way is a process of its own that leaves a quarter of the layers out:

- `slice`: `slice_checkpoint`, from the plan to the finished folder.
- `copy`: a plain copy of the kept bytes: of the files that `slice` wrote, file by file.
- `load, cut, save`: `from_pretrained`, `apply_plan_`, `save_pretrained`.
- `mergekit`: its merge method `passthrough`, with slices of layers.

Seconds are from after the imports until the bytes are on the disk: `slice` does that by itself, behind the others their
files are flushed with `fsync`, and those seconds are counted (`flush` says how many). Peak memory is that of the process
(`VmHWM`) above what it had after the imports. The page cache is warm: all of the source is read before each run, unless
`--cold` drops it from the cache. Before anything is measured, `load, cut, save` must write the files of `slice` to the
byte.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAYS = ("slice", "copy", "load, cut, save", "mergekit")
BLOCK = 16 * 2**20


def main() -> None:
    """Print a line for each way, with ratios to the plain copy."""
    parser = make_parser()
    if "--way" in sys.argv:
        args = parser.parse_args()
        print(json.dumps(work(args.way, json.loads(args.spec))))
        return
    from measure import Results  # not in the children: mergekit's interpreter may lack what it needs

    results = Results(__doc__, parser)
    folder = Path(tempfile.mkdtemp(prefix="slicing-", dir=results.args.folder))
    try:
        measure(results, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results.finish()


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gb", type=float, default=6.0, help="size of the checkpoint in GB (10^9 bytes), at least")
    parser.add_argument("--shard_gb", type=float, default=2.0, help="size of its files in GB, at most")
    parser.add_argument("--hidden", type=int, default=3072, help="hidden size; the number of layers follows from --gb")
    parser.add_argument("--vocab", type=int, default=32000, help="size of the vocabulary")
    parser.add_argument("--runs", type=int, default=3, help="runs of each way, in turn")
    parser.add_argument("--cold", action="store_true", help="drop the source from the page cache before each run")
    parser.add_argument(
        "--mergekit", metavar="PYTHON", help="an interpreter that has mergekit; without it, it is left out"
    )
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder; it takes about 3 times --gb")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--spec", help=argparse.SUPPRESS)
    return parser


# -- the parent: a checkpoint, and each way in turn ----------------------------------------------------------------------


def measure(results: Any, folder: Path) -> None:
    """Run each way in turn; medians and ratios go to `results`."""
    from measure import Ratio, ratio

    args = results.args
    layers = write_checkpoint(folder / "source", args)
    removed = list(range(layers - 1 - max(1, layers // 4), layers - 1))
    source_bytes = size_of(folder / "source")
    spec = {"source": str(folder / "source"), "layers": layers, "kept": [i for i in range(layers) if i not in removed]}
    spec |= {"files": str(folder / "files"), "shard": f"{args.shard_gb}GB"}
    pythons = dict.fromkeys(WAYS, sys.executable) | {"mergekit": args.mergekit}
    ways = [way for way in WAYS if pythons[way]]
    say(f"{source_bytes / 1e9:.2f} GB in {layers} layers, {len(removed)} of them go")
    if "mergekit" not in ways:
        say("mergekit is left out: pass --mergekit PYTHON for it")
    run(sys.executable, "slice", {**spec, "target": spec["files"]})
    run(sys.executable, "load, cut, save", {**spec, "target": str(folder / "check")})
    compare(folder / "files", folder / "check")
    shutil.rmtree(folder / "check")
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for number in range(args.runs):
        for way in ways:  # in turn, so that a busy machine slows all of them
            os.sync()
            for part in ("source", "files"):
                read_or_drop(folder / part, drop=args.cold)
            rows[way].append(run(pythons[way], way, {**spec, "target": str(folder / "target")}))
            if size_of(folder / "target") < size_of(folder / "files") * 0.99:
                raise SystemExit(f"{way} wrote too little: {size_of(folder / 'target')} bytes")
            shutil.rmtree(folder / "target")
            say(f"run {number + 1}, {way}: {rows[way][-1]['seconds']:.2f} s")
    medians = {
        way: {key: statistics.median(row[key] for row in found) for key in ("seconds", "flush", "peak_bytes")}
        for way, found in rows.items()
    }
    if "mergekit" in rows:
        results.add_versions(mergekit=rows["mergekit"][0]["version"])
    kept_bytes, state = size_of(folder / "files"), "cold" if args.cold else "warm"
    results.table(
        f"{kept_bytes / 1e9:.2f} of {source_bytes / 1e9:.2f} GB kept, {layers - len(removed)} of {layers} layers, page cache {state}",
        [
            {
                "way": way,
                "s": found["seconds"],
                "of it flush": found["flush"],
                "peak MB above imports": found["peak_bytes"] / 1e6,
            }
            for way, found in medians.items()
        ],
    )
    seconds = {way: [row["seconds"] for row in found] for way, found in rows.items()}
    results.ratio("slice / copy of the kept bytes", ratio(seconds["slice"], seconds["copy"]), at_most=1.2)
    for way in ("load, cut, save", "mergekit"):
        if way in seconds:
            results.ratio(f"slice / {way}", ratio(seconds["slice"], seconds[way]), at_most=1.0)
    peak = medians["slice"]["peak_bytes"] / 1e6
    results.ratio("slice: peak MB above the imports", Ratio(peak, peak, peak), at_most=400)


def write_checkpoint(folder: Path, args: argparse.Namespace) -> int:
    """A Llama of random weights in several files and their index; returns how many layers it has."""
    import numpy as np
    import torch
    from huggingface_hub import split_state_dict_into_shards_factory
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_mpruner.slicing.format import make_header, num_bytes
    from hf_mpruner.slicing.recipe import StoredTensor

    heads = max(1, args.hidden // 128)
    sizes = {"hidden_size": args.hidden, "intermediate_size": args.hidden * 8 // 3, "num_attention_heads": heads}
    a_layer = 2 * (4 * args.hidden**2 + 3 * args.hidden * sizes["intermediate_size"])
    layers = max(4, math.ceil((args.gb * 1e9 - 4 * args.vocab * args.hidden) / a_layer))
    config = LlamaConfig(num_hidden_layers=layers, vocab_size=args.vocab, dtype="bfloat16", **sizes)
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    tensors = {name: StoredTensor(name, "BF16", tuple(value.shape)) for name, value in model.state_dict().items()}
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=int(args.shard_gb * 1e9),
    )
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    generator = np.random.default_rng(0)
    for file, names in split.filename_to_tensors.items():
        content, header = make_header([tensors[name] for name in names], {"format": "pt"})
        with (folder / file).open("wb") as stream:
            stream.write(content)
            left = header.end - len(content)
            while left:  # bits of small numbers: no infinity, no NaN
                block = generator.integers(0x3A00, 0x3D00, BLOCK // 2, dtype=np.uint16).tobytes()[:left]
                stream.write(block)
                left -= len(block)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return layers


def run(python: str, way: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A way in a process of its own."""
    command = [python, __file__, "--way", way, "--spec", json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(ours: Path, theirs: Path) -> None:
    """Stop unless two folders have the same weights in the same files, to the byte."""
    names = sorted(file.name for file in theirs.glob("*.safetensors*"))
    different = [name for name in names if not filecmp.cmp(ours / name, theirs / name, shallow=False)]
    if different or names != sorted(file.name for file in ours.glob("*.safetensors*")):
        raise SystemExit(f"slice does not write what load, cut, save writes: {different or names}")


def read_or_drop(folder: Path, *, drop: bool) -> None:
    """Fill the page cache with a folder's files, or drop them from it."""
    for file in folder.iterdir():
        with file.open("rb", buffering=0) as stream:
            if drop:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while not drop and stream.read(BLOCK):
                pass


def size_of(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def say(text: str) -> None:
    """Tell who waits."""
    print(text, file=sys.stderr, flush=True)


# -- the children: only the standard library up here, mergekit's interpreter has no hf_mpruner -------------------------


def work(way: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Run a way after its imports; seconds, of it the flush, and bytes of memory at the peak above what was there."""
    prepare = {
        "slice": prepare_slice,
        "copy": prepare_copy,
        "load, cut, save": prepare_load,
        "mergekit": prepare_mergekit,
    }
    action, version = prepare[way](spec)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = memory("VmRSS")
    begin = time.perf_counter()
    action()
    written = time.perf_counter()
    if way != "slice":
        for file in Path(spec["target"]).rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
    end = time.perf_counter()
    peak = memory("VmHWM") - before
    return {"seconds": end - begin, "flush": end - written, "peak_bytes": peak, "version": version}


def memory(field: str) -> int:
    """A figure of the process in bytes, from the kernel; elsewhere the peak since its start."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def plan_of(spec: dict[str, Any]) -> Any:
    """The plan that keeps `spec["kept"]`."""
    from hf_mpruner.architectures import BlockStack, ConfigField
    from hf_mpruner.plan import PruningPlan

    stack = BlockStack("model.layers", "LlamaDecoderLayer", spec["layers"], ConfigField("num_hidden_layers"))
    return PruningPlan.from_kept({"model.layers": spec["kept"]}, [stack])


def prepare_slice(spec: dict[str, Any]) -> tuple[Callable[[], Any], str | None]:
    """Ours."""
    import transformers.models.llama.modeling_llama
    import transformers.trainer_utils  # noqa: F401

    from hf_mpruner.slicing import slice_checkpoint

    plan = plan_of(spec)
    return lambda: slice_checkpoint(spec["source"], plan, spec["target"], max_shard_size=spec["shard"]), None


def prepare_copy(spec: dict[str, Any]) -> tuple[Callable[[], Any], str | None]:
    """Files, one after the other, as the operating system copies them."""
    return lambda: shutil.copytree(spec["files"], spec["target"]), None


def prepare_load(spec: dict[str, Any]) -> tuple[Callable[[], Any], str | None]:
    """A model in memory."""
    from transformers import LlamaForCausalLM

    from hf_mpruner import apply_plan_

    plan = plan_of(spec)

    def load_cut_save() -> None:
        model = LlamaForCausalLM.from_pretrained(spec["source"], dtype="auto")
        apply_plan_(model, plan)
        model.save_pretrained(spec["target"], max_shard_size=spec["shard"])

    return load_cut_save, None


def prepare_mergekit(spec: dict[str, Any]) -> tuple[Callable[[], Any], str | None]:
    """mergekit, called as its command calls it, without the tokenizer that there is not."""
    from importlib.metadata import version

    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    ranges: list[list[int]] = []
    for layer in spec["kept"]:
        if ranges and ranges[-1][1] == layer:
            ranges[-1][1] = layer + 1
        else:
            ranges.append([layer, layer + 1])
    slices = [{"sources": [{"model": spec["source"], "layer_range": found}]} for found in ranges]
    config = MergeConfiguration.model_validate({"merge_method": "passthrough", "dtype": "bfloat16", "slices": slices})
    shard = int(float(spec["shard"].removesuffix("GB")) * 1e9)
    options = MergeOptions(copy_tokenizer=False, out_shard_size=shard, quiet=True)
    names = ", ".join(f"{name} {version(name)}" for name in ("mergekit", "transformers", "safetensors", "torch"))
    return lambda: run_merge(config, spec["target"], options), names


if __name__ == "__main__":
    main()
