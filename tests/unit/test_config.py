"""`PruningConfig`: every value is checked when it is given, and the text says what to type instead."""

from __future__ import annotations

import dataclasses
import json

import pytest

from hf_mpruner.config import CONFIG_NAME, PruningConfig
from hf_mpruner.similarity import PROTOCOLS


def test_percent_is_named_and_the_fraction_is_offered():
    with pytest.raises(ValueError, match=r"threshold=98\.0 is outside 0\.\.1.*for 98 % pass threshold=0\.98"):
        PruningConfig(threshold=98.0)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"threshold": -0.5}, r"threshold=-0\.5 is outside 0\.\.1"),
        ({"threshold": float("nan")}, r"threshold=nan is outside 0\.\.1"),
        ({"max_metric_drop": -0.01}, r"max_metric_drop=-0\.01 is negative.*pass 0\.01"),
        ({"max_metric_drop": float("nan")}, r"max_metric_drop=nan is negative or not a number"),
        ({"granularity": 4}, r"granularity=4 is not allowed: pass a whole number, 1\.\.3"),
        ({"max_granularity": 0}, r"max_granularity=0 is not allowed.*1\.\.3"),
        ({"granularity": 3, "max_granularity": 2}, r"granularity=3 is coarser than max_granularity=2"),
        ({"calibration_samples": 0}, r"calibration_samples=0 is not allowed.*1 or more"),
        ({"calibration_batch_size": 2.5}, r"calibration_batch_size=2\.5 is not allowed"),
        ({"recovery_epochs": -1}, r"recovery_epochs=-1 is not allowed.*0 or more"),
        ({"start_epoch": True}, r"start_epoch=True is not allowed"),
        ({"max_rounds": 0}, r"max_rounds=0 is not allowed.*1 or more"),
        ({"linkage": "single"}, r"linkage='single' is not known: pass one of anchor, chain"),
        ({"snapshot": "gpu"}, r"snapshot='gpu' is not known: pass one of cpu, device, disk"),
        ({"preset": "mine"}, r"preset='mine' is not known: pass one of default, paper"),
        ({"protect": "0"}, r"protect='0' is one string: pass a list, e\.g\. protect=\['0'\]"),
        ({"protect": ["encoder.block"]}, r"protect entry 'encoder\.block' names no layer"),
        ({"rows": "words"}, r"words"),
        ({"estimator": "exact"}, r"exact"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_value_outside_its_range_is_named(values, text):
    with pytest.raises(ValueError, match=text):
        PruningConfig(**values)


def test_protect_takes_numbers_strings_and_a_mapping():
    assert PruningConfig(protect=[0, -1, "encoder.block:3"]).protect == ["0", "-1", "encoder.block:3"]
    assert PruningConfig(protect={"encoder.block": [0, 3]}).protect == ["encoder.block:0", "encoder.block:3"]


def test_single_fields_replace_the_presets():
    assert PruningConfig().protocol == PROTOCOLS["default"]
    assert PruningConfig(preset="paper").protocol == PROTOCOLS["paper"]
    mixed = PruningConfig(preset="paper", estimator="unbiased").protocol
    assert mixed == dataclasses.replace(PROTOCOLS["paper"], estimator="unbiased")


def test_saved_and_loaded_it_is_the_same(tmp_path):
    config = PruningConfig(threshold=0.9, protect=[1], metric="f1", max_rounds=2)
    file = config.save_pretrained(tmp_path / "folder")
    assert file.name == CONFIG_NAME
    assert PruningConfig.from_pretrained(tmp_path / "folder") == config
    assert PruningConfig.from_pretrained(file) == config
    assert not list((tmp_path / "folder").glob(".*"))  # no temporary file is left


def test_fields_of_a_newer_version_are_dropped_with_a_warning(tmp_path):
    file = PruningConfig().save_pretrained(tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), "sparkle": 3, "hf_mpruner_version": "9.9"}))
    with pytest.warns(UserWarning, match=r"ignored unknown fields sparkle \(written by hf_mpruner 9\.9\)"):
        assert PruningConfig.from_pretrained(tmp_path) == PruningConfig()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No pruning_config\.json at .*nowhere"):
        PruningConfig.from_pretrained(tmp_path / "nowhere")


def test_every_field_has_a_help_text_for_the_command_line():
    missing = [field.name for field in dataclasses.fields(PruningConfig) if not field.metadata.get("help")]
    assert not missing
