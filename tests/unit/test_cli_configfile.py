"""`--config FILE`: keys are flags, what is typed goes before them, what does not fit is refused by name."""

from __future__ import annotations

import json
from importlib import import_module

import pytest

from hf_mpruner.cli.configfile import use_config_file
from hf_mpruner.cli.flags import read_config
from hf_mpruner.cli.parser import Parser, UsageError
from hf_mpruner.config import PruningConfig


def parse(*words, command="prune"):
    parser = Parser(prog=f"hf-mpruner {command}")
    import_module(f"hf_mpruner.cli.{command}").add_arguments(parser)
    words = [str(word) for word in words]
    use_config_file(parser, words)
    return parser.parse_args(words)


YAML = """
model: org/model
dataset: org/data
output_dir: out
learning_rate: 1e-4        # YAML reads this as text
batch_size: 8
threshold: 0.9
protect: [0, -1]
stop_when_done: false
overwrite: true
dataset_config:
"""


def test_a_whole_run_in_one_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(YAML)
    args = parse("--config", file)
    assert (args.model, args.dataset, args.output_dir, args.overwrite) == ("org/model", "org/data", "out", True)
    assert (args.learning_rate, args.batch_size, args.dataset_config) == (1e-4, 8, None)
    config = read_config(args)
    assert config == PruningConfig(threshold=0.9, protect=["0", "-1"], stop_when_done=False)


def test_what_is_typed_goes_before_the_file(tmp_path):
    file = tmp_path / "run.yml"
    file.write_text(YAML)
    args = parse("mine", f"--config={file}", "--batch-size", 4, "--stop_when_done", "--threshold", 0.5)
    assert (args.model, args.dataset, args.batch_size, args.learning_rate) == ("mine", "org/data", 4, 1e-4)
    assert read_config(args) == PruningConfig(threshold=0.5, protect=["0", "-1"], stop_when_done=True)


def test_json_and_yaml_say_the_same(tmp_path):
    values = {"model": "m", "dataset": "d", "threshold": 0.5, "text_column": ["a", "b"], "dry_run": True}
    (tmp_path / "run.json").write_text(json.dumps(values))
    (tmp_path / "run.yaml").write_text("model: m\ndataset: d\nthreshold: 0.5\ntext_column: [a, b]\ndry_run: yes\n")
    assert vars(parse("--config", tmp_path / "run.json")) | {"config": ""} == vars(
        parse("--config", tmp_path / "run.yaml")
    ) | {"config": ""}


def test_what_save_pretrained_wrote_is_such_a_file(tmp_path):
    asked = PruningConfig(threshold=0.7, protect=["1"], max_rounds=2, recovery="lora")
    asked.save_pretrained(tmp_path)
    assert read_config(parse("m", "--dataset", "d", "--config", tmp_path)) == asked
    assert read_config(parse("m", "--dataset", "d", "--config", tmp_path, command="analyze")) == asked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasat: d", "unknown key 'datasat' (did you mean 'dataset'?). Keys are the flags of hf-mpruner prune."),
        ("batch_size: many", "batch_size: 'many' is not allowed: write a whole number."),
        ("batch_size: true", "batch_size: True is not allowed: write a whole number."),
        ("learning_rate: [1]", "learning_rate: [1] is not allowed: write a number."),
        ("overwrite: maybe", "overwrite: 'maybe' is not allowed: write true or false."),
        ("protect: 3", "protect: 3 is one value, the flag takes several: write [3]."),
        ("recovery: none", "recovery: 'none' is not allowed: write one of full, lora."),
        ("a: [", "is no YAML: while parsing"),
        ("- a", "holds a list, not the names of flags and their values."),
        ("1: 2", "holds a dict, not the names of flags and their values."),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        parse("m", "--dataset", "d", "--config", file)
    assert str(refused.value).startswith(f"--config {file}")
    assert message in str(refused.value)


def test_a_required_flag_may_stand_in_the_file_but_must_stand_somewhere(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("threshold: 0.5")
    with pytest.raises(SystemExit):
        parse("--config", tmp_path / "run.yaml")
    assert "the following arguments are required: MODEL, --dataset" in capsys.readouterr().err
