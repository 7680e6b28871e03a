"""Which examples measure layers, which choose among cuts and which judge them: sets that share none."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .config import PruningConfig
from .criteria import find_criterion
from .data import Parts, check_disjoint, describe_data, fingerprint, size_parts, split_parts, warn_of_trained
from .data.examples import is_readable
from .errors import CalibrationError, MPrunerError
from .heads import find_head
from .record import PruningRecord
from .subject import trained_model
from .trainers import evaluator_of

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

# What the record says of the judging set, and what must not change while a run goes on.
_FIXED = {"drawn_from": "examples that it was drawn from", "seed": "seed", "digest": "digest of its examples"}


@dataclass(frozen=True)
class Sets:
    """The data sets of one run.

    Args:
        calibration (*optional*): for measures that read no labels, and for what proposes cuts.
        choosing (*optional*): for criteria that measure a loss or a metric, and for the choice among proposals.
        judging (*optional*): for verdicts; `None` for whatever the Trainer evaluates on by itself.
        name (`str`): of the judging set among several evaluation sets of the Trainer.
        facts (`dict`): for the sets of a run that keeps them apart, by role, what the record says of them.
    """

    calibration: Any = None
    choosing: Any = None
    judging: Any = None
    name: str = ""
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def role(self) -> str:
        """Which of them layers are measured on: `"calibration"` or `"choosing"`."""
        return "calibration" if self.choosing is None else "choosing"

    @property
    def measured(self) -> Any:
        """The set of that role."""
        return self.calibration if self.choosing is None else self.choosing

    @property
    def proposing(self) -> Any:
        """The set that cuts are proposed on, where another one chooses among them."""
        return None if self.choosing is None else self.calibration

    @property
    def evaluated(self) -> Any:
        """What a Trainer evaluates on for a verdict."""
        return {self.name: self.judging} if self.name and self.judging is not None else self.judging

    @contextmanager
    def in_place(self, trainer: Trainer) -> Iterator[Any]:
        """Let a Trainer evaluate on what judges; yields the data set that its `evaluate` is to be called with.

        A part of its own evaluation set takes that one's place meanwhile: what a Trainer is called with is prepared anew by
        trl and sentence-transformers, and its own was prepared already.
        """
        if "drawn_from" not in self.facts.get("judging", {}):
            yield self.evaluated
            return
        own, trainer.eval_dataset = trainer.eval_dataset, self.evaluated
        try:
            yield None
        finally:
            trainer.eval_dataset = own

    def describe(self, role: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What was seen of a set, with where it was taken from; the numbers of examples are those that were seen."""
        own = {name: value for name, value in self.facts.get(role, {}).items() if name != "num_examples"}
        seen = {"num_examples": facts["num_examples"]} if "num_examples" in facts else {}
        return {**own, **seen} if own else dict(facts)


def find_sets(trainer: Trainer, config: PruningConfig, given: Parts, metric: str | None = None) -> Sets:
    """The sets of a run: those that the user gave, and for the rest a seeded split of the evaluation set.

    Without `confidence` and `threshold="auto"` nothing is kept apart: layers are measured on what was given, or on a sample
    of the evaluation set, all of which judges.

    Only sets that this run has a use for are made: layers are measured on examples for calibration, or, by a criterion that
    reads labels, on examples for choosing; one that chooses among proposals gets both. Each takes `calibration_samples`
    examples of the evaluation set, and 20 % at most; the rest judges.

    Args:
        trainer (`Trainer`): whose evaluation set is split; of several, the one whose metric decides. Where an evaluator
            judges on data of its own, and there is no evaluation set, it is the training set.
        config (`PruningConfig`): what the user asked for.
        given (`Parts`): sets that the user gave by hand.
        metric (`str`, *optional*): what decides, if the config does not say.

    Raises:
        ValueError: for a set that has no use here, or if it is not known which of several evaluation sets decides.
        CalibrationError: if a set is missing, and there is nothing that it could be made of.
    """
    if not config.keeps_sets_apart:
        _refuse_unused(choosing=given.choosing, judging=given.judging)
        return Sets(calibration=given.calibration)
    metric = config.metric or metric or ""
    by_evaluator = evaluator_of(trainer) is not None and metric not in ("loss", "perplexity")
    found = _assign(config, given, by_evaluator=by_evaluator)
    missing = [role for role, data in found.items() if data is None]
    if not missing:
        return _described(trainer, found)
    name, source = _find_source(trainer, metric, by_evaluator=by_evaluator)
    if missing == ["judging"]:
        return _described(trainer, {**found, "judging": source}, name)
    if why := _why_not_split(trainer, source, given):
        raise CalibrationError(
            f"No examples for {missing[0]} can be taken from the evaluation set: {why}. Pass {missing[0]}=..., a part of the "
            "training set for instance, that shares no example with what judges."
        )
    return _split(trainer, config, found, name, source)


def given_sets(config: PruningConfig, given: Parts) -> Sets:
    """The sets of a run whose judging examples only the user's own function sees, all given by hand.

    Args:
        config (`PruningConfig`): what the user asked for.
        given (`Parts`): of which `judging` is only compared with the others; it may be unknown.

    Raises:
        ValueError: for a set that has no use here.
        CalibrationError: if sets share examples that must not.
    """
    if not config.keeps_sets_apart:
        _refuse_unused(choosing=given.choosing)
        return Sets(calibration=given.calibration)
    found = _assign(config, _halved(config, given)._replace(judging=None), by_evaluator=True)
    if "choosing" in found and found["choosing"] is None:
        logger.warning(
            "The same examples propose cuts and choose among them, since calibration cannot be split in two: pass choosing=..., "
            "other examples, for a choice that luck has no part in. What judges is not touched by it."
        )
        found = {"choosing": found["calibration"]}
    check_disjoint({**found, "eval_dataset": given.judging})
    return Sets(**found)


def _halved(config: PruningConfig, given: Parts) -> Parts:
    """Where nobody but the user has data to choose by, half of what was given proposes and half of it chooses."""
    criterion = None if config.plans_by_threshold else find_criterion(config.criterion)
    apart = criterion is not None and criterion.chooses and given.choosing is None
    if not apart or not is_readable(given.calibration) or len(given.calibration) < 2:
        return given
    half = len(given.calibration) // 2
    parts = split_parts(given.calibration, seed=config.seed, calibration=half, choosing=len(given.calibration) - half)
    return given._replace(calibration=parts.calibration, choosing=parts.choosing)


def _refuse_unused(**given: Any) -> None:
    if named := [role for role, data in given.items() if data is not None]:
        raise ValueError(
            f"{' and '.join(named)} would not be used: sets are kept apart only with PruningConfig(confidence=0.95), say, or "
            "with threshold='auto'. Else layers are measured on calibration, and the whole evaluation set judges. Leave it out, or "
            "pass one of the two."
        )


def _assign(config: PruningConfig, given: Parts, *, by_evaluator: bool) -> dict[str, Any]:
    """The sets that a run has a use for, as far as they are given; `None` for those that are to be made."""
    for role, data in given._asdict().items():
        if isinstance(data, Mapping) and data and all(is_readable(part) for part in data.values()):
            raise ValueError(f"{role} is a dict of {', '.join(map(repr, data))}, not one data set: pass one of them.")
    criterion = None if config.plans_by_threshold else find_criterion(config.criterion)
    if criterion is not None and criterion.chooses:
        found = {"calibration": given.calibration, "choosing": given.choosing}
    elif criterion is not None and (criterion.reads_labels or "metric" in criterion.needs):
        found = {"choosing": given.calibration if given.choosing is None else given.choosing}
        if given.choosing is not None and given.calibration is not None:
            logger.warning("calibration is not used: criterion='%s' is measured on choosing.", config.criterion)
    else:
        found = {"calibration": given.calibration}
        if given.choosing is not None:
            logger.warning("choosing is not used: criterion='%s' reads no labels.", config.criterion)
    if not by_evaluator:
        return {**found, "judging": given.judging}
    if given.judging is not None:
        raise ValueError(
            "An evaluator judges on data of its own: leave judging out, or pass PruningConfig(metric='loss') and no evaluator."
        )
    return found


def _find_source(trainer: Trainer, metric: str, *, by_evaluator: bool) -> tuple[str, Any]:
    """The evaluation set that is split, with its name if there are several."""
    data: Any = trainer.eval_dataset
    if data is None:
        return "", trainer.train_dataset if by_evaluator else None
    if not isinstance(data, Mapping):
        return "", data
    names = [str(name) for name in data if metric.startswith(f"{name}_")] or list(data)[: len(data) == 1]
    if not names and not by_evaluator:
        raise ValueError(
            f"The Trainer has the evaluation sets {', '.join(map(repr, data))}, and which of them judges must be known before "
            f"any is split: pass PruningConfig(metric='{next(iter(data))}_accuracy'), say, or judging=... by hand."
        )
    name = max(names or list(data)[:1], key=len)
    return name, data[name]


def _why_not_split(trainer: Trainer, source: Any, given: Parts) -> str:
    """Why no part can be taken from an evaluation set, in words; empty if it can."""
    if source is None:
        return "there is none"
    if source is given.judging:
        return "all of it judges"
    model = trained_model(trainer)
    head = find_head(model.config, type(model).__name__)
    reads_back = head is not None and head.task == "question-answering" and given.judging is None
    return "answers are read back from the texts of the whole set" if reads_back else ""


def _split(trainer: Trainer, config: PruningConfig, found: Mapping[str, Any], name: str, source: Any) -> Sets:
    missing = [role for role, data in found.items() if data is None]
    total = len(source) if is_readable(source) else 0
    asked = {role: role in missing for role in Parts._fields}
    calibration, choosing = size_parts(total, config.calibration_samples, **asked)
    parts = split_parts(source, seed=config.seed, calibration=calibration, choosing=choosing)._asdict()
    if empty := [role for role in missing if parts[role] is None]:
        raise CalibrationError(
            f"The evaluation set has {total} examples, which leaves none for {' and '.join(empty)}. Pass a larger one, or "
            f"{' and '.join(f'{role}=...' for role in missing)} by hand."
        )
    whole = "evaluation set" if trainer.eval_dataset is not None else "training set"
    drawn = {"source": f"part of the {whole}", "drawn_from": total, "seed": config.seed}
    made = {role: parts[role] for role in missing}
    sets = _described(trainer, {**found, **made}, name if "judging" in made else "")
    return replace(sets, facts={role: {**sets.facts[role], **(drawn if role in made else {})} for role in sets.facts})


def _described(trainer: Trainer, found: Mapping[str, Any], name: str = "") -> Sets:
    own = trainer.eval_dataset
    known = {id(data): "evaluation set" for data in (own.values() if isinstance(own, Mapping) else [own])}
    known[id(trainer.train_dataset)] = "training set"
    facts = {role: describe_data(data, known.get(id(data), "given by the user")) for role, data in found.items()}
    if "judging" in facts and (digest := _digest(found["judging"])):
        facts["judging"]["digest"] = digest
    return Sets(**found, name=name, facts=facts)


def _digest(data: Any) -> str:
    """What tells the examples from others; empty where they are not the same each time that they are read."""
    once, again = fingerprint(data), fingerprint(data)
    return str(once["digest"]) if once == again and "digest" in once else ""


def check_sets(trainer: Trainer, sets: Sets, record: PruningRecord | None) -> None:
    """Refuse sets that share examples, and verdicts on other examples than those of the run so far.

    Args:
        trainer (`Trainer`): about to train; how many of the judging examples it trains on is said in a warning.
        sets (`Sets`): of this run.
        record (`PruningRecord`, *optional*): of the run that is gone on with.

    Raises:
        CalibrationError: naming two sets, and how many examples they share.
        MPrunerError: if the record's verdicts are of other examples; nothing was changed.
    """
    if record is not None and record.baseline is not None:
        check_same_examples(record, sets)
    if not sets.facts:
        return
    check_disjoint(
        {role: getattr(sets, role) for role in sets.facts},
        made=[role for role in sets.facts if "drawn_from" in sets.facts[role]],
    )
    warn_of_trained(trainer.train_dataset, sets.judging)


def check_same_examples(record: PruningRecord, sets: Sets) -> None:
    """Refuse to judge by other examples than the uncut model of a run was.

    Raises:
        MPrunerError: naming what differs; nothing was changed.
    """
    past, now = record.data.get("judging", {}), sets.facts.get("judging", {})
    differ = [
        f"{words}: {past.get(name)} (now {now.get(name)})"
        for name, words in _FIXED.items()
        if past.get(name) != now.get(name)
    ]
    if differ:
        raise MPrunerError(
            f"The verdicts of this run so far are of other examples than those that would judge from now on ({'; '.join(differ)}). "
            "Pass the evaluation set, the config and the sets that it began with, or begin anew with the uncut model. Nothing "
            "was changed."
        )
