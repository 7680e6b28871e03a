"""`hf-mpruner`: data to stdout, talk to stderr; 0 done, 1 failed, 2 wrong use.

Only the standard library is imported until a command is chosen, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .parser import Parser, UsageError, closest
from .processes import check_one_process, finish, rank

# Command -> what it does, for `--help`; the module of the same name has `add_arguments(parser)` and `run(args)`.
COMMANDS = {
    "inspect": "what can be cut in a model, what is pinned and why, what a cut rewrites; reads no weights",
    "analyze": "measure the similarity of its layers, suggest plans",
    "compare": "several criteria side by side, before and after the same recovery",
    "prune": "cut, recover, judge, and save the smaller model",
    "apply": "cut a model as a plan says, without training",
    "narrow": "take neurons or heads out of every layer, without training",
    "sparsity": "set weights to zero at several sparsities, original against pruned",
    "card": "write the model card, the plots and the page of a pruned model again",
    "push": "put a pruned model on the Hub, and compare what arrived",
}
EXAMPLES = """examples:
  hf-mpruner inspect google-bert/bert-base-uncased
  hf-mpruner analyze MODEL --dataset dair-ai/emotion --output_dir analysis
  hf-mpruner compare MODEL --dataset dair-ai/emotion --criteria cka tail --num_layers 3 --seeds 2 --output_dir compared
  hf-mpruner prune   MODEL --dataset dair-ai/emotion --max_metric_drop 0.01 --output_dir smaller
  hf-mpruner apply   MODEL --plan analysis --output_dir smaller
  hf-mpruner narrow  MODEL --dataset DATA --fraction 0.25 --output_dir narrower
  hf-mpruner sparsity MODEL --pruned smaller --dataset dair-ai/emotion --output_dir sweep
  hf-mpruner card    smaller --repo_id ann/smaller --license apache-2.0
  hf-mpruner push    smaller ann/bert-pruned --private

Each command has its own --help. HF_MPRUNER_DEBUG=1 shows the whole trace of an error."""
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv (sequence of `str`, *optional*): the words after `hf-mpruner`; by default those of this process.

    Returns:
        `int`: 0 done, 1 failed, 2 wrong use, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        sys.stdout.flush()  # a reader that has gone is noticed here, not while the interpreter shuts down
        return code
    except SystemExit as stop:  # argparse ends --help and wrong use this way
        return int(stop.code or 0)
    except KeyboardInterrupt:
        sys.stderr.write("hf-mpruner: interrupted.\n")
        return INTERRUPTED
    except BrokenPipeError:  # `hf-mpruner ... | head`: nobody reads on, which is no failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("HF_MPRUNER_DEBUG"):
            raise
        who = f"rank {rank()}: " if rank() else ""
        sys.stderr.write(f"hf-mpruner: {who}error: {_one_line(error)}\n")
        return 2 if isinstance(error, UsageError) else 1


def _run(words: list[str]) -> int:
    command = words[0] if words else ""
    if command in COMMANDS:
        module = import_module(f".{command}", __name__)
        parser = Parser(
            prog=f"hf-mpruner {command}", usage=module.USAGE, description=module.__doc__, epilog=module.EXAMPLES
        )
        module.add_arguments(parser)
        from .configfile import use_config_file

        use_config_file(parser, words[1:])
        args = parser.parse_args(words[1:])
        if command not in ("prune", "analyze"):
            check_one_process(f"hf-mpruner {command}")
        from .quiet import quiet_libraries

        with quiet_libraries():
            code = int(module.run(args))
        finish()
        return code
    if command and not command.startswith("-"):
        raise UsageError(
            f"'{command}' is no command{closest(command, COMMANDS)}. Commands: {', '.join(COMMANDS)}. "
            "See hf-mpruner --help."
        )
    listed = "\n".join(f"  {name:<9}{text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="hf-mpruner",
        usage="hf-mpruner COMMAND ... [--help]",
        description=f"Prune whole layers of a Hugging Face model by how alike they are.\n\ncommands:\n{listed}",
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    args = parser.parse_args(words)
    if args.version:
        from hf_mpruner import __version__

        print(__version__)
        return 0
    parser.print_help(sys.stderr)
    return 2


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    known = isinstance(error, ValueError | OSError | NotImplementedError) or "hf_mpruner" in type(error).__module__
    if known and text:
        return text
    return f"{type(error).__name__}: {text} Set HF_MPRUNER_DEBUG=1 for the whole trace."
