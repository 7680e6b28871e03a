"""`publish`, as far as no Hub is needed: folders that may be pushed, and every reason why one may not."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_mpruner import push_pruned_model
from hf_mpruner.errors import MPrunerError, PlanMismatchError
from hf_mpruner.plan import PLAN_NAME, PruningPlan, StackPlan
from hf_mpruner.publish import Target, push_command, read_folder
from hf_mpruner.publish.compare import make_inputs
from hf_mpruner.report import PruningReport
from push_kit import LAYER_STACK, write_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("made") / "small", source="somebody/bert")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "small")


def rewrite(file, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def test_a_whole_folder(folder):
    found = read_folder(folder)
    found.check_weights()
    assert found.model_class.__name__ == "BertForSequenceClassification"
    assert (found.plan.num_removed, found.report.plan.kept) == (2, found.plan.kept)
    assert found.num_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def drop(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def with_plan(**facts):
    plan = PruningPlan(**facts)

    def write(folder):
        plan.save_pretrained(folder)
        (folder / "report.json").unlink()

    return write


def half_a_model(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=20_000)
    next(folder.glob("model-00002*")).unlink()


def weights_below(folder):
    (folder / "onnx").mkdir()
    (folder / "model.safetensors").rename(folder / "onnx" / "model.safetensors")


KEPT = {LAYER_STACK: StackPlan(4, (0, 2))}
BAD = {
    "no folder": (shutil.rmtree, ValueError, "is no folder. Pass the one that hf-mpruner prune wrote"),
    "no config": (drop("config.json"), ValueError, "has no config.json"),
    "no weights": (drop("model.safetensors"), ValueError, "has no weights (model.safetensors, or its parts). Write"),
    "weights below": (weights_below, ValueError, "has no weights (model.safetensors, or its parts). Write"),
    "half the weights": (half_a_model, ValueError, "lacks 'model-00002-of-"),
    "adapters": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        ValueError,
        "holds adapters, not a whole model. Merge them",
    ),
    "no plan": (
        drop(PLAN_NAME),
        ValueError,
        "has no pruning_plan.json, and no width_plan.json, so nothing says how the model was pruned",
    ),
    "another run's report": (
        lambda folder: PruningPlan({LAYER_STACK: StackPlan(4, (0, 1))}, "bert").save_pretrained(folder),
        PlanMismatchError,
        "pruning_plan.json keeps bert.encoder.layer: [0, 1], report.json bert.encoder.layer: [0, 2]",
    ),
    "another run's settings": (
        lambda folder: rewrite(folder / "pruning_config.json", lambda values: values.update(threshold=0.7)),
        PlanMismatchError,
        "mixes two runs: threshold is 0.7 in pruning_config.json and 0.0 in report.json",
    ),
    "another type's plan": (
        with_plan(stacks=KEPT, model_type="t5"),
        PlanMismatchError,
        "The plan is for a model of type 't5', the model is a 'bert'",
    ),
    "another stack": (
        with_plan(stacks={"encoder.block": StackPlan(4, (0, 2))}),
        PlanMismatchError,
        "The plan names 'encoder.block', which is no stack of BertForSequenceClassification",
    ),
    "another depth": (
        with_plan(stacks={LAYER_STACK: StackPlan(6, (0, 1, 2))}),
        PlanMismatchError,
        "The plan leaves 3 of 6 layers in 'bert.encoder.layer', the model has 2. It is another model's",
    ),
    "a plan that was not applied": (
        with_plan(stacks={LAYER_STACK: StackPlan(2, (0,))}),
        PlanMismatchError,
        "the model has 2. It was not applied: hf-mpruner apply does",
    ),
    "config of another depth": (
        lambda folder: rewrite(folder / "config.json", lambda values: values.update(num_hidden_layers=3)),
        MPrunerError,
        "is no whole BertForSequenceClassification: loading it reports missing keys ['bert.encoder.layer.2.",
    ),
    "a class that nobody has": (
        lambda folder: rewrite(folder / "config.json", lambda values: values.update(architectures=["OurBert"])),
        ValueError,
        "names the class 'OurBert', which transformers does not have. Save it with",
    ),
    "code of its own": (
        lambda folder: rewrite(
            folder / "config.json",
            lambda values: values.update(architectures=["OurBert"], auto_map={"AutoModel": "code.OurBert"}),
        ),
        ValueError,
        "It brings code of its own. Look at it, then pass --trust_remote_code",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_folders_that_are_refused(folder, what):
    spoil, kind, says = BAD[what]
    spoil(folder)
    with pytest.raises(kind, match=re.escape(says)) as found:
        read_folder(folder).check_weights()
    if what != "a class that nobody has" and "plan" not in what and "another" not in what:
        assert str(folder) in str(found.value)


def test_a_config_with_code_of_its_own(folder):
    code = {"model_type": "ours", "auto_map": {"AutoConfig": "code.OurConfig"}}
    rewrite(folder / "config.json", lambda values: values.update(code))
    (folder / "code.py").write_text("raise SystemExit('was run')")
    with pytest.raises(
        ValueError, match=rf"'{folder}' holds a model with code of its own\. Look at it, then pass --trust"
    ):
        read_folder(folder)


def test_a_record_of_another_run(folder):
    assert (folder / "pruning_record.json").is_file()
    rewrite(folder / "pruning_record.json", lambda values: values["rounds"].clear())
    with pytest.raises(PlanMismatchError, match=r"pruning_record\.json and report\.json keep other layers"):
        read_folder(folder)


def test_a_model_in_memory_needs_its_report(make_bert):
    with pytest.raises(ValueError, match="report=None: a BertForSequenceClassification in memory does not know"):
        push_pruned_model(make_bert(), "ann/bert")


def test_a_report_of_another_model(folder, make_bert):
    report = PruningReport.load(folder)
    with pytest.raises(
        PlanMismatchError, match=r"leaves 2 of 4 layers in 'bert\.encoder\.layer', the model has 4\. It was"
    ):
        push_pruned_model(make_bert(), "ann/bert", report=report)


@pytest.mark.parametrize("name", ["report", "config", "processing_class", "output_dir"])
def test_a_folder_has_its_own(folder, name):
    with pytest.raises(ValueError, match=rf"{name} is for a model in memory; of a folder.*Leave {name} out"):
        push_pruned_model(folder, "ann/bert", **{name: PruningReport.load(folder)})


def test_a_path_is_no_repository(folder, make_bert):
    for what in (folder, make_bert()):
        with pytest.raises(ValueError, match=r"repo_id='\./out' is a path"):
            push_pruned_model(what, "./out")


def test_the_command_repeats_what_was_asked():
    whole = Target(private=True, revision="a b", overwrite=True, check=False, trust_remote_code=True)
    assert push_command("out", "ann/x", whole) == (
        "hf-mpruner push out ann/x --private --revision 'a b' --overwrite --trust_remote_code --no_check"
    )


def test_inputs_that_models_take(make_vit, make_resnet):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    t5 = T5ForConditionalGeneration(T5Config(d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=1, vocab_size=9))
    for model in (make_vit(), make_resnet(), BertModel(BertConfig(vocab_size=9, **sizes)), t5.to(torch.bfloat16)):
        with torch.no_grad():
            model(**make_inputs(model))
    model.main_input_name = "touch"
    assert make_inputs(model) is None
