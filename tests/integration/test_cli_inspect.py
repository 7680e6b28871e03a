"""`hf-mpruner inspect`: what a cut would rewrite, and code that comes with a model."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, PreTrainedConfig, SwinConfig, T5Config

from hf_mpruner.architectures import BlockStack, ConfigField, examine
from hf_mpruner.cli import inspect, main
from hf_mpruner.cli.models import build_empty
from hf_mpruner.cli.rewrites import describe_rewrites, middle_layers, plain_json, rewrite_lines

pytestmark = pytest.mark.usefixtures("no_pictures")

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "vocab_size": 64}
LLAMA = LlamaConfig(**SIZES, num_key_value_heads=2, num_hidden_layers=5, architectures=["LlamaForCausalLM"])
T5 = T5Config(
    d_model=8, d_kv=4, d_ff=8, num_layers=4, num_heads=2, vocab_size=64, architectures=["T5ForConditionalGeneration"]
)  # fmt: skip
GEMMA = Gemma3TextConfig(
    **SIZES, num_key_value_heads=2, head_dim=8, num_hidden_layers=7, architectures=["Gemma3ForCausalLM"]
)
SWIN = SwinConfig(
    image_size=32, patch_size=2, embed_dim=8, depths=[2, 2, 6, 2], num_heads=[1] * 4, window_size=2,
    architectures=["SwinForImageClassification"],
)  # fmt: skip


@pytest.fixture
def look(tmp_path, capsys):
    """Facts as JSON and the text, of a folder that holds nothing but a config."""

    def call(config: PreTrainedConfig):
        config.save_pretrained(tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]
        capsys.readouterr()
        assert main(["inspect", str(tmp_path), "--format", "json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert main(["inspect", str(tmp_path)]) == 0
        return {stack["path"]: stack for stack in facts["stacks"]}, capsys.readouterr().out

    return call


def test_a_decoder(look):
    stacks, text = look(LLAMA)
    rewrites = stacks["model.layers"]["rewrites"]
    assert (rewrites["removed"], rewrites["refused"], rewrites["warning"]) == ([2], None, None)
    assert rewrites["config"][0] == {
        "name": "config.num_hidden_layers", "old": 5, "new": 4, "objects": ["config"],
    }  # fmt: skip
    (row,) = rewrites["modules"]
    assert row == {
        "name": "self_attn.layer_idx", "count": 2, "modules": ["model.layers.3.self_attn", "model.layers.4.self_attn"],
    }  # fmt: skip
    assert "\nmodel.layers without 2 would rewrite\n  config.num_hidden_layers: 5 -> 4\n" in text
    assert "\n  self_attn.layer_idx on 2 modules" in text


def test_an_encoder_and_a_decoder_with_copies_of_the_config(look):
    stacks, text = look(T5)
    counts = [row for row in stacks["encoder.block"]["rewrites"]["config"] if row["name"] == "config.num_layers"]
    assert counts == [{"name": "config.num_layers", "old": 4, "new": 3, "objects": ["config", "encoder.config"]}]
    assert "  config.num_layers: 4 -> 3 (in 2 config objects)\n" in text
    # the decoder's copy of the config says how many blocks it has itself
    assert "  decoder.config.num_layers: 4 -> 3\n" in text
    assert "the length of the encoder, but the decoder has 4" in stacks["encoder.block"]["rewrites"]["warning"]
    assert "  warning: generate() keeps keys and values for 3 layers" in text
    assert {row["name"]: row["count"] for row in stacks["decoder.block"]["rewrites"]["modules"]} == {
        "layer.0.SelfAttention.layer_idx": 2,
        "layer.1.EncDecAttention.layer_idx": 2,
    }


def test_lists_with_an_entry_for_each_layer(look):
    stacks, text = look(GEMMA)
    rows = {row["name"]: row for row in stacks["model.layers"]["rewrites"]["config"]}
    kinds = rows["config.layer_types"]
    assert (len(kinds["old"]), len(kinds["new"])) == (7, 6)
    assert kinds["old"][5] == kinds["new"][4] == "full_attention"
    assert "  config.layer_types: 7 entries -> 6 entries\n" in text


def test_blocks_that_go_two_by_two(look):
    stacks, text = look(SWIN)
    stack = stacks["swin.encoder.layers.2.blocks"]
    assert (stack["depth"], stack["period"], stack["rewrites"]["removed"]) == (6, 2, [2, 3])
    assert "shift_size" in stack["period_reason"]
    assert "swin.encoder.layers.2.blocks: layers go in runs of 2, or from the end: shift_size of layer 1" in text
    assert (
        "swin.encoder.layers.2.blocks without 2, 3 together would rewrite\n  config.depths: [2, 2, 6, 2] -> " in text
    )
    assert "  swin.encoder.layers.*.blocks.*.drop_path.drop_prob on " in text


def test_periods_and_followers_in_words():
    facts = {
        "model": "m", "class": "C", "model_type": "t", "parameters": 1, "refused": ["'x' is a list of plain modules"],
        "stacks": [
            {
                "path": path, "block_class": "B", "depth": 6, "count": "n", "per_layer": [], "block_parameters": [1],
                "pinned": {"0": "it opens the stack"}, "period": period, "period_reason": "blocks alternate",
                "followers": followers, "rewrites": {"removed": [5], "refused": "the proof says no"},
            }
            for path, period, followers in (("a", 1, ["heads"]), ("b", 2, []), ("c", 6, []))
        ],
    }  # fmt: skip
    text = inspect._table(facts)
    assert "a 0 stays: it opens the stack\na: heads gets shorter with it\n" in text
    assert "b: layers go in runs of 2, or from the end: blocks alternate\n" in text
    assert "c: layers go only from the end: blocks alternate\n" in text
    assert "not a stack: 'x' is a list of plain modules\n" in text
    assert "\nc without 5: refused: the proof says no" in text


def test_which_layers_a_trial_removes():
    def middle(depth, pinned=(), period=1):
        why = dict.fromkeys(pinned, "why")
        return middle_layers(BlockStack("h", "Block", depth, ConfigField("n"), pinned=why, period=period))

    assert middle(5) == (2,)
    assert middle(5, pinned=[2]) == (1,)
    assert middle(2, pinned=[0]) == (1,)
    assert middle(8, pinned=[0], period=2) == (3, 4)
    assert middle(6, pinned=[0, 1, 2, 3], period=6) == (5,)


def test_a_cut_that_is_refused_says_why(monkeypatch):
    from hf_mpruner.cli import rewrites
    from hf_mpruner.errors import UnsupportedArchitectureError

    model = build_empty(LLAMA)
    found = examine(model)

    def refuse(*args):
        raise UnsupportedArchitectureError("cutting it\ncannot be proved right")

    monkeypatch.setattr(rewrites, "prove_cut", refuse)
    facts = describe_rewrites(model, found, found.stacks[0])
    assert facts == {"removed": [2], "refused": "cutting it cannot be proved right"}
    assert rewrite_lines("model.layers", facts) == [
        "model.layers without 2: refused: cutting it cannot be proved right"
    ]


def test_nothing_is_built_with_memory():
    model = build_empty(LLAMA)
    found = examine(model)
    describe_rewrites(model, found, found.stacks[0])
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_values_that_json_cannot_hold():
    assert plain_json({1: (math.nan, math.inf, True, None)}) == {"1": ["nan", "inf", True, None]}
    assert plain_json(argparse.Namespace()) == "Namespace()"


# -- code that comes with a model -------------------------------------------------------------------------------------

CODE = """
from pathlib import Path
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

Path({marker!r}).write_text("ran")

class OwnConfig(PreTrainedConfig):
    model_type = "own_code"
    def __init__(self, num_hidden_layers=4, hidden_size=16, vocab_size=8, **kwargs):
        self.num_hidden_layers, self.hidden_size, self.vocab_size = num_hidden_layers, hidden_size, vocab_size
        super().__init__(**kwargs)

class OwnBlock(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.dense = nn.Linear(size, size)
    def forward(self, hidden_states):
        return hidden_states + self.dense(hidden_states)

class OwnForSequenceClassification(PreTrainedModel):
    config_class = OwnConfig
    main_input_name = "input_ids"
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(OwnBlock(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()
    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden_states = self.embed(input_ids)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        logits = self.head(hidden_states.mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
"""
AUTO = "AutoModelForSequenceClassification"


@pytest.fixture
def own_code(tmp_path) -> Path:
    """A folder with a config that names classes of a Python file beside it; `ran` appears if that is run."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own_code.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    values = {
        "model_type": "own_code", "architectures": ["OwnForSequenceClassification"], "num_hidden_layers": 4,
        "auto_map": {"AutoConfig": "own_code.OwnConfig", AUTO: "own_code.OwnForSequenceClassification"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    "command", [["inspect"], ["analyze", "--dataset", "d"], ["prune", "--dataset", "d", "--dry_run"]]
)
def test_code_that_comes_with_a_model_is_not_run_unless_asked(command, own_code, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.csv").write_text("text,label\na,0\n")
    assert main([command[0], str(own_code), *command[1:]]) == 1
    said = capsys.readouterr().err
    assert f"'{own_code}' brings Python code of its own, which is not run unless you say so." in said
    assert "if you trust it, add --trust_remote_code." in said
    assert not (tmp_path / "ran").exists()


def test_a_known_config_with_a_model_class_of_its_own_is_not_run_either(own_code, tmp_path, capsys):
    values = {**json.loads((own_code / "config.json").read_text()), "model_type": "bert"}
    del values["auto_map"]["AutoConfig"]
    (own_code / "config.json").write_text(json.dumps(values))
    assert main(["inspect", str(own_code)]) == 1
    assert "if you trust it, add --trust_remote_code." in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_trusted_code_is_inspected_analyzed_and_pruned(own_code, tmp_path, capsys):
    assert main(["inspect", str(own_code), "--trust-remote-code"]) == 0
    shown = capsys.readouterr()
    assert "OwnForSequenceClassification (own_code)" in shown.out
    assert "blocks without 1 would rewrite\n  config.num_hidden_layers: 4 -> 3" in shown.out
    assert shown.err.endswith("--dataset DATASET --trust_remote_code\n")
    assert (tmp_path / "ran").exists()

    _save_weights_and_words(own_code)
    rows = "".join(f"{word} the,{label}\n" for word, label in (("red", 0), ("blue", 1)) for _ in range(8))
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{rows}")
    data = ["--dataset", str(tmp_path), "--threshold", "0", "--trust_remote_code"]
    assert main(["analyze", str(own_code), *data, "--format", "quiet"]) == 0
    assert capsys.readouterr().out == "blocks: 4 -> 1 layers, without 1-3\n"
    _check_a_refused_choice(own_code, data, capsys)
    out = tmp_path / "smaller"
    words = ["--recovery_epochs", "0", "--max_metric_drop", "1", "--output_dir", str(out)]
    assert main(["prune", str(own_code), *data, *words]) == 0, capsys.readouterr().err
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 1
    assert main(["inspect", str(own_code), "--trust_remote_code", "--format", "quiet"]) == 0


def _check_a_refused_choice(folder: Path, data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`analyze` where one threshold's cut is refused: with one block it would be wider."""
    code = (folder / "own_code.py").read_text()
    wider = "OwnBlock(config.hidden_size * (1 + (config.num_hidden_layers < 2)))"
    (folder / "own_code.py").write_text(code.replace("OwnBlock(config.hidden_size)", wider))
    assert main(["analyze", str(folder), *data]) == 0
    text = capsys.readouterr().out
    assert (
        "refused at 0: OwnForSequenceClassification (model_type 'own_code'): cutting 'blocks' to layers [0] " in text
    )
    assert main(["analyze", str(folder), *data, "--format", "json"]) == 0
    choices = json.loads(capsys.readouterr().out)["thresholds"]
    assert (choices[-1]["threshold"], choices[-1]["parameters"]) == (0, None)
    assert "cannot be proved right" in choices[-1]["refused"]
    (folder / "own_code.py").write_text(code)


def _save_weights_and_words(folder: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    getattr(transformers, AUTO).from_config(config, trust_remote_code=True).save_pretrained(folder)
    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "red", "blue", "the"))}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
