"""`make_compute_metrics`: several metrics as the one function that a Trainer takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .examples import Scored
from .library import load_metric, split_spec
from .outcome import Classes, Outcome, Tags, Texts, Tokens

if TYPE_CHECKING:
    import numpy as np
    from transformers import EvalPrediction

Decode = Callable[[Any], Outcome]
# Who computed a value, for metrics that are no module of evaluate.
OWN, USER = "hf_mpruner", "user"


@dataclass(frozen=True)
class LoadedMetric:
    """A metric that is ready to compute.

    Args:
        compute: a module of evaluate, a function of an `EvalPrediction`, or `None` for the task's own metrics.
        arguments (`dict`): for the module's `compute`.
        source (`dict`): `name`, `config`, `arguments` and `library`, for a record.
    """

    compute: Any
    arguments: dict[str, Any]
    source: dict[str, Any]


class ComputeMetrics:
    """Calls every metric on an evaluation's predictions and returns plain floats by name.

    Args:
        metrics (sequence of `LoadedMetric`): in the order in which they are called.
        decode (callable): makes an `Outcome` of an `EvalPrediction`.
    """

    def __init__(self, metrics: Sequence[LoadedMetric], decode: Decode) -> None:
        """Remember what was given; nothing is computed."""
        self._metrics, self._decode = metrics, decode
        #: Where each value came from: key -> `name`, `config`, `arguments` and `library`; filled by each call.
        self.sources: dict[str, dict[str, Any]] = {}

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute everything.

        Raises:
            ValueError: if a metric returned no number, or does not take what the task gives.
        """
        values: dict[str, float] = {}
        outcome = None
        for metric in self._metrics:
            source = metric.source
            if source["library"] == USER:
                found = metric.compute(prediction)
            else:
                outcome = self._decode(prediction) if outcome is None else outcome
                found = outcome.own_metrics() if source["library"] == OWN else _of_module(metric, outcome)
            numbers = plain_floats(found)
            if not numbers:
                raise ValueError(
                    f"Metric '{source['name']}' returned {found!r:.80}, without a number: return a dict of numbers by name."
                )
            for key, number in numbers.items():
                key = f"{source['name']}_{key}" if key in values else key
                values[key], self.sources[key] = number, source
        return values

    def scored(self, prediction: EvalPrediction, metric: str) -> Scored | None:
        """A metric over the examples of an evaluation, whose predictions are decoded once.

        Args:
            prediction (`EvalPrediction`): that was judged last.
            metric (`str`): one of the names that were returned.

        Returns:
            `Scored`, or `None` for a function of the user's, which takes predictions as they are.
        """
        source = self.sources.get(metric)
        loaded = next((one for one in self._metrics if one.source is source), None)
        if loaded is None or loaded.source["library"] == USER:
            return None
        outcome = self._decode(prediction)
        if type(outcome).pick is Outcome.pick:
            return None

        def score(said: np.ndarray, right: np.ndarray) -> float:
            part = outcome.pick(said, right)
            found = part.own_metrics() if loaded.source["library"] == OWN else _of_module(loaded, part)
            numbers = plain_floats(found)
            # the second of two metrics with one key has its own name before that
            return numbers[metric if metric in numbers else metric.removeprefix(f"{loaded.source['name']}_")]

        return Scored(len(outcome), score, outcome.hits if isinstance(outcome, Classes) else None)


def make_compute_metrics(
    metrics: Any = None,
    *,
    task: str = "text-classification",
    label_names: Sequence[str] = (),
    processing_class: Any = None,
    decode: Decode | None = None,
) -> ComputeMetrics:
    """Make a `compute_metrics` for a Trainer of one or several metrics; they are loaded now, before training.

    Args:
        metrics (*optional*): one, or a list, of: the name of a metric of evaluate (`"accuracy"`, `"f1:average=macro"`,
            `"glue:mrpc"`), a folder with the script of one, an `evaluate.EvaluationModule`, or a function that takes
            the Trainer's `EvalPrediction` and returns numbers by name, or `None`, the default: the task's own, computed
            here (accuracy and `f1_macro` for classes, accuracy and entity F1 for tags, accuracy for tokens).
        task (`str`): what the predictions are: `"text-classification"`, `"image-classification"`,
            `"token-classification"`, `"text-generation"`, `"fill-mask"` or `"text2text-generation"`.
        label_names (sequence of `str`, *optional*): names of classes or tags in the order of their numbers, for metrics
            that compare names (`seqeval`) and for the entities of tags.
        processing_class (*optional*): the tokenizer that turns generated tokens into text.
        decode (callable, *optional*): makes an `Outcome` of an `EvalPrediction`, instead of what `task` says.

    Returns:
        `ComputeMetrics`: pass it as `compute_metrics`. Values are plain floats; structs are flattened
        (`"overall_f1"`, `"PER_f1"`), lists are left out. Of two metrics with one key the second's begins with its name.
        `PruningConfig(metric=...)` says which value decides.

    Raises:
        ImportError: if a name is given and evaluate is not installed.
        FileNotFoundError: if there is no such metric, or the Hub that has it does not answer.
        ValueError: for a task whose predictions cannot be read without more.

    Example:
        >>> import numpy as np
        >>> from transformers import EvalPrediction
        >>> compute = make_compute_metrics()
        >>> compute(EvalPrediction(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([0, 1])))
        {'accuracy': 1.0, 'f1_macro': 1.0}
    """
    loaded = load_metrics(metrics)
    if decode is None and task == "text2text-generation" and any(one.source["library"] == OWN for one in loaded):
        raise ValueError(
            f"task={task!r}: no metric of texts is computed here. Name one of evaluate, e.g. metrics='rouge' or 'sacrebleu', "
            "or leave compute_metrics out: the loss decides."
        )
    return ComputeMetrics(loaded, decode or _decoder(task, label_names, processing_class))


def load_metrics(metrics: Any = None) -> list[LoadedMetric]:
    """Load metrics now; see `make_compute_metrics`, which takes what this returns.

    Raises:
        ImportError, FileNotFoundError, ValueError: if one cannot be loaded.
    """
    given = list(metrics) if isinstance(metrics, list | tuple) else [metrics]
    return [metric if isinstance(metric, LoadedMetric) else _load(metric) for metric in given]


def plain_floats(values: Any, prefix: str = "") -> dict[str, float]:
    """Numbers by name: numpy and torch scalars become floats, structs are flattened, the rest is left out.

    Example:
        >>> import numpy as np
        >>> plain_floats({"f1": np.float64(0.5), "PER": {"number": 2}, "precisions": [0.1, 0.2]})
        {'f1': 0.5, 'PER_number': 2.0}
    """
    numbers: dict[str, float] = {}
    for name, value in values.items() if isinstance(values, Mapping) else ():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            numbers.update(plain_floats(value, f"{key}_"))
        elif isinstance(value, int | float) or (hasattr(value, "item") and getattr(value, "ndim", 1) == 0):
            numbers[key] = float(value)
    return numbers


def _load(metric: Any) -> LoadedMetric:
    if metric is None:
        return LoadedMetric(None, {}, {"name": "own", "config": None, "arguments": {}, "library": OWN})
    arguments: dict[str, Any] = {}
    name = None
    if isinstance(metric, str):
        name = split_spec(metric)[0].rstrip("/").rpartition("/")[2].removesuffix(".py")
        metric, arguments = load_metric(metric)
    if hasattr(metric, "compute"):
        import evaluate

        config = getattr(metric, "config_name", None)
        source = {
            "name": name or metric.name,
            "config": None if config == "default" else config,
            "arguments": arguments,
            "library": f"evaluate {evaluate.__version__}",
        }
        return LoadedMetric(metric, arguments, source)
    if not callable(metric):
        raise ValueError(
            f"metrics={metric!r} is no metric: pass a name, a folder, an evaluate.EvaluationModule, or a function that takes "
            "an EvalPrediction and returns numbers by name."
        )
    name = getattr(metric, "__name__", type(metric).__name__)
    return LoadedMetric(metric, {}, {"name": name, "config": None, "arguments": {}, "library": USER})


def _decoder(task: str, label_names: Sequence[str], processing_class: Any) -> Decode:
    makers: dict[str, Decode] = {
        "text-classification": partial(Classes, names=label_names),
        "image-classification": partial(Classes, names=label_names),
        "token-classification": partial(Tags, names=label_names),
        "text-generation": partial(Tokens, shift=True),
        "fill-mask": partial(Tokens, shift=False),
        "text2text-generation": partial(Texts, tokenizer=processing_class),
    }
    if task not in makers:
        raise ValueError(
            f"task={task!r}: predictions of this task are not read here. Pass one of "
            f"{', '.join(repr(known) for known in makers)}, or decode=..., which makes an Outcome of an EvalPrediction."
        )
    missing = {"token-classification": not label_names, "text2text-generation": processing_class is None}
    if missing.get(task):
        needed = "label_names=[...]" if task == "token-classification" else "processing_class=tokenizer"
        raise ValueError(f"task={task!r} needs {needed}: its metrics compare {'names' if label_names else 'words'}.")
    return makers[task]


def _of_module(metric: LoadedMetric, outcome: Outcome) -> Any:
    features = getattr(metric.compute, "evaluation_modules", [metric.compute])[0].features
    features = features[0] if isinstance(features, list) else features
    if set(features) != {"predictions", "references"}:
        raise ValueError(
            f"Metric '{metric.source['name']}' takes {', '.join(features)}, not predictions and references: call it in a "
            "function of your own that takes an EvalPrediction, and pass that."
        )
    predictions, references = outcome.fitted(features["predictions"], features["references"])
    try:
        return metric.compute.compute(predictions=predictions, references=references, **metric.arguments)
    except (ValueError, TypeError) as error:
        name = metric.source["name"]
        raise ValueError(
            f"Metric '{name}' could not judge the predictions: {' '.join(str(error).split())} Arguments of its compute follow "
            f"a colon, e.g. '{name}:average=macro'."
        ) from error
