"""Show what can be cut in a model, what is pinned and why, what a cut would rewrite. No weights are read."""

from __future__ import annotations

import argparse
from typing import Any

from .output import add_format, align, command_line, say, show
from .parser import add_model_flags, same_trust

EXAMPLES = """examples:
  hf-mpruner inspect google-bert/bert-base-uncased
  hf-mpruner inspect ./my-model --width --format json"""
USAGE = "hf-mpruner inspect MODEL ..."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `hf-mpruner inspect`."""
    add_model_flags(parser)
    parser.add_argument("--width", action="store_true", help="also say which neurons and heads could go (narrow)")
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Find the stacks on the meta device and print them."""
    from hf_mpruner.architectures import count_parameters, examine, find_block_stacks

    from .models import build_empty, load_config
    from .rewrites import describe_rewrites

    config = load_config(args.model, args.revision, args.trust_remote_code)
    model = build_empty(config, args.trust_remote_code)
    found = examine(model)
    stacks = found.stacks or find_block_stacks(model)  # which says why there is none
    facts: dict[str, Any] = {
        "model": args.model,
        "class": type(model).__name__,
        "model_type": config.model_type,
        "parameters": count_parameters(model),
        "stacks": [
            {
                "path": stack.path,
                "block_class": stack.block_class,
                "depth": stack.depth,
                "count": str(stack.count),
                "per_layer": [str(field) for field in stack.per_layer],
                "pinned": {str(layer): reason for layer, reason in stack.pinned.items()},
                # layers go in runs of this length, or from the end
                "period": stack.period,
                "period_reason": stack.period_reason,
                "followers": [follower.path for follower in stack.followers],
                "block_parameters": [count_parameters(block) for block in model.get_submodule(stack.path).children()],
                "rewrites": describe_rewrites(model, found, stack),
            }
            for stack in stacks
        ],
        "refused": list(found.refusals),
    }
    if args.width:
        facts["width"] = _describe_widths(model)
    facts |= _describe_size(model, config)
    show(args, table=_table(facts), values=facts, quiet="\n".join(stack.path for stack in stacks))
    say(args, f"Next: {command_line('analyze', args.model, '--dataset', 'DATASET', *same_trust(args))}")
    return 0


def _table(facts: dict[str, Any]) -> str:
    from .rewrites import rewrite_lines

    rows = [
        [
            stack["path"],
            stack["block_class"],
            str(stack["depth"]),
            stack["count"],
            ", ".join(stack["per_layer"]) or "none",
            _span(stack["block_parameters"]),
            ", ".join(stack["pinned"]) or "none",
        ]
        for stack in facts["stacks"]
    ]
    header = ["stack", "block", "layers", "config", "per-layer lists", "parameters a layer", "pinned"]
    lines = [
        f"{facts['model']}: {facts['class']} ({facts['model_type']}), {facts['parameters']:,} parameters",
        *_size_lines(facts),
        "",
        align(header, rows, right=[2, 5]),
    ]
    for stack in facts["stacks"]:
        lines += [f"{stack['path']} {layer} stays: {reason}" for layer, reason in stack["pinned"].items()]
        if stack["period"] > 1:
            lines.append(f"{stack['path']}: {_period(stack)}: {stack['period_reason']}")
        if stack["followers"]:
            lines.append(f"{stack['path']}: {', '.join(stack['followers'])} gets shorter with it")
    lines += [f"not a stack: {reason}" for reason in facts["refused"]]
    for stack in facts["stacks"]:
        lines += ["", *rewrite_lines(stack["path"], stack["rewrites"])]
    if "width" in facts:
        lines += ["", *_width_lines(facts["width"])]
    return "\n".join(lines)


def _describe_size(model: Any, config: Any) -> dict[str, Any]:
    """Bytes of the weights and of the cache, in the type that the config names; nothing of quantised ones."""
    import torch

    from hf_mpruner.footprint import measure_cache, saved_bytes

    dtype = getattr(config, "dtype", None)
    if not isinstance(dtype, torch.dtype) or getattr(config, "quantization_config", None) is not None:
        return {}
    model.to(dtype).tie_weights()  # a move on the meta device unties them
    cache = measure_cache(model) if model.can_generate() else None
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "saved_bytes": saved_bytes(model),
        "cache": None if cache is None else cache.to_dict(),
    }


def _size_lines(facts: dict[str, Any]) -> list[str]:
    if "saved_bytes" not in facts:
        return []
    from hf_mpruner.report import cache_in_words, format_bytes

    cache = f", cache of a sequence {cache_in_words(facts['cache'])}" if facts["cache"] else ""
    return [f"in {facts['dtype']}: {format_bytes(facts['saved_bytes'])} as saved{cache}"]


def _describe_widths(model: Any) -> dict[str, Any]:
    """Neurons and heads that can go, and why others cannot."""
    from hf_mpruner.architectures import find_widths

    found = find_widths(model)
    groups = [
        {
            "what": group.what,
            "config": [str(field) for field in group.fields],
            "size": group.size,
            "layers": [unit.path for unit in group.units],
            "per_layer": group.per_layer,
            "together": [sorted(tied) for tied in group.tied],
        }
        for group in found.groups
    ]
    return {"groups": groups, "refused": list(found.refusals)}


def _width_lines(width: dict[str, Any]) -> list[str]:
    lines = []
    for group in width["groups"]:
        own = ", another number in each if asked for" if group["per_layer"] else ""
        noun = group["what"] if group["what"] == "neurons" else "heads, or groups of them,"
        lines.append(
            f"narrower: {group['size']:,} {noun} in each of {len(group['layers'])} layers, by {' and '.join(group['config'])}{own}"
        )
    return lines + [f"not narrower: {reason}" for reason in width["refused"]]


def _period(stack: dict[str, Any]) -> str:
    if stack["period"] >= stack["depth"]:
        return "layers go only from the end"
    return f"layers go in runs of {stack['period']}, or from the end"


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} - {high:,}"
