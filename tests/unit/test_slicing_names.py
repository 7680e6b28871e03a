"""Slicing finds the names: what is written on disk is what loading, cutting and saving would write."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_mpruner import PruningPlan, apply_plan_, find_block_stacks, slice_checkpoint
from hf_mpruner.errors import CheckpointError, MPrunerError, PlanMismatchError
from hf_mpruner.slicing import NotByNamesError, Slicing, cut
from hf_mpruner.slicing.beside import choose_files
from hf_mpruner.slicing.labels import LabelledTensor, Sources
from hf_mpruner.slicing.recipe import Piece, StoredTensor
from hf_mpruner.verify.saved import same_bits

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 19}


def make_bert(kind=BertForMaskedLM, **settings):
    torch.manual_seed(0)
    return kind(BertConfig(num_hidden_layers=3, **SIZES, **settings))


def plan_for(model, kept=(0, 2)):
    path = next(stack.path for stack in find_block_stacks(model))
    return PruningPlan.from_kept({path: list(kept)}, find_block_stacks(model))


def cut_both_ways(kind, folder, plan):
    """The folders that the two roads write from `folder / "whole"`."""
    model = kind.from_pretrained(folder / "whole", dtype="auto")
    apply_plan_(model, plan)
    model.save_pretrained(folder / "memory")
    done = slice_checkpoint(folder / "whole", plan, folder / "disk", progress=False)
    return folder / "memory", folder / "disk", done


def check_same(memory, disk):
    assert (disk / "config.json").read_bytes() == (memory / "config.json").read_bytes()
    assert (disk / "model.safetensors").read_bytes() == (memory / "model.safetensors").read_bytes()


def rewrite(folder, change):
    """Change the tensors of a saved model."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(change(tensors), file, {"format": "pt"})


def test_names_of_old_checkpoints_are_found(tmp_path):
    """As the first BERTs were saved: gamma and beta, a head too many, both of two tied tensors."""
    model = make_bert()
    model.save_pretrained(tmp_path / "whole")

    def age(tensors):
        old = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items()
        }
        embeddings = tensors["bert.embeddings.word_embeddings.weight"]
        return {
            **old,
            "cls.predictions.decoder.weight": embeddings.clone(),
            "cls.seq_relationship.bias": torch.ones(2),
        }

    rewrite(tmp_path / "whole", age)
    memory, disk, done = cut_both_ways(BertForMaskedLM, tmp_path, plan_for(model))
    check_same(memory, disk)
    assert done.unknown == ("cls.seq_relationship.bias",)
    assert done.parameters == BertForMaskedLM.from_pretrained(disk).num_parameters() < done.parameters_before


def test_tied_tensors_that_differ_are_refused_both_ways(tmp_path):
    model = make_bert()
    model.save_pretrained(tmp_path / "whole")
    rewrite(tmp_path / "whole", lambda tensors: {**tensors, "cls.predictions.decoder.weight": torch.randn(19, 16)})
    with pytest.raises(CheckpointError, match=r"both are stored and differ\. .*tie_word_embeddings"):
        slice_checkpoint(tmp_path / "whole", plan_for(model), tmp_path / "disk")
    with pytest.raises(MPrunerError, match="tied_weights"):
        apply_plan_(BertForMaskedLM.from_pretrained(tmp_path / "whole"), plan_for(model))


def test_a_base_models_checkpoint_gets_the_names_of_its_head(tmp_path):
    """The gpt2 of the Hub: stored without the prefix, its head tied."""
    config = GPT2Config(n_embd=16, n_head=2, n_layer=3, vocab_size=19, n_positions=8)
    torch.manual_seed(0)
    GPT2Model(config).save_pretrained(tmp_path / "whole")
    file = tmp_path / "whole" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "architectures": ["GPT2LMHeadModel"]}))
    assert "h.0.ln_1.weight" in load_file(tmp_path / "whole" / "model.safetensors")
    memory, disk, _ = cut_both_ways(GPT2LMHeadModel, tmp_path, plan_for(GPT2LMHeadModel(config)))
    check_same(memory, disk)
    assert (disk / "generation_config.json").read_bytes() == (memory / "generation_config.json").read_bytes()


def test_stored_types_stay_and_load_to_the_same_bits(tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **SIZES)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "whole")
    rewrite(
        tmp_path / "whole",
        lambda tensors: {k: t.float() * 1.001 if "norm" in k else t for k, t in tensors.items()},
    )
    plan = plan_for(model)
    whole = LlamaForCausalLM.from_pretrained(tmp_path / "whole", dtype="auto")
    apply_plan_(whole, plan)
    slice_checkpoint(tmp_path / "whole", plan, tmp_path / "disk", progress=False)
    assert load_file(tmp_path / "disk" / "model.safetensors")["model.norm.weight"].dtype == torch.float32
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "disk", dtype="auto").state_dict()
    assert loaded.keys() == whole.state_dict().keys()
    assert all(same_bits(loaded[name], tensor) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_a_pickled_checkpoint_is_cut(tmp_path, kind):
    """Of tied tensors it holds both, in one storage."""
    model = make_bert(kind)
    model.save_pretrained(tmp_path / "whole")
    torch.save(model.state_dict(), tmp_path / "whole" / "pytorch_model.bin")
    (tmp_path / "whole" / "model.safetensors").unlink()
    check_same(*cut_both_ways(kind, tmp_path, plan_for(model))[:2])


def test_files_beside_the_weights(tmp_path):
    model = make_bert(BertModel)
    whole = tmp_path / "whole"
    model.save_pretrained(whole, max_shard_size="6KB")
    taken = {
        "tokenizer.json": "{}",
        "chat_template.jinja": "x",
        "LICENSE": "free",
        "modules.json": '[{"path": ""}, {"path": "1_Pooling"}]',
        "1_Pooling/config.json": "{}",
    }
    left = {
        "README.md": "of the larger one",
        "training_args.bin": "x",
        "onnx/model.onnx": "x",
        "checkpoint-5/tokenizer.json": "x",
        ".env": "x",
        "notes.txt": "hf_" + "a" * 34,
    }
    for name, text in {**taken, **left}.items():
        (whole / name).parent.mkdir(parents=True, exist_ok=True)
        (whole / name).write_text(text)
    plan = plan_for(model)
    done = slice_checkpoint(whole, plan, tmp_path / "disk", max_shard_size="4KB", progress=False)
    assert set(done.copied) == set(taken)
    assert all((tmp_path / "disk" / name).read_text() == text for name, text in taken.items())
    assert not [name for name in left if (tmp_path / "disk" / name).exists()]
    assert PruningPlan.from_pretrained(tmp_path / "disk") == plan
    model = BertModel.from_pretrained(whole)
    apply_plan_(model, plan)
    model.save_pretrained(tmp_path / "memory", max_shard_size="4KB")
    for file in (tmp_path / "memory").iterdir():
        assert (tmp_path / "disk" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("Tokenizer.MODEL", True),
        ("spiece.model", True),
        ("additional_chat_templates/tool.jinja", True),
        ("qformer_tokenizer/vocab.txt", True),
        ("tokenizer/model.safetensors", False),
        ("data/train.json", False),
        ("config_sentence_transformers.json", True),
        ("Model.SafeTensors", False),
        ("consolidated.00.pth", False),
        ("openvino/openvino_model.xml", False),
        ("model.safetensors.index.json", False),
        ("pruning_plan.json", False),
        (".cache/huggingface/x", False),
    ],
)
def test_which_files_are_taken_over(name, taken):
    assert choose_files([name]) == [name] * taken


def change_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_what_names_do_not_say_is_refused_and_the_other_way_is_named(tmp_path):
    model = make_bert()
    model.save_pretrained(tmp_path / "whole")
    plan = plan_for(model)
    stacks = find_block_stacks(model)
    merged = PruningPlan.from_kept(
        {"bert.encoder.layer": [0, 2]}, stacks, merged={"bert.encoder.layer": {0: {1: 1.0}}}
    )
    target = tmp_path / "out"
    with pytest.raises(NotByNamesError, match=r"sums of weights.*--in_memory"):
        slice_checkpoint(tmp_path / "whole", merged, target)
    rewrite(tmp_path / "whole", lambda tensors: {k: t for k, t in tensors.items() if not k.startswith("cls.")})
    with pytest.raises(CheckpointError, match=r"no weights for \d+ parameters of BertForMaskedLM .*random"):
        slice_checkpoint(tmp_path / "whole", plan, target)
    model.save_pretrained(tmp_path / "whole")
    rewrite(tmp_path / "whole", lambda tensors: {**tensors, "bert.embeddings.LayerNorm.bias": torch.zeros(7)})
    with pytest.raises(CheckpointError, match=r"shape \(7,\) in the checkpoint and \(16,\) by the config"):
        slice_checkpoint(tmp_path / "whole", plan, target)
    model.save_pretrained(tmp_path / "whole")
    for change, reason in (
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized"),
        ({"quantization_config": None, "auto_map": {"AutoModel": "modeling_x.X"}}, "Python code of its own"),
        ({"auto_map": {}, "num_hidden_layers": 2}, "no place|3 layers of 'bert.encoder.layer', but the model has 2"),
    ):
        change_config(tmp_path / "whole", **change)
        with pytest.raises((NotByNamesError, PlanMismatchError), match=reason):
            slice_checkpoint(tmp_path / "whole", plan, target)
    assert not target.exists()


def test_a_folder_without_a_model_is_refused(tmp_path):
    make_bert(BertModel).save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "adapter_config.json").write_text("{}")
    plan = plan_for(make_bert(BertModel))
    with pytest.raises(CheckpointError, match="holds adapters: merge them"):
        slice_checkpoint(tmp_path / "whole", plan, tmp_path / "out")
    (tmp_path / "whole" / "adapter_config.json").unlink()
    (tmp_path / "whole" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        slice_checkpoint(tmp_path / "whole", plan, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no folder"):
        slice_checkpoint(tmp_path / "nothing" / "at" / "all", plan, tmp_path / "out")


def test_an_output_folder_in_the_source_is_refused(tmp_path):
    make_bert(BertModel).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="lies in the checkpoint"):
        slice_checkpoint(tmp_path, plan_for(make_bert(BertModel)), tmp_path / "out")


@pytest.mark.parametrize("fault", ["another layer", "one less"])
def test_files_that_are_not_those_of_the_cut_model_are_noticed(tmp_path, monkeypatch, fault):
    model = make_bert(BertModel)
    model.save_pretrained(tmp_path / "whole")
    write = cut.write_tensors_of
    name = "encoder.layer.1.output.dense.bias"

    def write_others(checkpoint, recipe, *args, **kwargs):
        assert recipe[name] == Piece("encoder.layer.2.output.dense.bias")
        wrong = {**recipe, name: Piece("encoder.layer.1.output.dense.bias")}
        if fault == "one less":
            del wrong[name]
        else:
            recipe[name] = wrong[name]  # so that the files agree with the recipe
        return write(checkpoint, wrong, *args, **kwargs)

    monkeypatch.setattr(cut, "write_tensors_of", write_others)
    with pytest.raises(MPrunerError, match="not that of the cut model"):
        slice_checkpoint(tmp_path / "whole", plan_for(model), tmp_path / "out", progress=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["whole"]


class Writing(BertModel):
    """Its code writes to a weight whenever the model is made, also to a loaded one (as ZAYA's router does)."""

    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self.embeddings:
            with torch.no_grad():
                module.word_embeddings.weight[0].zero_()


def test_a_weight_that_loading_writes_to_is_no_stored_one(tmp_path):
    model = make_bert(BertModel)
    model.save_pretrained(tmp_path)
    slicing = Slicing(tmp_path, model_class=Writing)
    with pytest.raises(NotByNamesError, match=r"writes to 'embeddings\.word_embeddings\.weight'.*--in_memory"):
        slicing.cut(plan_for(model))


def test_labels_tell_equal_computations_from_others():
    sources = Sources()
    a, b = (LabelledTensor.of(StoredTensor(name, "F32", (4, 2)), sources) for name in "ab")
    assert sources.name(a[...].to(device="cpu", dtype=torch.bfloat16).detach().contiguous().number) == "a"
    assert a.to(torch.bfloat16).dtype == torch.bfloat16
    assert torch.stack([a, b])[1].number == torch.stack([a, b])[1].number
    assert torch.stack([a, b])[1].number != torch.stack([a, b])[0].number
    assert torch.stack([a, b])[1].number != torch.stack([b, a])[1].number
    assert sources.names(torch.stack([a, b])[1].number) == {"a", "b"}
    assert [part.number for part in a.chunk(2)] == [part.number for part in a.chunk(2)]
    assert a.T.number != a.number != a.mul(2).number != a.mul(3).number
    for write in (
        lambda t: t.add_(1),
        lambda t: t[0].zero_(),
        lambda t: t.data[1].fill_(2),
        lambda t: t.__setitem__(0, 1),
    ):
        tensor = LabelledTensor.of(StoredTensor("c", "F32", (4, 2)), sources)
        parameter = torch.nn.Parameter(tensor)
        assert sources.name(parameter.number) == "c"
        with torch.no_grad():
            write(parameter)
        assert sources.name(parameter.number) is None
        assert sources.names(parameter.number) == frozenset()
    assert sources.name(b.number) == "b"


def test_the_configs_class_is_not_changed(tmp_path):
    """Slicing reads the source only."""
    model = make_bert()
    model.save_pretrained(tmp_path / "whole")
    before = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    state = torch.get_rng_state()
    slice_checkpoint(tmp_path / "whole", plan_for(model), tmp_path / "out", progress=False)
    assert {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()} == before
    assert torch.equal(torch.get_rng_state(), state)
    assert AutoConfig.from_pretrained(tmp_path / "out").num_hidden_layers == 2


def test_a_generation_config_that_cannot_be_read_is_not_taken_for_none(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2))
    model.save_pretrained(tmp_path / "whole")
    plan = PruningPlan.from_kept({"transformer.h": [0]}, find_block_stacks(model))
    (tmp_path / "whole" / "generation_config.json").write_text("{")
    with pytest.raises(OSError, match=r"generation_config\.json"):
        slice_checkpoint(tmp_path / "whole", plan, tmp_path / "smaller")
    assert not (tmp_path / "smaller").exists()
