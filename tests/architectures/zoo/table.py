"""The results of a sweep as the page that users read: `python -m zoo.table results.jsonl --output docs/architectures.md`."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from zoo.checks import STATUSES
from zoo.sweep import Result, read_results

FAMILIES = {
    "BERT": ["bert"],
    "RoBERTa": ["roberta", "xlm-roberta"],
    "DistilBERT": ["distilbert"],
    "ModernBERT": ["modernbert", "modernbert-decoder"],
    "DeBERTa": ["deberta", "deberta-v2"],
    "ELECTRA": ["electra"],
    "ALBERT": ["albert"],
    "T5, mT5, CodeT5 (a T5)": ["t5", "mt5", "umt5", "longt5"],
    "BART": ["bart", "mbart"],
    "Whisper": ["whisper"],
    "ViT": ["vit"],
    "Swin": ["swin", "swinv2"],
    "ResNet": ["resnet"],
    "ConvNeXt": ["convnext", "convnextv2"],
    "CLIP": ["clip", "clip_text_model", "clip_vision_model"],
    "GPT-2": ["gpt2"],
    "Llama": ["llama"],
    "Llama 4": ["llama4", "llama4_text"],
    "Mistral, Mixtral": ["mistral", "mixtral"],
    "Qwen 2 and 3, dense": ["qwen2", "qwen3"],
    "Qwen 2 and 3, mixture of experts": ["qwen2_moe", "qwen3_moe", "qwen3_next"],
    "Qwen 2 and 3, vision": ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"],
    "Gemma 2, 3, 3n": ["gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text"],
    "Phi": ["phi", "phi3"],
    "DeepSeek V2, V3": ["deepseek_v2", "deepseek_v3"],
    "Falcon": ["falcon"],
    "Mamba": ["mamba", "mamba2", "falcon_mamba"],
    "Hybrids": ["jamba", "bamba", "zamba", "zamba2", "recurrent_gemma", "nemotron_h", "falcon_h1", "granitemoehybrid"],
}
LONGEST_CELL = 230
# What the lack of says little about the cut: most classes do not generate, many have no Auto class.
MINOR_CHECKS = ("generate", "auto")

INTRO = """# Model types

What hf_mpruner does with every model type of the installed transformers. Written by `make zoo`, never by hand, with
{versions}.

Each type is built tiny with random weights and cut in every way: the first, a middle and the last layer that can go,
two neighbours, two apart, and a layer of every stack at once. *Right* means that after each of these cuts

- the model runs, and has lost the parameters of the removed blocks and no other;
- a model built from its new config takes its weights, none missing and none left over, and gives the same bits; so
  does the checkpoint, saved and loaded by its class and by the Auto class;
- it equals the original model whose removed blocks hand their input on;
- generation with a cache gives what it gives without; a training step reaches every parameter;
- the saved plan, applied to a fresh copy, gives the same bits; the undo gives back the model as it was.

A check that the uncut model fails in transformers as it is, or that cannot be made, is left out, and the table says so
(*not checked*). *Refused* means that hf_mpruner raises `UnsupportedArchitectureError` with the reason and leaves the
model alone. The layer numbers are those of the tiny models.
"""


def render(results: Iterable[Result], versions: Mapping[str, str]) -> str:
    """The page. The same results give the same text, in whatever order they come."""
    known = {result["model_type"]: result for result in results}
    rows = [known[name] for name in sorted(known)]
    named = " and ".join(f"{name} {number}" for name, number in versions.items())
    parts = [
        INTRO.format(versions=named),
        f"## Totals\n\n{_totals(rows)}",
        f"## Families\n\n{_families(known)}",
        "## All types\n\nA stack is written as its path and the config value that holds its length; `*` stands for the "
        f"numbers of stages.\n\n{_all_types(rows)}",
    ]
    return "\n".join(parts)


def _totals(rows: Sequence[Result]) -> str:
    counts = Counter(row["status"] for row in rows)
    lines = [(status, str(counts[status]), meaning) for status, meaning in STATUSES.items() if counts[status]]
    built = len(rows) - counts["not built"]
    stacked = built - counts["none"]
    partly = sum(row["status"] == "right" and bool(row.get("left_whole")) for row in rows)
    share = f"{counts['right'] / stacked:.1%}" if stacked else "none"
    return (
        _table(("status", "types", "meaning"), lines)
        + f"\n{len(rows)} types, of which {built} were built and {stacked} have a list of blocks; {share} of these are "
        f"right. In {partly} of the right ones another list of blocks is left whole (see the remarks).\n"
    )


def _families(known: Mapping[str, Result]) -> str:
    lines = [
        (family, ", ".join(f"`{name}` {known[name]['status']}" for name in names if name in known) or "not swept")
        for family, names in FAMILIES.items()
    ]
    return _table(("family", "model types"), lines)


def _all_types(rows: Sequence[Result]) -> str:
    lines = [
        (f"`{row['model_type']}`", _code(row.get("model_class", "")), row["status"], _stacks(row), _remarks(row))
        for row in rows
    ]
    return _table(("model type", "class", "status", "stacks", "remarks"), lines)


def _stacks(row: Result) -> str:
    """Paths and counts; the stages of one encoder are one entry."""
    found = dict.fromkeys(f"`{_starred(s['path'])}` {_starred(s['count'])}" for s in row.get("stacks", ()))
    return "<br>".join(_escape(entry) for entry in found)


def _starred(text: str) -> str:
    return re.sub(r"\[\d+\]", "[*]", re.sub(r"\.\d+(?=\.|$)", ".*", text))


def _remarks(row: Result) -> str:
    parts = [*_pins(row)]
    parts += [f"{fault['check']}, {fault['cut']}: {fault['message']}" for fault in row.get("failures", ())[:2]]
    if row.get("reason"):
        parts.append(row["reason"])
    if row["status"] in ("refused", "none"):
        parts += row["refusals"][:2] or [cut["reason"] for cut in row["refused_cuts"][:1]] or ["no reason given"]
    else:
        parts += [f"left whole: {_find_reason(path, row['refusals'])}" for path in row.get("left_whole", ())[:3]]
    if row["status"] == "right" and row.get("refused_cuts"):
        parts.append(f"one refused cut: {row['refused_cuts'][0]['cut']}: {row['refused_cuts'][0]['reason']}")
    parts += _unchecked(row)
    parts += row.get("notes", ())
    return "<br>".join(_escape(_shorten(part)) for part in dict.fromkeys(parts))


def _find_reason(path: str, refusals: Sequence[str]) -> str:
    """The refusal that names a list or something in it."""
    named = (reason for reason in refusals if re.search(rf"'{re.escape(path)}['.]", reason))
    return next(named, f"'{path}'")


def _pins(row: Result) -> Iterable[str]:
    """What stays: layers with one reason together, stages with the same pins together."""
    reasons: dict[str, list[str]] = {}
    for stack in row.get("stacks", ()):
        for layer, reason in stack["pinned"].items():
            number = int(layer)
            name = (
                "first" if number == 0 else "last" if number == stack["depth"] - 1 else f"{layer} of {stack['depth']}"
            )
            reasons.setdefault(reason, []).append(f"`{_starred(stack['path'])}` {name}")
        if stack["period"] > 1:
            reasons.setdefault(f"layers go in runs of {stack['period']}", []).append(f"`{_starred(stack['path'])}`")
    for reason, layers in reasons.items():
        places = list(dict.fromkeys(layers))
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        yield f"{', '.join(places[:3])}{more}: {reason}"


def _unchecked(row: Result) -> Iterable[str]:
    for entry in row.get("not_applicable", ()):
        check, _, reason = entry.partition(": ")
        if check not in MINOR_CHECKS:
            yield f"not checked: {check} ({reason})"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _code(name: str) -> str:
    return f"`{name}`" if name else ""


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 3].rstrip() + "..."


def _escape(text: str) -> str:
    """Plain text for a cell: code spans as they are, all else without meaning for Markdown."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a span that was cut off, or a stray backtick
        parts = [text.replace("`", "'")]
    plain = [re.sub(r"([\\|*_<>\[\]])", r"\\\1", part) for part in parts[::2]]
    spans = [part.replace("|", "\\|") for part in parts[1::2]]
    return "".join(a + (f"`{b}`" if b is not None else "") for a, b in zip(plain, [*spans, None], strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m zoo.table", description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="what zoo.sweep wrote")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: the terminal")
    args = parser.parse_args(arguments)
    text = render(
        read_results(args.results), {name: version(name).partition("+")[0] for name in ("transformers", "torch")}
    )
    if args.output:
        args.output.write_text(text)
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
