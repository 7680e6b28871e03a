"""The road on an accelerator: mixed precision, fused optimizers, snapshots, compiled models. `pytest -m gpu` runs it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from hf_mpruner import find_block_stacks, measure_similarity
from hf_mpruner.data import calibration_loader
from hf_mpruner.footprint import PeakMemory
from hf_mpruner.footprint.profile import run_beside
from hf_mpruner.report import PruningReport
from hf_mpruner.similarity import centred_gram
from trainer_kit import STACK, Rows, Scripted, Spy, add, assert_same, build_trainer, everything

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="this machine has no accelerator"),
]


def device():
    return torch.accelerator.current_accelerator()


@pytest.mark.parametrize("protocol", ["default", "paper"])
def test_similarity_equals_the_cpus(make_bert, protocol):
    model = make_bert(num_hidden_layers=6)
    on_cpu = measure_similarity(
        model, calibration_loader(Rows(64, 0), num_samples=64, batch_size=16, seed=0), protocol=protocol
    )
    model.to(device())
    on_gpu = measure_similarity(
        model, calibration_loader(Rows(64, 0), num_samples=64, batch_size=16, seed=0), protocol=protocol
    )
    assert torch.allclose(on_cpu[STACK].values, on_gpu[STACK].values.cpu(), atol=1e-4)


def test_tf32_and_autocast_do_not_reach_the_similarity():
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=4, hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=4, vocab_size=512
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device())
    batches = [{"input_ids": torch.randint(0, 512, (16, 64))} for _ in range(2)]
    exact = measure_similarity(model, batches)["model.layers"].values
    before = torch.backends.cuda.matmul.fp32_precision
    # the model itself computes the same numbers; only what we do with them could differ
    features = []
    handle = model.model.layers[0].register_forward_hook(lambda m, i, o: features.append(o.detach().clone()))
    with torch.no_grad():
        model(input_ids=batches[0]["input_ids"].to(device()))
    handle.remove()
    from hf_mpruner.similarity import linear_cka

    x = features[0].flatten(1)
    y = x + 0.1 * torch.randn_like(x)
    reference = linear_cka(x.double(), y.double())
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with torch.autocast(device().type, dtype=torch.bfloat16):
            assert abs(linear_cka(x, y) - reference) < 1e-6
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert torch.isfinite(exact).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 8, 5000), (1, 64, 3000), (3, 300, 64), (3, 16, 512)], ids=str)
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_gram_matrices_are_as_exact_as_float32_in_every_shape(dtype, shape, estimator):
    """With a large activation that all rows share, where only what is left after it counts."""
    torch.manual_seed(0)
    x = (torch.randn(shape) + 200 * torch.randn(shape[-1])).to(device(), dtype)
    exact = centred_gram(x.double(), None, estimator)
    assert ((centred_gram(x, None, estimator) - exact).norm() / exact.norm()).item() < 1e-4
    constant = x[:, :1].expand(shape)
    assert not centred_gram(constant, None, estimator).any()
    broken = x.clone()
    broken[0, 2, 7] = float("nan")
    assert not centred_gram(broken, None, estimator)[0].isfinite().all()


def trainer_on_gpu(model, output_dir, **arguments):
    return build_trainer(model, output_dir, use_cpu=False, **arguments)


@pytest.mark.parametrize("place", ["cpu", "device", "disk"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_rejected_round_restores_everything_bit_for_bit(make_bert, tmp_path, precision, place):
    arguments = {} if precision == "fp32" else {precision: True}
    trainer = trainer_on_gpu(
        make_bert(hidden_dropout_prob=0.1, num_labels=2), tmp_path, compute_metrics=Scripted(0.9, 0.5),
        num_train_epochs=2, optim="adamw_torch_fused", **arguments,
    )  # fmt: skip
    before = Spy(on_epoch_begin=lambda: everything(trainer))
    trainer.add_callback(before)
    callback = add(trainer, start_epoch=1, snapshot=place)
    after = Spy(on_epoch_end=lambda: everything(trainer))
    trainer.add_callback(after)
    trainer.train()
    assert [round_.verdict for round_ in callback.record.rounds] == ["rejected"]
    assert_same(before.seen["on_epoch_begin"][1], after.seen["on_epoch_end"][1])


@pytest.mark.parametrize("arguments", [{"bf16": True}, {"fp16": True}, {"torch_compile": True}], ids=str)
def test_an_accepted_round_leaves_a_model_that_reloads(make_bert, tmp_path, arguments):
    trainer = trainer_on_gpu(make_bert(num_labels=2), tmp_path, optim="adamw_torch_fused", **arguments)
    callback = add(trainer, max_metric_drop=1.0, granularity=2)
    trainer.train()
    assert callback.record.rounds[0].verdict == "accepted"
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainer.model.parameters()}
    trainer.save_model(str(tmp_path / "saved"))
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    live = trainer.model.state_dict()
    assert all(torch.equal(tensor, live[name].cpu()) for name, tensor in loaded.state_dict().items())


def test_stacks_are_found_for_a_model_on_the_accelerator(make_bert):
    assert [stack.path for stack in find_block_stacks(make_bert().to(device()))] == [STACK]


def test_peak_memory_is_what_the_allocator_has_handed_out():
    with PeakMemory(device()) as outer:
        held = torch.empty(64 * 2**20, dtype=torch.uint8, device=device())
        del held
        with PeakMemory(device()) as inner:
            held = torch.empty(8 * 2**20, dtype=torch.uint8, device=device())
            del held
    assert 64 * 2**20 <= outer.device_bytes < 70 * 2**20
    assert 8 * 2**20 <= inner.device_bytes < 14 * 2**20


def test_plain_and_measured_passes_run_side_by_side(make_bert):
    model = make_bert().to(device())
    loader = calibration_loader(Rows(64, 0), num_samples=64, batch_size=16, seed=0)
    beside = run_beside(model, loader, find_block_stacks(model))
    assert (beside.batches, beside.examples) == (4, 64)
    assert beside.ratio > 0
    assert beside.memory.device_bytes > 0


def test_a_run_in_bfloat16_says_what_it_took_on_the_accelerator(make_bert, tmp_path):
    trainer = trainer_on_gpu(make_bert(num_labels=2), tmp_path, bf16=True)
    callback = add(trainer, max_metric_drop=1.0, granularity=2)
    trainer.train()
    record = callback.record
    assert record.rounds[0].verdict == "accepted"
    assert record.latency["device"] == record.device
    assert record.latency["autocast"] == "bfloat16"
    assert record.rounds[0].after.latency_seconds > 0
    assert record.baseline.latency_seconds > 0
    assert record.peak_memory["accelerator"] > 0
    assert "of memory in the accelerator" in str(PruningReport(record))
    assert record.device in PruningReport(record).to_html()
