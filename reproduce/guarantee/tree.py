"""All candidates that a run can come to, whatever the judging set says: a tree whose branches are verdicts.

A judging set touches a run through verdicts alone. So the candidate that is judged after given verdicts is a model that can be
cut, recovered and measured once; a run with any judging set is then a walk from candidate to candidate.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import variants
from transformers import PreTrainedModel, ViTForImageClassification, set_seed

sys.path.insert(0, str(Path(__file__).parents[1]))

from papers import Cells
from subjects import Weights

from hf_mpruner import PruningConfig
from hf_mpruner.criteria import CriterionInputs, score_layers
from hf_mpruner.engine import PruningEngine
from hf_mpruner.features import measure_similarity

CALIBRATION_BATCH = 64
Verdicts = tuple[bool, ...]


@dataclass(frozen=True)
class Model:
    """One model and what it says of each image of the population.

    Args:
        name (`str`): the verdicts that led to it: `a` accepted, `r` rejected.
        layers (`int`): that it has.
        says (`numpy.ndarray`): the digit that it takes each image for, `(n,)`.
        losses (`numpy.ndarray`): cross-entropy of each image, `(n,)`.
        labels (`numpy.ndarray`): what is right, `(n,)`.
    """

    name: str
    layers: int
    says: np.ndarray
    losses: np.ndarray
    labels: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether it is right, `(n,)`."""
        return self.says == self.labels


class Subject:
    """The uncut ViT, its data, and how a cut recovers; trained once and kept.

    Args:
        folder (`Path`): for weights and for what models say.
        facts (`dict`): `layers`, `hidden`, `originals`, `train`, `pool`, `strength`, `steps`, `rate`, `recovery_steps`,
            `recovery_rate`, `calibration_samples` and `seed`.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.facts = dict(facts)
        self.train, self.pool = variants.load(*(facts[name] for name in ("originals", "train", "pool", "strength")))
        self.cells, self.weights = Cells(folder / "candidates", self.facts), Weights(folder / "weights")
        self.uncut = self.model("uncut", facts["layers"], lambda: self.load("uncut", self._train))

    def model(self, name: str, layers: int, make: Callable[[], PreTrainedModel]) -> Model:
        """What a model says of the population; made only if that is not known."""

        def compute() -> dict[str, Any]:
            says, losses = variants.answers(make(), self.pool)
            packed = base64.b64encode(losses.numpy().astype("<f4").tobytes()).decode()
            return {"layers": layers, "says": "".join(map(str, says.tolist())), "losses": packed}

        found = self.cells.get(name, compute)
        says = np.frombuffer(found["says"].encode(), dtype=np.uint8) - ord("0")
        losses = np.frombuffer(base64.b64decode(found["losses"]), dtype="<f4").astype(np.float64)
        return Model(name, found["layers"], says, losses, self.pool.y.numpy())

    def load(self, name: str, make: Callable[[], Any]) -> PreTrainedModel:
        """A model that was kept; `make()` must keep it if it is not there."""
        return self.weights.load(name, ViTForImageClassification, make)

    def recover(self, model: PreTrainedModel, seed: int) -> None:
        """Train a cut model for a while."""
        variants.fit(model, self.train, self.facts["recovery_steps"], self.facts["recovery_rate"], seed)

    def _train(self) -> None:
        set_seed(self.facts["seed"])
        model = variants.build(self.facts["layers"], self.facts["hidden"])
        variants.fit(model, self.train, self.facts["steps"], self.facts["rate"], self.facts["seed"])
        self.weights.save("uncut", model)


class Tree:
    """The candidates of one way to prune.

    Args:
        name (`str`): of the way.
        config (`PruningConfig`): without `confidence`: verdicts are handed in.
        subject (`Subject`): what is pruned.
    """

    def __init__(self, name: str, config: PruningConfig, subject: Subject) -> None:
        self.name, self.subject = name, subject
        # a verdict is handed in as an accuracy of 1 or 0
        self.config = replace(config, metric="accuracy", max_metric_drop=0.5)
        self._known: dict[Verdicts, Model | None] = {}

    def candidate(self, verdicts: Verdicts) -> Model | None:
        """The model that is judged after these verdicts; `None` if the run has ended."""
        if verdicts not in self._known:
            name = self._name(verdicts)
            end = self.subject.weights.folder / f"{name}.end"
            engine = None
            if not self.subject.cells.has(name) and not end.exists():
                engine = self._replay(verdicts)
                if engine.pending:
                    self.subject.recover(engine.model, len(verdicts) + 1)
                    self.subject.weights.save(name, engine.model)
                else:
                    end.write_text(f"{engine.record.stopped}\n", encoding="utf-8")
            if end.exists():
                self._known[verdicts] = None
            else:
                layers = 0 if engine is None else sum(map(len, engine.record.rounds[-1].kept.values()))
                self._known[verdicts] = self.subject.model(name, layers, partial(_model_of, engine))
        return self._known[verdicts]

    def known(self, verdicts: Verdicts = ()) -> dict[Verdicts, Model]:
        """The candidates that any run has come to so far, from some verdicts on."""
        if not self.subject.cells.has(self._name(verdicts)):
            return {}
        model = self.candidate(verdicts)
        later = {**self.known((*verdicts, True)), **self.known((*verdicts, False))}
        return later if model is None else {verdicts: model, **later}

    def inputs(self, model: PreTrainedModel) -> dict[str, Any]:
        """How an engine measures this model: on images that train, without their labels."""
        images = self.subject.train.x[: self.subject.facts["calibration_samples"]]
        batches = [{"pixel_values": part} for part in images.split(CALIBRATION_BATCH)]
        protocol = self.config.protocol

        def measure(stacks: Any) -> Any:
            return measure_similarity(model, batches, stacks, protocol=protocol, show_progress=False)

        def score(criterion: Any, stacks: Any, num_removed: Any) -> Any:
            inputs = CriterionInputs(model, stacks, batches=batches, num_removed=num_removed, protocol=protocol)
            return score_layers(criterion, inputs)

        return {"measure": measure, "score": None if self.config.plans_by_threshold else score}

    def _replay(self, verdicts: Verdicts) -> PruningEngine:
        """The run after these verdicts, with its next cut made."""
        model = self.subject.load("uncut", lambda: None)
        says = {"accuracy": 1.0}
        engine = PruningEngine(model, self.config, evaluate=lambda: dict(says), **self.inputs(model))
        for number, verdict in enumerate(verdicts):
            if not engine.start_round():
                raise ValueError(f"{self.name}: the run ends before {self._name(verdicts)}.")
            if verdict:
                recovered = self.subject.load(self._name(verdicts[:number]), lambda: None)
                model.load_state_dict(recovered.state_dict())
            says["accuracy"] = float(verdict)
            engine.decide()
        engine.start_round()
        return engine

    def _name(self, verdicts: Sequence[bool]) -> str:
        return f"{self.name}-{len(verdicts) + 1}{''.join('a' if verdict else 'r' for verdict in verdicts)}"


def _model_of(engine: PruningEngine | None) -> PreTrainedModel:
    if engine is None:
        raise ValueError("What a candidate says was asked for, but it is not there.")
    return engine.model
