"""Metrics of the evaluate library, loaded by name or from a folder."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The metrics that evaluate's own Spaces hold, to tell a slip of the pen.
KNOWN = (
    "accuracy", "bertscore", "bleu", "bleurt", "brier_score", "cer", "character", "chrf", "code_eval", "comet",
    "competition_math", "confusion_matrix", "coval", "cuad", "exact_match", "f1", "frugalscore", "glue", "google_bleu",
    "indic_glue", "mae", "mahalanobis", "mape", "mase", "matthews_correlation", "mauve", "mean_iou", "meteor", "mse",
    "nist_mt", "pearsonr", "perplexity", "poseval", "precision", "r_squared", "recall", "roc_auc", "rouge", "sacrebleu",
    "sari", "seqeval", "smape", "spearmanr", "squad", "squad_v2", "super_glue", "ter", "wer", "wiki_split", "xnli",
)  # fmt: skip


def load_metric(spec: str) -> tuple[Any, dict[str, Any]]:
    """Load a metric of evaluate, and what to pass to its `compute`.

    Args:
        spec (`str`): a name (`"accuracy"`), a name on the Hub (`"someone/metric"`), a folder with a script of its own
            name, or a script; then, after a colon, a configuration (`"glue:mrpc"`) and arguments of `compute`
            (`"f1:average=macro"`), with commas between them.

    Returns:
        the `evaluate.EvaluationModule`, and a `dict` of arguments.

    Raises:
        ImportError: if evaluate, or a package that the metric's script needs, is not installed.
        FileNotFoundError: if there is no such metric, or the Hub that has it does not answer.
        ValueError: if a folder of the working directory hides a metric of that name.

    Example:
        >>> split_spec("f1:average=macro,pos_label=1")
        ('f1', None, {'average': 'macro', 'pos_label': 1})
    """
    name, config, arguments = split_spec(spec)
    try:
        import evaluate
    except ImportError as error:
        raise ImportError(
            f"Metric '{name}' is one of the evaluate library, which is not installed: pip install 'hf_mpruner[evaluate]'. "
            "Without it, leave the name out: each task measures some metrics itself."
        ) from error
    if "/" not in name and (Path(name) / f"{name}.py").is_file():
        raise ValueError(
            f"'{name}' is a folder of the working directory, which would hide the metric of that name. Write './{name}' "
            f"for the folder, 'evaluate-metric/{name}' for the Hub's."
        )
    path = str(Path(name).expanduser()) if name.startswith("~") else name
    try:
        with _quiet_bars(evaluate):
            return evaluate.load(path, config, keep_in_memory=True), arguments
    except ImportError as error:
        raise ImportError(
            f"Metric '{name}' needs packages that are not installed: {' '.join(str(error).split())}"
        ) from error
    except AttributeError as error:  # evaluate before 0.4.6 asks huggingface_hub for what is gone
        raise ImportError(
            f"evaluate {evaluate.__version__} could not load '{name}' with this huggingface_hub ({error}): pip install -U "
            "'evaluate>=0.4.6'."
        ) from error
    except (OSError, LookupError) as error:  # nltk's resources are looked up
        raise FileNotFoundError(_missing(name, error)) from error


@contextmanager
def _quiet_bars(evaluate: Any) -> Iterator[None]:
    """Show evaluate's progress bars only where someone looks at a terminal."""
    bars = evaluate.utils.logging
    hidden = not sys.stderr.isatty() and bars.is_progress_bar_enabled()
    if hidden:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            bars.enable_progress_bar()


def split_spec(spec: str) -> tuple[str, str | None, dict[str, Any]]:
    """Name, configuration and arguments of `"name:config,key=value"`; a path that exists is a name as it is."""
    name, _, rest = spec.partition(":")
    if not rest or Path(spec).expanduser().exists():
        return spec, None, {}
    parts = [part.strip() for part in rest.split(",")]
    configs = [part for part in parts if "=" not in part]
    arguments = dict(part.split("=", 1) for part in parts if "=" in part)
    return name, configs[0] if configs else None, {key: _value(text) for key, text in arguments.items()}


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _missing(name: str, error: Exception) -> str:
    told = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    path = Path(name).expanduser()
    if path.is_file() or (path / f"{path.name}.py").is_file():
        return f"Metric '{name}' could not be loaded: its script needs something else that is not here ({told})."
    local = name.startswith((".", "~", os.sep)) or name.endswith(".py") or Path(name).exists()
    if local:
        return (
            f"No metric at '{name}': a metric is a folder that holds a script of its own name, "
            f"'{Path(name).name}/{Path(name).name.removesuffix('.py')}.py', or that script."
        )
    near = difflib.get_close_matches(name, KNOWN, n=3)
    question = f" Did you mean {' or '.join(repr(known) for known in near)}?" if near and name not in KNOWN else ""
    reason = (
        "it is neither here nor on the Hub, as far as that answers" if isinstance(error, FileNotFoundError) else told
    )
    return (
        f"No metric '{name}' could be loaded: {reason}.{question} Its script comes from the "
        f"Hub (Space {name if '/' in name else 'evaluate-metric/' + name}). Without a network name a folder that holds it "
        "(./metrics/mine), or pass an evaluate.EvaluationModule in Python."
    )
