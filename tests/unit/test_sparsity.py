"""Zeros by Wanda and magnitude: against loops, whatever pads, whatever the layout of a weight."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_mpruner import PruningPlan, apply_plan_, find_block_stacks
from hf_mpruner.errors import CalibrationError, UnsupportedArchitectureError, UnsupportedBackendError
from hf_mpruner.sparsity import KeepZeros, SparsityReport, choose_zeros, sparsify_
from hf_mpruner.sparsity.layers import LinearLayer, find_layers
from hf_mpruner.sparsity.unpadded import take_apart
from trainer_kit import build_trainer

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 99}
LENGTHS = (3, 8, 5, 6)


def make_bert(layers=3):
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_hidden_layers=layers, **SIZES)).eval()


def make_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=16, n_layer=2, n_head=2, n_positions=16)).eval()


def make_t5():
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(vocab_size=99, **sizes)).eval()


def make_sequences(seed=1, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 99, (1, length), generator=generator) for length in lengths]


def pad(sequences, value):
    longest = max(one.shape[1] for one in sequences)
    return torch.cat([nn.functional.pad(one, (0, longest - one.shape[1]), value=value) for one in sequences])


def make_batches(padded, targets=False):
    """The same sequences: one padded batch, or each alone without padding."""
    texts = make_sequences()
    answers = make_sequences(2, LENGTHS[::-1])
    if padded:
        batch = {"input_ids": pad(texts, 0), "attention_mask": pad([torch.ones_like(one) for one in texts], 0)}
        return [{**batch, "labels": pad(answers, -100)} if targets else batch]
    batches = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in texts]
    return (
        [{**batch, "labels": answer} for batch, answer in zip(batches, answers, strict=True)] if targets else batches
    )


def linears(model):
    return {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear)}


def lowest(row, number):
    return set(sorted(range(len(row)), key=lambda column: (row[column], column))[:number])


@pytest.mark.parametrize(("pattern", "sparsity"), [("unstructured", 0.3), ("2:4", 0.5), ("1:4", 0.75), ("4:8", 0.5)])
def test_the_lowest_of_each_row_or_group_go_as_a_loop_finds_them(pattern, sparsity):
    torch.manual_seed(0)
    scores = torch.rand(5, 16)
    scores[0] = 0.5  # all alike: the first go
    size = 16 if pattern == "unstructured" else int(pattern[2:])
    number = math.floor(16 * sparsity) if pattern == "unstructured" else size - int(pattern[0])
    going = choose_zeros(scores, sparsity, pattern)
    for row, found in zip(scores.tolist(), going.tolist(), strict=True):
        for start in range(0, 16, size):
            expected = lowest(row[start : start + size], number)
            assert {i for i in range(size) if found[start + i]} == expected


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.29, 0.3, 0.57, 0.7, 1.0])
def test_a_fraction_is_the_one_that_was_written(sparsity):
    # in floats 0.29 times 100 is a little less than 29
    assert choose_zeros(torch.rand(3, 100), sparsity).sum(1).tolist() == [round(100 * sparsity)] * 3


def test_wanda_is_the_formula_block_by_block_on_inputs_from_sparse_blocks():
    model, expected = make_bert(), make_bert()
    report = sparsify_(model, 0.4, calibration=make_batches(padded=True))
    for block in expected.bert.encoder.layer:
        rows: dict[str, list[torch.Tensor]] = {name: [] for name in linears(block)}
        hooks = [
            one.register_forward_hook(lambda module, args, out, seen=rows[name]: seen.append(args[0]))
            for name, one in linears(block).items()
        ]
        with torch.no_grad():
            for batch in make_batches(padded=False):
                expected(**batch)
        for hook in hooks:
            hook.remove()
        for name, one in linears(block).items():
            inputs = torch.cat([part.flatten(0, -2) for part in rows[name]]).double()
            norms = [math.sqrt(sum(value * value for value in column)) for column in inputs.t().tolist()]
            for row in one.weight.data:
                scores = [abs(weight) * norm for weight, norm in zip(row.tolist(), norms, strict=True)]
                row[list(lowest(scores, math.floor(0.4 * len(scores))))] = 0
    for name, one in linears(expected).items():
        assert torch.equal(model.get_submodule(name).weight, one.weight), name
    assert set(report.layers) == {name for name in linears(model) if name.startswith("bert.encoder.layer.")}
    assert report.examples == len(LENGTHS)


@pytest.mark.parametrize(("make", "targets"), [(make_gpt2, False), (make_t5, True)])
def test_padding_changes_no_zero(make, targets):
    whole, padded, alone = make(), make(), make()
    reports = [
        sparsify_(padded, 0.5, calibration=make_batches(True, targets)),
        sparsify_(alone, 0.5, calibration=make_batches(False, targets)),
    ]
    for name, weight in padded.named_parameters():
        assert torch.equal(weight, alone.get_parameter(name)), name
        inside = name.removesuffix(".weight") in reports[0].layers
        assert torch.equal(weight, whole.get_parameter(name)) != inside, name
    assert reports[0].layers == reports[1].layers
    # the head is the embedding, and lies outside
    assert not any("lm_head" in name or "shared" in name or "wte" in name for name in reports[0].layers)


def test_rows_that_nothing_tells_from_padding_are_run_without_it():
    """Positions first, as some models have them: the mask of a batch does not fit, and the examples are run one by one."""

    class Turned(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.calls = []

        def forward(self, hidden):
            self.calls.append(hidden.shape)
            return self.inner(hidden.transpose(0, 1)).transpose(0, 1)

    padded, alone = make_bert(), make_bert()
    for model in (padded, alone):
        dense = model.bert.encoder.layer[1].intermediate
        dense.dense = Turned(dense.dense)
    reports = [
        sparsify_(padded, 0.5, calibration=make_batches(True), stacks=["bert.encoder.layer"]),
        sparsify_(alone, 0.5, calibration=make_batches(False), stacks=["bert.encoder.layer"]),
    ]
    assert reports[0].layers == reports[1].layers
    assert all(torch.equal(weight, alone.get_parameter(name)) for name, weight in padded.named_parameters())
    assert "bert.encoder.layer.1.intermediate.dense.inner" in reports[0].layers
    assert reports[0].examples == len(LENGTHS)
    assert {tuple(shape[:2]) for shape in padded.bert.encoder.layer[1].intermediate.dense.calls} >= {
        (1, length) for length in LENGTHS
    }


def test_the_parts_of_a_batch_are_its_examples():
    batch = make_batches(True, targets=True)[0] | {"decoder_attention_mask": torch.ones(4, 8), "scale": torch.ones(3)}
    batch["decoder_attention_mask"][0, 5:] = 0
    parts = list(take_apart(make_t5(), batch))
    assert [part["input_ids"].shape[1] for part in parts] == list(LENGTHS)
    assert [part["labels"].shape[1] for part in parts] == [5, 8, 8, 8]  # by the decoder's own mask
    assert all(part["attention_mask"].all() and part["scale"].shape == (3,) for part in parts)
    with pytest.raises(CalibrationError, match="batch_size=1"):
        list(take_apart(make_t5(), {"input_ids": batch["input_ids"]}))


def test_the_encoders_padding_counts_for_what_reads_the_encoder():
    model, loose = make_t5(), make_t5()
    batch = make_batches(True, True)[0]
    sparsify_(model, 0.5, calibration=[batch])
    everything = {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}
    sparsify_(loose, 0.5, calibration=[everything])
    name = "decoder.block.0.layer.1.EncDecAttention.k.weight"
    assert not torch.equal(model.get_parameter(name), loose.get_parameter(name))


def test_a_row_of_gpt2_is_an_output():
    model = make_gpt2()
    report = sparsify_(model, 0.25, method="magnitude")
    weight = model.transformer.h[0].attn.c_attn.weight  # (inputs, outputs)
    assert ((weight == 0).sum(0) == 4).all()
    assert report.sparsity == 0.25
    assert report.passes == 0


def test_two_of_four_lie_along_the_inputs():
    model = make_gpt2()
    sparsify_(model, 0.5, pattern="2:4", calibration=make_batches(True))
    weight = model.transformer.h[1].mlp.c_fc.weight.t()
    assert ((weight.reshape(-1, 4) == 0).sum(1) == 2).all()


def test_the_norms_of_a_convolution_are_of_what_each_weight_sees():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 2, (3, 2), stride=2, padding=1, dilation=(1, 2))
    images = torch.randn(2, 3, 7, 6)
    layer = LinearLayer("conv", conv)
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    height, width = conv(images).shape[2:]
    expected = [
        sum(
            float(padded[image, channel, 2 * y + row, 2 * x + 2 * column]) ** 2
            for image in range(2)
            for y in range(height)
            for x in range(width)
        )
        for row in range(3)
        for column in range(2)
        for channel in range(3)
    ]
    assert torch.allclose(layer.squares(images), torch.tensor(expected, dtype=torch.float64), rtol=1e-5)
    # columns of the matrix go with them: only the weights of one channel at one place of the kernel
    going = torch.zeros(2, 18, dtype=torch.bool)
    going[:, 3 * 2 + 1] = True  # second place: row 0, column 1 is places 3..5; this is row 1, column 0, channel 1
    layer.set_to_zero_(going)
    assert [tuple(found) for found in (conv.weight[0] == 0).nonzero().tolist()] == [(1, 1, 0)]


def test_a_resnet():
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic", num_labels=3)
    model = ResNetForImageClassification(config)
    report = sparsify_(model, 0.5, calibration=[{"pixel_values": torch.randn(4, 3, 16, 16)}])
    assert report.sparsity == 0.5
    assert all(".stages." in name for name in report.layers)
    assert not (model.resnet.embedder.embedder.convolution.weight == 0).any()


def test_experts_of_one_tensor_are_left_out_and_named():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=99, num_key_value_heads=2, num_local_experts=2, **sizes))
    before = copy.deepcopy(model.state_dict())
    report = sparsify_(model, 0.5, calibration=make_batches(True))
    assert {"self_attn"} <= {name.split(".")[3] for name in report.layers}
    assert any("expert" in name and "several matrices" in why for name, why in report.left_out.items())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.weight" for name in report.layers}


def test_zeros_survive_the_disk_and_a_cut(tmp_path):
    model = make_bert(4)
    report = sparsify_(model, 0.5, calibration=make_batches(True))
    plan = PruningPlan.from_kept({"bert.encoder.layer": [0, 2]}, find_block_stacks(model))
    apply_plan_(model, plan)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for name, weight in again.named_parameters():
        assert torch.equal(weight, model.get_parameter(name))
    assert (again.bert.encoder.layer[1].output.dense.weight == 0).sum(1).tolist() == [16] * 16
    # once more on what is left: no further zero at the same sparsity, since zeros score lowest
    after = sparsify_(again, 0.5, calibration=make_batches(True))
    assert len(after.layers) == len(report.layers) // 2
    assert after.sparsity == 0.5
    assert after.model_zeros >= sum(one.zeros for one in after.layers.values())


def test_stacks_of_one_block_are_looked_into_like_the_others():
    model = make_bert(3)
    apply_plan_(model, PruningPlan.from_kept({"bert.encoder.layer": [1]}, find_block_stacks(model)))
    assert len(sparsify_(model, 0.5, calibration=make_batches(True)).layers) == 6
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "layer_type": "basic", "num_labels": 3}
    pixels = [{"pixel_values": torch.randn(4, 3, 16, 16)}]
    half = ResNetForImageClassification(ResNetConfig(depths=[1, 2], **sizes))
    assert {name.split(".")[3] for name in sparsify_(half, 0.5, calibration=pixels).layers} == {"0", "1"}
    flat = ResNetForImageClassification(ResNetConfig(depths=[1, 1], **sizes))
    with pytest.raises(UnsupportedArchitectureError, match="stacks="):
        sparsify_(flat, 0.5, calibration=pixels)
    paths = [f"resnet.encoder.stages.{stage}.layers" for stage in range(2)]
    assert sparsify_(flat, 0.5, calibration=pixels, stacks=paths).sparsity == 0.5
    with pytest.raises(ValueError, match="no list of blocks"):
        sparsify_(flat, 0.5, calibration=pixels, stacks=["resnet.encoder.layer"])


def test_passes_are_counted():
    model = make_bert(3)
    batches = make_batches(False)
    runs = []
    model.bert.encoder.layer[0].register_forward_hook(lambda *_: runs.append(1))
    report = sparsify_(model, 0.5, calibration=batches)
    assert len(runs) == 3 * len(batches) + 1
    # blocks 1, 1-2 and 1-3 over all batches, and all three over the first
    assert report.passes == pytest.approx((6 * len(batches) + 3) / (3 * len(batches)))


def test_what_the_model_was_doing_goes_on():
    model = make_bert().train()
    hooks = sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    sparsify_(model, 0.5, calibration=make_batches(True))
    assert torch.equal(torch.rand(1), expected)
    assert all(one.training for one in model.modules())
    assert hooks == sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sparsity": 1.5}, ValueError, "outside 0..1"),
        ({"sparsity": 50}, ValueError, "pass 0.5"),
        ({"sparsity": "half"}, TypeError, "fraction"),
        ({"pattern": "4:2"}, ValueError, "'2:4'"),
        ({"pattern": "block"}, ValueError, "'unstructured'"),
        ({"pattern": "2:4", "sparsity": 0.4}, ValueError, "sparsity=0.5"),
        ({"pattern": "8:12", "sparsity": 1 / 3}, ValueError, "skip=.*unstructured"),
        ({"method": "wonder"}, ValueError, "'wanda', 'magnitude'"),
        ({"calibration": None}, CalibrationError, "method='magnitude'"),
        ({"skip": ["nothing.here"]}, ValueError, "attention.self.query"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_changes(options, error, words):
    model = make_bert()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=words):
        sparsify_(model, **{"calibration": make_batches(True), **options})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_that_are_no_plain_numbers_are_refused():
    model = make_bert()
    model.is_quantized = True
    with pytest.raises(ValueError, match="without quantisation"):
        sparsify_(model, method="magnitude")
    model = make_bert()
    model.bert.encoder.layer[0].output.dense.weight = nn.Parameter(torch.empty(16, 32, device="meta"))
    with pytest.raises(ValueError, match="no values"):
        sparsify_(model, method="magnitude")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_adapters_are_refused():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(make_bert(), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="merge_and_unload"):
        sparsify_(adapted, method="magnitude")
    merged = adapted.merge_and_unload()
    assert sparsify_(merged, method="magnitude").sparsity == 0.5


def test_half_precision_has_the_exact_fraction_too():
    model = make_bert().to(torch.bfloat16)
    report = sparsify_(model, 0.3, calibration=make_batches(True))
    weight = model.bert.encoder.layer[2].intermediate.dense.weight
    assert weight.dtype == torch.bfloat16
    # in bfloat16 many scores are alike: still no more go than were asked for
    assert ((weight == 0).sum(1) == math.floor(0.3 * 16)).all()
    assert report.passes == pytest.approx((3 + 1 + 2 + 3) / 3)


def test_what_lies_in_the_blocks_and_is_skipped_shared_or_computed_stays_dense():
    model = make_bert()
    layers = model.bert.encoder.layer
    layers[1].intermediate.dense.weight = layers[0].intermediate.dense.weight
    report = sparsify_(model, 0.5, method="magnitude", skip=["attention.output.dense"])
    for name in ("0.intermediate.dense", "1.intermediate.dense"):
        assert "shared" in report.left_out[f"bert.encoder.layer.{name}"]
    assert not any(name.endswith("attention.output.dense") for name in report.layers)
    assert not (layers[0].intermediate.dense.weight == 0).any()
    assert not (layers[0].attention.output.dense.weight == 0).any()
    nn.utils.parametrizations.weight_norm(layers[2].output.dense)
    assert "computed" in find_layers(model, ["bert.encoder.layer"]).left_out["bert.encoder.layer.2.output.dense"]


def test_a_failure_in_the_middle_says_what_was_done():
    model = make_bert()
    batch = make_batches(True)[0]
    broken = {**batch, "attention_mask": batch["attention_mask"][:, :, None]}
    runs = []

    def poison(module, args, output):
        runs.append(1)
        return output * float("nan") if len(runs) > 3 else output

    model.bert.encoder.layer[0].register_forward_hook(poison)
    with pytest.raises(CalibrationError, match="NaN") as caught:
        sparsify_(model, 0.5, calibration=[batch, batch])
    assert "layer.1 have their zeros" in caught.value.__notes__[0]
    with pytest.raises(Exception, match=r".+"):
        sparsify_(make_bert(), 0.5, calibration=[broken])


def test_zeros_stay_while_a_trainer_trains(tmp_path):
    model = make_bert()
    report = sparsify_(model, 0.5, calibration=make_batches(True))
    trainer = build_trainer(model, tmp_path, num_train_epochs=1, weight_decay=0.1)
    callback = KeepZeros(model, report)
    trainer.add_callback(callback)
    before = {name: model.get_submodule(name).weight.detach().clone() for name in report.layers}
    trainer.train()
    for name, old in before.items():
        new = model.get_submodule(name).weight
        assert torch.equal(new == 0, old == 0), name
        assert not torch.equal(new, old), name
    with pytest.raises(ValueError, match="zeros, but 128 by the report"):
        KeepZeros(make_bert(), report)
    KeepZeros(model, SparsityReport.from_dict(json.loads(json.dumps(report.to_dict()))))
    with pytest.raises(UnsupportedBackendError, match=r"trainer\.model"):
        callback.on_train_begin(None, None, None, model=make_bert())
    cut = copy.deepcopy(model)
    apply_plan_(cut, PruningPlan.from_kept({"bert.encoder.layer": [0, 1]}, find_block_stacks(cut)))
    with pytest.raises(ValueError, match="before layers are removed"):
        KeepZeros(cut, report)
