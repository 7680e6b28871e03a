"""Show what can be cut in a model, what is pinned and why. Only the config is read, no weights."""

from __future__ import annotations

import argparse
from typing import Any

from .output import add_format, align, command_line, say, show

EXAMPLES = """examples:
  hf-mpruner inspect google-bert/bert-base-uncased
  hf-mpruner inspect ./my-model --format json"""
USAGE = "hf-mpruner inspect MODEL ..."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `hf-mpruner inspect`."""
    parser.add_argument("model", metavar="MODEL", help="Hub id or folder")
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Find the stacks on the meta device and print them."""
    from hf_mpruner.architectures import count_parameters, examine, find_block_stacks

    from .models import build_empty, load_config

    config = load_config(args.model, args.revision)
    model = build_empty(config)
    stacks = find_block_stacks(model)
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
                "block_parameters": [count_parameters(block) for block in model.get_submodule(stack.path).children()],
            }
            for stack in stacks
        ],
        "refused": list(examine(model).refusals),
    }
    show(args, table=_table(facts), values=facts, quiet="\n".join(stack.path for stack in stacks))
    say(args, f"Next: {command_line('analyze', args.model, '--dataset', 'DATASET')}")
    return 0


def _table(facts: dict[str, Any]) -> str:
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
        "",
        align(header, rows, right=[2, 5]),
    ]
    for stack in facts["stacks"]:
        lines += [f"{stack['path']} {layer} stays: {reason}" for layer, reason in stack["pinned"].items()]
    lines += [f"not a stack: {reason}" for reason in facts["refused"]]
    return "\n".join(lines)


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} - {high:,}"
