"""`verify="full"`: right cuts pass and leave no trace, wrong ones are taken back and say which comparison failed."""

from __future__ import annotations

import itertools
import re
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from custom_kit import CUSTOM_STACK, CustomBlock, CustomModel, make_custom
from hf_mpruner import PruningConfig, PruningPlan, apply_plan_, find_block_stacks, prune_
from hf_mpruner.engine import PruningEngine
from hf_mpruner.errors import UnsupportedArchitectureError
from hf_mpruner.surgery import ModelEdit
from hf_mpruner.verify import FullCheck, apply_verified_
from hf_mpruner.verify.outputs import find_difference
from hf_mpruner.verify.skip import make_skip_reference
from trainer_kit import Rows, add, build_trainer

IDS = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(1))
INPUTS = {"input_ids": IDS}
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "num_hidden_layers": 4,
}


class ByPlace(CustomModel):
    """Each block counts more than the one before it: by its place, which no attribute and no shape shows."""

    step = 0.1

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("weights", torch.ones(64), persistent=False)
        self._init_weights(self)

    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self and hasattr(self, "weights"):
            self.weights.copy_(1 + torch.arange(64) * self.step)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden_states = self.embed(input_ids)
        for number, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states) * self.weights[number]
        return {"logits": self.head(hidden_states.mean(1))}


class ByDepth(CustomModel):
    """Computes with how many blocks there were when it was built, in a buffer that no checkpoint holds."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self._init_weights(self)

    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self and hasattr(self, "scale"):
            self.scale.fill_(self.config.num_hidden_layers)

    def forward(self, input_ids, attention_mask=None, labels=None):
        return {"logits": super().forward(input_ids).logits * self.scale}


class LastByNumber(CustomModel):
    """Reaches for a block by its number."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        return {"logits": super().forward(input_ids).logits + self.layers[3].dense.bias[:2]}


class Forgetful(CustomModel):
    """Leaves a weight out of the checkpoint."""

    _keys_to_ignore_on_save = ("head.bias",)


class NotSaved(CustomModel):
    """Cannot be saved."""

    def save_pretrained(self, *args, **kwargs):
        raise ValueError("no place to save this to")


class Rounded(CustomModel):
    """Saves something else than it is."""

    def save_pretrained(self, folder, **kwargs):
        state = {name: value.bfloat16().float() for name, value in self.state_dict().items()}
        super().save_pretrained(folder, state_dict=state, **kwargs)


class Overwritten(CustomModel):
    """Its first embedding is zero after loading, whatever the file says."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        model, info = super().from_pretrained(*args, **kwargs)
        model.embed.weight.data[0] = 0.0
        return model, info


class Noted(CustomModel):
    """Needs an attribute that somebody wrote to it after it was built."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        return {"logits": super().forward(input_ids).logits * self.note}


class Moody(CustomModel):
    """Puts out something else each time."""

    count = itertools.count()

    def forward(self, input_ids, attention_mask=None, labels=None):
        return {"logits": super().forward(input_ids).logits + next(self.count)}


class Silent(CustomModel):
    """Puts out nothing."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        return {}


class OddBlock(CustomBlock):
    """Gives its hidden states second."""

    def forward(self, hidden_states):
        return None, super().forward(hidden_states)


class Odd(CustomModel):
    """Blocks for which there is no skip reference."""

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(OddBlock(config.hidden_size) for _ in range(config.num_hidden_layers))

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden_states = self.embed(input_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states)[1]
        return {"logits": self.head(hidden_states.mean(1))}


class StreamBlock(CustomBlock):
    """Changes two streams, the first of them in place."""

    def forward(self, hidden_states, other):
        other = other + torch.sin(self.dense(hidden_states))
        hidden_states += torch.tanh(self.dense(other))
        return hidden_states, other


class Streams(CustomModel):
    """Two streams of one shape."""

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(StreamBlock(config.hidden_size) for _ in range(config.num_hidden_layers))

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden_states, other = self.embed(input_ids), self.embed(input_ids + 1)
        for layer in self.layers:
            hidden_states, other = layer(hidden_states, other=other)
        return {"logits": self.head((hidden_states * other).mean(1))}


class Gated(CustomModel):
    """Weights between the blocks, which no block owns."""

    def __init__(self, config):
        super().__init__(config)
        self.gate = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden_states = self.embed(input_ids)
        for layer in self.layers:
            hidden_states = self.gate(layer(hidden_states))
        return {"logits": self.head(hidden_states.mean(1))}


class Recorder(CustomModel):
    """Reads what its blocks gave from hooks of its own, as transformers does for hidden states."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        if "recorded" not in vars(self):
            self.recorded = []
            for layer in self.layers:
                layer.register_forward_hook(lambda module, args, output: self.recorded.append(output))
        self.recorded.clear()
        super().forward(input_ids)
        logits = self.head(self.recorded[-1].mean(1))
        self.recorded.clear()
        return {"logits": logits}


class Nearly(ByPlace):
    """Differs by the place of a block, in the last bits."""

    step = 2**-22


@pytest.fixture
def state(weight_digest):
    """Everything that a check and a refused cut must leave as it was."""

    def describe(model):
        return (
            weight_digest(model),
            [(name, id(module), module.training) for name, module in model.named_modules()],
            [
                (name, id(tensor), tensor.requires_grad)
                for name, tensor in (*model.named_parameters(), *model.named_buffers())
            ],
            {
                path: {k: repr(v) for k, v in vars(m).items() if not k.startswith("_")}
                for path, m in model.named_modules()
            },
            {name: repr(value) for name, value in vars(model.config).items()},
            torch.get_rng_state().tolist(),
        )

    return describe


def cut_and_verify(model, kept, inputs=INPUTS):
    plan = PruningPlan.from_kept(kept, find_block_stacks(model))
    return apply_plan_(model, plan, verify="full", inputs=inputs)


def make_llama(**config):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, "num_key_value_heads": 1, **config}))


def make_t5():
    torch.manual_seed(0)
    config = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(num_layers=4, num_decoder_layers=3, **config))


def make_gemma():
    torch.manual_seed(0)
    vision = {**SMALL, "image_size": 16, "patch_size": 4}
    text = {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4, "layer_types": None}
    tokens = {"mm_tokens_per_image": 4, "image_token_index": 61, "boi_token_index": 62, "eoi_token_index": 63}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, **tokens))


# -- right cuts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kept", "inputs"),
    [
        (make_llama, {"model.layers": [0, 3]}, INPUTS),
        (make_t5, {"encoder.block": [0, 1, 3], "decoder.block": [0, 2]}, {**INPUTS, "labels": IDS}),
        (make_custom, {CUSTOM_STACK: [1]}, INPUTS),
        (lambda: make_custom(Streams), {CUSTOM_STACK: [0, 3]}, INPUTS),
        (lambda: make_custom(Recorder), {CUSTOM_STACK: [0, 1]}, INPUTS),
    ],
)  # fmt: skip
def test_a_right_cut_passes_and_differs_in_nothing_from_an_unverified_one(
    make, kept, inputs, state, recwarn, tmp_path
):
    model, other = make().train(), make().train()
    model.config.use_cache = other.config.use_cache = True
    random_state = torch.get_rng_state()
    tempfile.tempdir = str(tmp_path)
    try:
        edit = cut_and_verify(model, kept, inputs)
    finally:
        tempfile.tempdir = None
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(tmp_path.iterdir()) == []
    apply_plan_(other, PruningPlan.from_kept(kept, find_block_stacks(other)))
    digest, modules, *_, config, _ = state(model)
    assert (digest, config) == (state(other)[0], state(other)[4])
    assert all(training for *_, training in modules)
    assert not any("verify=" in str(warning.message) for warning in recwarn)
    edit.undo()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    cut_and_verify(make_llama().to(dtype), {"model.layers": [0, 1, 3]})


def test_a_model_of_mixed_precision_and_chosen_attention():
    model = make_llama(attn_implementation="eager").bfloat16()
    model.lm_head.float()
    model.lm_head.register_forward_pre_hook(lambda module, args: (args[0].float(),))
    with pytest.raises(UnsupportedArchitectureError, match=r"fails on the inputs: RuntimeError"):
        cut_and_verify(model, {"model.layers": [0]})  # the copy has no such hook
    model = make_llama(attn_implementation="eager").double()
    model.model.norm.float()
    cut_and_verify(model, {"model.layers": [0]})
    assert model.config._attn_implementation == "eager"


def test_what_a_trainer_wraps_around_forward_stays_out(tmp_path):
    model = make_llama()
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    cut_and_verify(model, {"model.layers": [0, 3]})
    assert "forward" in vars(model)


# -- wrong cuts -------------------------------------------------------------------------------------------------------


def noted():
    model = make_custom(Noted)
    model.note = 2.0
    return model


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (
            lambda: make_custom(ByPlace),
            r"it is not the uncut model with the removed layers skipped: 'logits' is off by up to [\d.]+ \(largest value",
        ),
        (lambda: make_custom(ByDepth), r"saved and loaded again puts out something else: 'logits' is off by up to [\d.]+"),
        (lambda: make_custom(LastByNumber), r"it fails on the inputs: IndexError: "),
        (lambda: make_custom(Forgetful), r"saved and loaded again has missing keys \['head\.bias'\]"),
        (lambda: make_custom(NotSaved), r"cannot be saved and loaded again: ValueError: no place to save this to"),
        (lambda: make_custom(Rounded), r"a copy that was saved and loaded again has another 'embed\.weight'\."),
        (lambda: make_custom(Overwritten), r"another 'embed\.weight' \(it was saved right: Overwritten\.from_pretrained of"),
        (noted, r"saved and loaded again fails on the inputs: AttributeError: .*'note'"),
    ],
)  # fmt: skip
def test_a_wrong_cut_is_taken_back_and_says_what_failed(make, fault, state, tmp_path):
    model = make()
    model.layers[1].train()
    before = state(model)
    tempfile.tempdir = str(tmp_path)
    try:
        with pytest.raises(UnsupportedArchitectureError, match=fault) as caught:
            cut_and_verify(model, {CUSTOM_STACK: [0, 2]})
    finally:
        tempfile.tempdir = None
    assert f"{type(model).__name__} (model_type 'custom_kit'): cutting 'layers' to layers [0, 2] did not pass" in str(
        caught.value
    )
    assert str(caught.value).endswith("The model was not changed.")
    assert state(model) == before
    assert list(tmp_path.iterdir()) == []


def test_structure_alone_would_let_them_pass():
    for kind in (ByPlace, ByDepth, LastByNumber):
        model = make_custom(kind)
        apply_plan_(model, PruningPlan.from_kept({CUSTOM_STACK: [0, 2]}, find_block_stacks(model)))
        assert len(model.layers) == 2


def test_a_model_that_is_never_the_same_cannot_be_verified(state):
    model = make_custom(Moody)
    before = state(model)
    with pytest.raises(
        UnsupportedArchitectureError, match=r"two passes of the uncut model .* 'logits' is off by up to 1 "
    ):
        cut_and_verify(model, {CUSTOM_STACK: [0, 2]})
    assert state(model) == before


def test_a_folder_that_cannot_be_written(tmp_path, state):
    (tmp_path / "file").write_text("")
    model = make_custom()
    before = state(model)
    edit = ModelEdit(model, {CUSTOM_STACK: [0]})
    check = FullCheck(model, {CUSTOM_STACK: [0]}, INPUTS, directory=tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        apply_verified_(edit, check)
    assert state(model) == before


# -- where there is no skip reference ---------------------------------------------------------------------------------


def test_a_block_that_cannot_be_skipped_is_a_warning():
    model = make_custom(Odd)
    with pytest.warns(
        UserWarning, match=r"reloaded copy only.*'layers\.1' returns a tuple that does not begin with a tensor"
    ):
        cut_and_verify(model, {CUSTOM_STACK: [0, 2, 3]})
    assert len(model.layers) == 3


def test_blocks_that_the_inputs_do_not_reach_are_a_warning():
    model = make_gemma()
    kept = {"model.vision_tower.encoder.layers": [0, 2, 3]}
    with pytest.warns(UserWarning, match=r"'model\.vision_tower\.encoder\.layers\.1' does not run on these inputs"):
        cut_and_verify(model, kept)


def test_weights_between_the_blocks_are_a_warning():
    with pytest.warns(UserWarning, match=r"not known: 'gate' runs between the blocks, and goes with each of them\.$"):
        cut_and_verify(make_custom(Gated), {CUSTOM_STACK: [0, 2]})


def test_a_difference_in_the_last_bits_is_a_warning():
    with pytest.warns(
        UserWarning, match=r"cutting 'layers' to layers \[0, 3\] equals .* up to rounding only: 'logits' is"
    ):
        cut_and_verify(make_custom(Nearly), {CUSTOM_STACK: [0, 3]})


def test_a_wrapped_block_is_given_its_wrapper_back():
    model = make_custom()
    wrapper = model.layers[1].forward = model.layers[1].forward
    make_skip_reference(model, {CUSTOM_STACK: [0]}, INPUTS)
    assert vars(model.layers[1])["forward"] is wrapper
    assert "forward" not in vars(model.layers[2])


def test_lists_that_follow_the_stack_are_a_warning():
    model = make_custom(ByPlace)
    model.heads = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    check = FullCheck(model, {CUSTOM_STACK: [0, 2]}, INPUTS)
    del model.heads[3], model.heads[1], model.layers[3], model.layers[1]
    model.config.num_hidden_layers = 2
    with (
        pytest.warns(UserWarning, match="'heads' gets shorter with the stack"),
        pytest.raises(UnsupportedArchitectureError, match=r"unexpected keys \['heads\.0\.bias'"),
    ):
        check.run()


class Bare(nn.Module):
    """A stack without a config."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Nameless(nn.Module):
    """Asks for nothing."""

    def forward(self, x=None):
        return torch.ones(2)


@pytest.mark.parametrize(
    ("layers", "doubt"),
    [
        ([nn.Identity(), nn.Linear(3, 4)], r"'layers\.1' turns \[2, 3\] into \[2, 4\]"),
        ([nn.Identity(), Nameless()], None),
    ],
)
def test_what_a_block_may_give(layers, doubt):
    model = Bare(*layers)
    reference = make_skip_reference(model, {"layers": [0]}, {"x": torch.ones(2, 3)})
    if doubt is None:
        assert reference.doubts == ["'layers.1' turns [2, 3] into [2]"]
    else:
        assert re.search(doubt, reference.doubts[0])
    assert reference.outputs == []


def test_a_block_that_stands_twice():
    block = nn.Linear(3, 3)
    reference = make_skip_reference(Bare(block, nn.Identity(), block), {"layers": [0, 1]}, {"x": torch.ones(2, 3)})
    assert reference.doubts == ["'layers.2' also runs where it stays"]


def test_outputs_that_differ_in_kind():
    one = {"logits": torch.ones(2, 3)}
    assert find_difference(one, {}, 0.0) == "there are outputs ['logits'] instead of []"
    assert find_difference(one, {"logits": torch.ones(2)}, 0.0) == "'logits' is float32[2, 3] instead of float32[2]"
    nan = {"logits": torch.tensor([1.0, float("nan"), float("inf")])}
    assert find_difference(nan, {"logits": nan["logits"].clone()}, 0.0) is None
    assert "off by up to inf" in find_difference({"logits": torch.tensor([1.0, 2.0, 3.0])}, nan, 0.0)
    masked = torch.tensor([1.0, torch.finfo(torch.float32).min])
    assert find_difference({"x": masked}, {"x": masked + torch.tensor([0.5, 0.0])}, 0.1).startswith(
        "'x' is off by up to 0.5"
    )
    assert find_difference({"ids": torch.tensor([1])}, {"ids": torch.tensor([2])}, 0.1) is None
    assert find_difference({"ids": torch.tensor([1])}, {"ids": torch.tensor([2])}, 0.0).startswith(
        "'ids' is off by up to 1"
    )


# -- asked for in the wrong way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"verify": "full"}, r"verify='full' runs the model on real inputs, and got none: pass inputs=batch"),
        ({"verify": "full", "inputs": {}}, r"got none: pass inputs=batch"),
        ({"verify": "logits", "inputs": INPUTS}, r"verify='logits' is not known: pass one of 'structure', 'full'"),
        ({"inputs": INPUTS}, r"inputs are not used with verify='structure': pass verify='full'"),
    ],
)
def test_arguments_that_do_not_fit(arguments, text, state):
    model = make_custom()
    before, plan = state(model), PruningPlan.from_kept({CUSTOM_STACK: [0]}, find_block_stacks(model))
    with pytest.raises(ValueError, match=text):
        apply_plan_(model, plan, **arguments)
    assert state(model) == before


def test_inputs_that_give_nothing_to_compare(state):
    model = make_custom(Silent)
    before = state(model)
    with pytest.raises(ValueError, match=r"Silent gives no tensor on these inputs \(input_ids\)"):
        cut_and_verify(model, {CUSTOM_STACK: [0]})
    assert state(model) == before


def test_config_and_engine_refuse_what_cannot_work():
    with pytest.raises(ValueError, match="verify='logits' is not known: pass one of structure, full"):
        PruningConfig(verify="logits")
    with pytest.raises(
        ValueError, match=r"PruningConfig\(verify='full'\) runs each cut on real inputs: pass verify_inputs"
    ):
        PruningEngine(make_custom(), PruningConfig(verify="full"), measure=lambda stacks: {})


# -- in a run ---------------------------------------------------------------------------------------------------------

ALL_ALIKE = {"threshold": 0.0, "calibration_samples": 16, "calibration_batch_size": 8, "verify": "full"}


def test_prune_verifies_on_the_first_calibration_batch(weight_digest):
    report = prune_(make_custom(), PruningConfig(**ALL_ALIKE), calibration=Rows(16, 0))
    assert report.plan.kept == {CUSTOM_STACK: (0,)}
    model = make_custom(ByPlace)
    before = weight_digest(model)
    report = prune_(model, PruningConfig(**ALL_ALIKE, granularity=2), calibration=Rows(16, 0))
    assert [round_.refused for round_ in report.rounds] == [True, True]
    assert "not the uncut model with the removed layers skipped" in report.rounds[0].reason
    assert weight_digest(model) == before


def test_a_training_goes_on_after_a_cut_that_did_not_pass(tmp_path):
    trainer = build_trainer(make_custom(ByPlaceWithLoss), tmp_path / "out", num_train_epochs=1)
    callback = add(trainer, verify="full", granularity=2)
    trainer.train()
    assert [round_.refused for round_ in callback.record.rounds] == [True, True]
    assert len(trainer.model.layers) == 4
    assert not [path for path in (tmp_path / "out").iterdir() if "verify" in path.name]


def test_a_training_whose_cuts_pass(make_bert, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer = build_trainer(make_bert(num_labels=2), tmp_path / "out", num_train_epochs=1)
        callback = add(trainer, verify="full", max_metric_drop=1.0)
        trainer.train()
    assert [round_.verdict for round_ in callback.record.rounds] == ["accepted"]
    assert Path(tmp_path / "out").is_dir()


class ByPlaceWithLoss(ByPlace):
    """What a Trainer can train."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = super().forward(input_ids)["logits"]
        return (
            {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
            if labels is not None
            else {"logits": logits}
        )
