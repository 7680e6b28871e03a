"""One process, DDP and FSDP2 are found; everything else is refused by name; random states are left alone."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType, compare_versions, compile_regions
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import deepspeed
from transformers.training_args import ParallelMode

from hf_mpruner.errors import UnsupportedBackendError
from hf_mpruner.runtime import (
    Runtime,
    SingleProcess,
    copies_runtime,
    detect_runtime,
    keep_rng_state,
    whole_models,
)
from hf_mpruner.runtime.processes import weight_sums


class Detect(TrainerCallback):
    """Calls `detect_runtime` where the pruning callback does."""

    trainer: Trainer
    found: Runtime | None = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.found = detect_runtime(self.trainer)


@pytest.fixture
def make_trainer(make_bert: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[Trainer, Detect]]:
    def make(**arguments: Any) -> tuple[Trainer, Detect]:
        rows = [{"input_ids": torch.tensor([1, 2, 3]), "labels": i % 3} for i in range(4)]
        args = TrainingArguments(
            str(tmp_path), use_cpu=True, report_to=[], max_steps=1, disable_tqdm=True, save_strategy="no", **arguments
        )
        callback = Detect()
        trainer = Trainer(make_bert(num_hidden_layers=2), args, train_dataset=rows, callbacks=[callback])
        callback.trainer = trainer
        return trainer, callback

    return make


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of one process, enough for real wrappers."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


# -- what is supported -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [{}, {"torch_compile": True, "torch_compile_backend": "eager"}, {"bf16": True}],
    ids=["plain", "compiled", "bf16"],
)
def test_one_process_is_found_in_a_real_training(
    arguments: dict[str, Any], make_trainer: Callable[..., tuple[Trainer, Detect]]
) -> None:
    trainer, callback = make_trainer(**arguments)
    trainer.train()
    assert isinstance(callback.found, SingleProcess)
    assert (trainer.model_wrapped is trainer.model) != ("torch_compile" in arguments)


def test_one_process_has_nothing_to_do() -> None:
    runtime: Runtime = SingleProcess()
    plan = [0, 2]
    assert runtime.is_main_process
    assert runtime.name == "one process"
    assert runtime.broadcast(plan) is plan
    assert runtime.all_equal(plan)
    assert (runtime.rank, runtime.world_size, runtime.gather(plan)) == (0, 1, [plan])
    assert torch.equal(runtime.all_sum([torch.ones(2)])[0], torch.ones(2, dtype=torch.float64))
    with runtime.together("testing"):
        runtime.check_same(nn.Linear(1, 1))
    runtime.on_keep()
    runtime.before_edit()
    runtime.after_edit()


def test_a_block_that_the_user_compiled_in_place_is_no_obstacle(
    make_trainer: Callable[..., tuple[Trainer, Detect]],
) -> None:
    trainer, _ = make_trainer()
    trainer.model.classifier = torch.compile(trainer.model.classifier, backend="eager")
    assert isinstance(detect_runtime(trainer), SingleProcess)


@pytest.mark.usefixtures("process_group")
def test_ddp_is_found_with_and_without_compile(make_trainer: Callable[..., tuple[Trainer, Detect]]) -> None:
    trainer, _ = make_trainer()
    wrapper = DistributedDataParallel(trainer.model)
    for wrapped in (wrapper, torch.compile(wrapper, backend="eager")):
        trainer.model_wrapped = wrapped
        runtime = detect_runtime(trainer)
        assert (runtime.name, runtime.rank, runtime.world_size) == ("DDP", 0, 1)


@pytest.mark.usefixtures("process_group")
def test_ddp_is_made_anew_in_the_same_object(make_trainer: Callable[..., tuple[Trainer, Detect]]) -> None:
    trainer, _ = make_trainer()
    trainer.model_wrapped = wrapper = DistributedDataParallel(trainer.model, find_unused_parameters=False)
    runtime = detect_runtime(trainer)
    block = weakref.ref(trainer.model.bert.encoder.layer[1])
    runtime.before_edit()
    del trainer.model.bert.encoder.layer[1]
    trainer.model.config.num_hidden_layers = 1
    runtime.after_edit()
    runtime.on_keep()
    gc.collect()
    assert trainer.model_wrapped is wrapper
    assert wrapper.module is trainer.model
    assert block() is None
    for _ in range(2):  # the second one fails if the first waited for gradients that never came
        wrapper(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([0])).loss.backward()


@pytest.mark.skipif(compare_versions("accelerate", "<", "1.9"), reason="refused")
@pytest.mark.usefixtures("process_group")
def test_fsdp2_with_a_unit_per_layer_is_found(make_trainer: Callable[..., tuple[Trainer, Detect]]) -> None:
    trainer, _ = make_trainer()
    mesh = distributed.init_device_mesh("cpu", (1,))
    for layer in trainer.model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(trainer.model, mesh=mesh)
    runtime = detect_runtime(trainer)
    assert (runtime.name, runtime.equal_forwards) == ("FSDP2", True)
    trainer.model(input_ids=torch.tensor([[1, 2, 3]]))
    runtime.before_edit()
    assert all(hasattr(param, "device_mesh") for param in trainer.model.parameters())


@pytest.mark.usefixtures("process_group")
def test_sums_over_one_process_and_a_digest_of_weights() -> None:
    layer = nn.Linear(3, 2)
    before = weight_sums(layer)
    assert before.shape == (2, 2)
    assert torch.equal(weight_sums(copy.deepcopy(layer)), before)
    with torch.no_grad():
        layer.weight[0, 0], layer.weight[1, 2] = layer.weight[1, 2].clone(), layer.weight[0, 0].clone()
        layer.bias[0] = torch.nextafter(layer.bias[0], torch.tensor(9.0))
    assert (weight_sums(layer) != before).any(1).tolist() == [False, True]  # a sum does not see a swap
    assert weight_sums(layer.bfloat16()).dtype == torch.int64


# -- what is refused: real wrappers ------------------------------------------------------------------------------------


def refused(trainer: Any, found: str, reason: str) -> None:
    text = rf"LayerPruningCallback cannot delete layers under <{found}>: .*{reason}.*Nothing was changed"
    with pytest.raises(UnsupportedBackendError, match=text):
        detect_runtime(trainer)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads what transformers deprecates
@pytest.mark.usefixtures("process_group")
def test_fsdp2_with_adapters_is_refused(make_trainer: Callable[..., tuple[Trainer, Detect]]) -> None:
    peft = pytest.importorskip("peft")
    trainer, _ = make_trainer()
    model = peft.get_peft_model(trainer.model, peft.LoraConfig(task_type="SEQ_CLS"))
    mesh = distributed.init_device_mesh("cpu", (1,))
    for layer in trainer.model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    trainer.model = trainer.model_wrapped = model
    refused(trainer, "FSDP2 with PEFT adapters", "Train with DDP")


@pytest.mark.usefixtures("process_group")
def test_fsdp2_of_an_accelerate_that_hangs_is_refused(
    make_trainer: Callable[..., tuple[Trainer, Detect]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = make_trainer()
    mesh = distributed.init_device_mesh("cpu", (1,))
    for layer in trainer.model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    monkeypatch.setattr("hf_mpruner.runtime.detect.compare_versions", lambda name, how, version: version == "1.9")
    refused(trainer, r"FSDP2 with accelerate [\d.]+", "accelerate>=1.9")


@pytest.mark.usefixtures("process_group")
def test_fsdp2_with_layers_that_are_no_units_is_refused(make_trainer: Callable[..., tuple[Trainer, Detect]]) -> None:
    trainer, _ = make_trainer()
    mesh = distributed.init_device_mesh("cpu", (1,))
    layers = trainer.model.bert.encoder.layer
    fully_shard(layers[0], mesh=mesh)
    refused(trainer, r"FSDP2 without a unit for bert\.encoder\.layer\.1", "transformer_layer_cls_to_wrap")


@pytest.mark.usefixtures("process_group")
def test_a_sharded_model_without_units_is_refused(make_trainer: Callable[..., tuple[Trainer, Detect]]) -> None:
    trainer, _ = make_trainer()
    mesh = distributed.init_device_mesh("cpu", (1,))
    parallelize_module(trainer.model.classifier, mesh, ColwiseParallel())
    refused(trainer, r"a model sharded over devices \(DTensor\)", "spread over devices")


def test_data_parallel_is_refused(make_trainer: Callable[..., tuple[Trainer, Detect]]) -> None:
    trainer, _ = make_trainer()
    trainer.model_wrapped = nn.DataParallel(trainer.model)
    refused(trainer, r"nn.DataParallel, [01] devices", "copied to the devices anew")


def test_regional_compilation_is_refused(make_trainer: Callable[..., tuple[Trainer, Detect]]) -> None:
    trainer, _ = make_trainer()
    trainer.model_wrapped = compile_regions(trainer.model, backend="eager")
    refused(trainer, r"regional compilation, \d+ parts", "a compiled copy holds its own list of layers")


def test_an_unknown_wrapper_is_refused(make_trainer: Callable[..., tuple[Trainer, Detect]]) -> None:
    class Averaged(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    trainer, _ = make_trainer()
    trainer.model_wrapped = Averaged(trainer.model)
    refused(trainer, "Averaged", "not known to follow a change")


# -- what is refused: engines that cannot run here ---------------------------------------------------------------------


def stand_in(
    *,
    kind: DistributedType = DistributedType.NO,
    mode: ParallelMode = ParallelMode.NOT_PARALLEL,
    num_processes: int = 1,
    n_gpu: int = 1,
    plugins: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
) -> Any:
    """The attributes of a Trainer that are read, with the values that the engine would give them."""
    module = nn.Linear(1, 1)
    for name, value in (model or {}).items():
        setattr(module, name, value)
    state = SimpleNamespace(**(plugins or {}))
    return SimpleNamespace(
        accelerator=SimpleNamespace(state=state, distributed_type=kind, num_processes=num_processes),
        args=SimpleNamespace(parallel_mode=mode, n_gpu=n_gpu),
        model=module,
        model_wrapped=module,
    )


def test_the_stand_in_itself_is_one_process() -> None:
    assert isinstance(detect_runtime(stand_in()), SingleProcess)
    on_one_device = stand_in(model={"hf_device_map": {"": "cpu"}, "tp_size": None})
    assert isinstance(detect_runtime(on_one_device), SingleProcess)


@pytest.mark.parametrize(
    ("facts", "found", "reason"),
    [
        (
            {
                "kind": DistributedType.DEEPSPEED,
                "num_processes": 2,
                "plugins": {"deepspeed_plugin": SimpleNamespace(zero_stage=2)},
            },
            r"ZeRO-2 \(DeepSpeedEngine\)",
            "flat copies of all parameters, and its checkpoints would describe the unpruned model",
        ),
        ({"plugins": {"fsdp_plugin": SimpleNamespace(fsdp_version=1)}}, "FSDP1", "flat copies"),
        (
            {"plugins": {"fsdp_plugin": SimpleNamespace(fsdp_version=2)}},
            "FSDP2 that sharded nothing",
            "left the model whole",
        ),
        ({"kind": DistributedType.XLA, "num_processes": 8}, "TorchXLA", "compiles or partitions"),
        ({"mode": ParallelMode.TPU}, "TorchXLA", "compiles or partitions"),
        ({"kind": DistributedType.MEGATRON_LM}, "Megatron-LM", "compiles or partitions"),
        (
            {"mode": ParallelMode.SAGEMAKER_MODEL_PARALLEL},
            r"SageMaker \(sagemaker_model_parallel\)",
            "compiles or partitions",
        ),
        (
            {"mode": ParallelMode.SAGEMAKER_DATA_PARALLEL},
            r"SageMaker \(sagemaker_data_parallel\)",
            "compiles or partitions",
        ),
        ({"model": {"hf_device_map": {"a": 0, "b": "cpu"}}}, "device_map over 0, cpu", "spread over devices"),
        ({"model": {"tp_size": 4}}, "tensor parallel over 4 devices", "spread over devices"),
        ({"model": {"is_distributed_loading_by_transformers": True}}, "a model sharded over devices", "spread"),
        (
            {"kind": DistributedType.MULTI_CPU, "mode": ParallelMode.DISTRIBUTED, "num_processes": 4},
            "4 processes without DDP or FSDP2",
            r"evaluate\(\) or trainer.predict\(\) was called before",
        ),
        (
            {"mode": ParallelMode.NOT_DISTRIBUTED, "n_gpu": 2},
            "nn.DataParallel, 2 devices",
            "copied to the devices anew",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_engines_are_refused_by_name(facts: dict[str, Any], found: str, reason: str) -> None:
    trainer = stand_in(**facts)
    text = rf"under <{found}.*>: .*{reason}"
    with pytest.raises(UnsupportedBackendError, match=text):
        detect_runtime(trainer)


@pytest.mark.parametrize(
    ("facts", "way_out"),
    [
        ({"plugins": {"deepspeed_plugin": SimpleNamespace(zero_stage=3)}}, True),
        ({"plugins": {"fsdp_plugin": SimpleNamespace(fsdp_version=1)}}, True),
        ({"mode": ParallelMode.NOT_DISTRIBUTED, "n_gpu": 2}, True),
        ({"kind": DistributedType.XLA, "num_processes": 8}, False),
        ({"model": {"tp_size": 4}}, False),
    ],
)
def test_a_refusal_names_the_way_out_where_there_is_one(facts: dict[str, Any], way_out: bool) -> None:
    with pytest.raises(UnsupportedBackendError) as refusal:
        detect_runtime(stand_in(**facts))
    assert ("hf_mpruner.prune_in_cycles(...)" in str(refusal.value)) == way_out


# -- processes that prune plain copies ---------------------------------------------------------------------------------


def test_one_process_needs_nothing_for_its_copy(make_trainer: Callable[..., tuple[Trainer, Detect]]) -> None:
    assert isinstance(copies_runtime(make_trainer()[0]), SingleProcess)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"kind": DistributedType.XLA}, "cannot drive <XLA, "),
        ({"mode": ParallelMode.SAGEMAKER_MODEL_PARALLEL}, "sagemaker_model_parallel>"),
        ({"kind": DistributedType.MULTI_CPU}, "found 2 processes, but no torch.distributed process group"),
    ],
)
def test_processes_that_cannot_prune_copies(facts: dict[str, Any], text: str) -> None:
    trainer = stand_in(**facts)
    trainer.args.world_size = 2
    with pytest.raises(UnsupportedBackendError, match=text):
        copies_runtime(trainer)


def test_models_are_built_whole_while_a_partitioning_config_is_alive() -> None:
    config = SimpleConfig()
    deepspeed.set_hf_deepspeed_config(config)
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        with whole_models():
            assert not deepspeed.is_deepspeed_zero3_enabled()
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()
    with whole_models():
        assert not deepspeed.is_deepspeed_zero3_enabled()
    assert not deepspeed.is_deepspeed_zero3_enabled()


class SimpleConfig:
    def is_zero3(self) -> bool:
        return True


# -- random states -----------------------------------------------------------------------------------------------------


def draw() -> tuple[Any, ...]:
    return random.random(), np.random.rand(), torch.rand(2).tolist(), torch.randn(3).tolist()


def test_random_states_are_left_alone_even_by_a_failure() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = draw()
    for fail in (False, True):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        try:
            with keep_rng_state():
                draw()
                torch.manual_seed(7)
                if fail:
                    raise KeyError("inside")
        except KeyError:
            assert fail
        assert draw() == expected


def test_the_second_half_of_a_normal_pair_survives() -> None:
    """Python and NumPy keep one drawn normal value back; it belongs to the state."""
    random.seed(1)
    np.random.seed(1)
    first = random.gauss(0, 1), np.random.randn()
    expected = random.gauss(0, 1), np.random.randn()
    random.seed(1)
    np.random.seed(1)
    assert (random.gauss(0, 1), np.random.randn()) == first
    with keep_rng_state():
        random.gauss(0, 1)
        np.random.randn()
    assert (random.gauss(0, 1), np.random.randn()) == expected


@pytest.mark.gpu
def test_the_accelerator_generator_is_left_alone() -> None:
    device = torch.accelerator.current_accelerator()
    torch.manual_seed(1)
    expected = torch.rand(4, device=device)
    torch.manual_seed(1)
    with keep_rng_state():
        torch.rand(4, device=device)
    assert torch.equal(torch.rand(4, device=device), expected)
