"""A snapshot brings weights, buffers and optimizer state back bit for bit, from memory or from a file."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.two_tensor import TwoTensor
from transformers import Adafactor

from hf_mpruner.errors import MPrunerError, UnsupportedBackendError
from hf_mpruner.optimizer import OptimizerEdit, check_optimizer_matches
from hf_mpruner.snapshot import Snapshot, local_tensor

WIDTH = 4
KEPT = [0, 2, 5]
Where = Literal["cpu", "device", "disk"]
PLACES: tuple[Where, ...] = ("cpu", "device", "disk")

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "adafactor": lambda p: Adafactor(p, lr=0.01, scale_parameter=False, relative_step=False),
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


class Tower(nn.Module):
    """Blocks with dropout and running statistics, a tied head, and buffers that are not saved."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.2)) for _ in range(depth)
        )
        self.head = nn.Linear(WIDTH, WIDTH)
        self.head.weight = self.stem.weight
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros(2), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x).square().mean()


def make_tower(depth: int = 6) -> Tower:
    torch.manual_seed(0)
    return Tower(depth)


def keep_blocks_(model: Tower, kept: Iterable[int]) -> list[nn.Module]:
    blocks = list(model.blocks)
    model.blocks._modules.clear()
    model.blocks.extend(blocks[i] for i in kept)
    return blocks


def removed_parameters(model: Tower) -> list[nn.Parameter]:
    return [param for i, block in enumerate(model.blocks) if i not in KEPT for param in block.parameters()]


def train(model: nn.Module, optimizer: Any, *, steps: int = 3, seed: int = 1) -> list[float]:
    torch.manual_seed(seed)
    losses = []
    for _ in range(steps):
        loss = model(torch.randn(8, WIDTH))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def contents(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> list[Any]:
    """Identities and values of everything that training changes, in order."""
    state = {} if optimizer is None else optimizer.state
    return [
        [
            (name, id(p), p.requires_grad, p.grad, p.detach().flatten().tolist())
            for name, p in model.named_parameters()
        ],
        [(name, id(buffer), buffer.tolist()) for name, buffer in model.named_buffers()],
        [
            (id(param), [(key, v.tolist() if torch.is_tensor(v) else v) for key, v in values.items()])
            for param, values in state.items()
        ],
    ]


def take(model: nn.Module, optimizer: Any, where: Where, folder: Path, **more: Any) -> Snapshot:
    return Snapshot.take(model, optimizer, **{"removed": (), **more}, where=where, directory=folder)


def rejected_cut_(model: Tower, optimizer: Any, where: Where, folder: Path) -> None:
    """A whole round that is taken back: snapshot, cut, recovery, undo, restore."""
    removed = removed_parameters(model)
    snapshot = take(model, optimizer, where, folder, removed=removed)
    edit = OptimizerEdit(optimizer, None, removed)
    blocks = keep_blocks_(model, KEPT)
    edit.apply()
    model.stem.requires_grad_(False)
    train(model, optimizer, seed=7)
    keep_blocks_(model, [])
    model.blocks.extend(blocks)
    edit.undo()
    snapshot.restore()
    snapshot.release()
    check_optimizer_matches(model, optimizer)


# -- exactness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rejected_cut_leaves_no_trace(name: str, where: Where, tmp_path: Path) -> None:
    """Cut, trained, rolled back and trained on, bit for bit like never cut, with dropout on."""
    runs = []
    for cut in (True, False):
        model = make_tower()
        optimizer = OPTIMIZERS[name](model.parameters())
        train(model, optimizer)
        before = contents(model, optimizer)
        if cut:
            rejected_cut_(model, optimizer, where, tmp_path)
            assert contents(model, optimizer) == before
        losses = train(model, optimizer, seed=2)
        runs.append((losses, model.state_dict(), optimizer.state_dict()["state"]))
    (losses, weights, state), (losses_uncut, weights_uncut, state_uncut) = runs
    assert losses == losses_uncut
    assert all(torch.equal(weights[key], weights_uncut[key]) for key in weights_uncut)
    assert str(state) == str(state_uncut)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_cut_before_the_first_step_goes_back_to_no_state(name: str, tmp_path: Path) -> None:
    runs = []
    for cut in (True, False):
        model = make_tower()
        optimizer = OPTIMIZERS[name](model.parameters())
        if cut:
            before = contents(model, optimizer)
            rejected_cut_(model, optimizer, "cpu", tmp_path)
            assert contents(model, optimizer) == before
        runs.append((train(model, optimizer), contents(model)[0][0][-1]))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("where", PLACES)
def test_restore_may_be_repeated(where: Where, tmp_path: Path) -> None:
    model = make_tower()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    before = contents(model, optimizer)
    snapshot = take(model, optimizer, where, tmp_path)
    for seed in (2, 3):
        train(model, optimizer, seed=seed)
        assert contents(model, optimizer) != before
        snapshot.restore()
        snapshot.restore()
        assert contents(model, optimizer) == before


def test_special_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        bits = {torch.float32: torch.int32}.get(dtype, torch.int16)
        model = nn.Linear(WIDTH, WIDTH, dtype=dtype)
        with torch.no_grad():
            model.weight.view(bits).copy_(torch.randint(-(2**15), 2**15, (WIDTH, WIDTH), dtype=bits))
            model.bias.copy_(torch.tensor([float("nan"), float("inf"), -0.0, 1e-40]))
        before = [param.detach().view(bits).clone() for param in model.parameters()]
        snapshot = take(model, None, "disk", tmp_path)
        with torch.no_grad():
            for param in model.parameters():
                param.zero_()
        snapshot.restore()
        assert all(torch.equal(p.view(bits), b) for p, b in zip(model.parameters(), before, strict=True))


def test_flags_gradients_and_replaced_buffers_come_back(tmp_path: Path) -> None:
    model = make_tower()
    model.blocks[1].requires_grad_(False)
    model.head.bias.requires_grad_(False)
    before = contents(model)
    snapshot = take(model, None, "cpu", tmp_path, removed=removed_parameters(model))
    for param in model.parameters():
        param.requires_grad_(True)
    blocks = keep_blocks_(model, KEPT)
    model(torch.randn(8, WIDTH)).backward()
    keep_blocks_(model, [])
    model.blocks.extend(blocks)
    model.calls = torch.full((7,), 3.0)
    snapshot.restore()
    assert contents(model) == before


def test_a_gradient_scaler_comes_back(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    model = make_tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = scaler.state_dict()
    snapshot = take(model, optimizer, "cpu", tmp_path, scaler=scaler)
    scaler.scale(model(torch.randn(8, WIDTH))).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 16.0
    snapshot.restore()
    assert scaler.get_scale() == 8.0
    assert scaler.state_dict() == before


def test_what_an_optimizer_counts_in_its_groups_comes_back_and_the_schedule_does_not(tmp_path: Path) -> None:
    """Schedule-free optimizers keep counters and a train/eval mode there that belong to the weights."""
    model = make_tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    group = optimizer.param_groups[0]
    group.update(k=3, train_mode=False, norms=[torch.ones(1)])
    snapshot = take(model, optimizer, "cpu", tmp_path)
    group.update(k=9, train_mode=True, lr=0.05, momentum=0.8)
    group["norms"][0] += 1
    group["norms"].append(torch.zeros(1))
    snapshot.restore()
    assert (group["k"], group["train_mode"], group["norms"]) == (3, False, [torch.ones(1)])
    assert (group["lr"], group["momentum"]) == (0.05, 0.8)


def test_the_snapshot_does_not_share_containers_with_the_optimizer(tmp_path: Path) -> None:
    model = make_tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.stem.weight] = {"history": [torch.ones(2), {"n": 1}], "step": 4}
    snapshot = take(model, optimizer, "cpu", tmp_path)
    for _ in range(2):
        state = optimizer.state[model.stem.weight]
        state["history"].append(5)
        state["history"][1]["n"] = 2
        state["history"][0].zero_()
        state["more"] = 1
        snapshot.restore()
        restored = optimizer.state[model.stem.weight]
        assert str(restored) == str({"history": [torch.ones(2), {"n": 1}], "step": 4})


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_tensors_made_of_tensors_are_copied_part_by_part(where: Where, tmp_path: Path) -> None:
    """As torchao keeps quantised moments: codes and scales inside one tensor."""
    model = nn.Linear(WIDTH, WIDTH, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moment = TwoTensor(torch.ones(3), torch.full((3,), 2.0))
    optimizer.state[model.weight] = {"moment": moment}
    snapshot = take(model, optimizer, where, tmp_path)
    assert snapshot.num_bytes == 4 * (WIDTH * WIDTH + 3 + 3)
    moment.a.zero_()
    moment.b.zero_()
    snapshot.restore()
    assert optimizer.state[model.weight]["moment"] is moment
    assert (moment.a.tolist(), moment.b.tolist()) == ([1.0] * 3, [2.0] * 3)


# -- cost and lifetime -------------------------------------------------------------------------------------------------


def test_only_survivors_are_copied(tmp_path: Path) -> None:
    model = make_tower()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    snapshot = take(model, optimizer, "cpu", tmp_path, removed=removed_parameters(model))
    block = WIDTH * WIDTH + WIDTH + 2 * WIDTH
    weights = (WIDTH * WIDTH + 2 * WIDTH) + len(KEPT) * block
    buffers = 2 * 4 + len(KEPT) * (2 * WIDTH * 4 + 8)
    steps = 4 * (3 + 4 * len(KEPT))
    assert snapshot.num_bytes == 3 * 4 * weights + buffers + steps
    everything = take(model, optimizer, "cpu", tmp_path)
    assert everything.num_bytes > snapshot.num_bytes


def test_a_released_snapshot_holds_nothing(tmp_path: Path) -> None:
    model = make_tower()
    snapshot = take(model, None, "cpu", tmp_path, removed=removed_parameters(model))
    watched = weakref.ref(model.blocks[1][0].weight)
    keep_blocks_(model, KEPT)
    gc.collect()
    assert watched() is not None
    num_bytes = snapshot.num_bytes
    snapshot.release()
    snapshot.release()
    gc.collect()
    assert watched() is None
    assert snapshot.num_bytes == num_bytes
    with pytest.raises(MPrunerError, match="This snapshot was released"):
        snapshot.restore()


@pytest.mark.parametrize("where", ["memory", "RAM"])
def test_an_unknown_place_is_refused(where: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"where='{where}' is no place.*'cpu', 'device' or 'disk'"):
        take(make_tower(), None, where, tmp_path)


def test_state_that_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    class Projector: ...

    model = make_tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.stem.weight] = {"projector": Projector()}
    with pytest.raises(UnsupportedBackendError, match=r"SGD keeps a Projector in its state.*Nothing was changed"):
        take(model, optimizer, "cpu", tmp_path)


# -- the file ----------------------------------------------------------------------------------------------------------


def test_the_file_appears_complete_and_goes_with_the_snapshot(tmp_path: Path) -> None:
    model = make_tower()
    folder = tmp_path / "runs" / "a"
    snapshot = take(model, None, "disk", folder)
    (file,) = folder.iterdir()
    # `_*` is what Trainer.push_to_hub does not upload
    assert file.name.startswith("_mpruner_rollback_")
    assert file.suffix == ".pt"
    other = take(model, None, "disk", folder)
    assert len(list(folder.iterdir())) == 2
    snapshot.release()
    snapshot.release()
    other.release()
    assert list(folder.iterdir()) == []


def test_a_file_that_a_killed_process_left_is_never_read(tmp_path: Path) -> None:
    model = make_tower()
    left = tmp_path / "_mpruner_rollback_1_deadbeef.tmp"
    left.write_bytes(b"half")
    before = contents(model)
    snapshot = take(model, None, "disk", tmp_path)
    nn.init.zeros_(model.stem.weight)
    snapshot.restore()
    snapshot.release()
    assert contents(model) == before
    assert left.read_bytes() == b"half"


def test_views_are_written_without_the_memory_behind_them(tmp_path: Path) -> None:
    model = nn.Linear(WIDTH, WIDTH)
    flat = torch.zeros(100_000)
    model.weight = nn.Parameter(flat[: WIDTH * WIDTH].view(WIDTH, WIDTH))
    snapshot = take(model, None, "disk", tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 10_000
    nn.init.ones_(model.weight)
    snapshot.restore()
    assert model.weight.abs().sum() == 0


@pytest.mark.parametrize("damage", ["truncated", "missing", "scrambled"])
def test_a_damaged_file_is_an_error_that_changes_nothing(damage: str, tmp_path: Path) -> None:
    model = make_tower()
    snapshot = take(model, None, "disk", tmp_path)
    (file,) = tmp_path.iterdir()
    size = file.stat().st_size
    nn.init.zeros_(model.stem.weight)
    before = contents(model)
    if damage == "truncated":
        os.truncate(file, size // 2)
        text = f"it has {size // 2} bytes, but {size} were written"
    elif damage == "missing":
        file.unlink()
        text = "No such file"
    else:
        file.write_bytes(bytes(size))
        text = "cannot be read back"
    with pytest.raises(
        MPrunerError, match=rf"{file.name}' cannot be read back: .*{text if damage != 'scrambled' else ''}"
    ):
        snapshot.restore()
    assert contents(model) == before


def test_a_folder_that_cannot_be_written_is_an_error_with_the_bytes(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    model = make_tower()
    before = contents(model)
    needed = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    text = rf"A snapshot of {needed} bytes cannot be written to '{blocked}' \(\d+ bytes free\): .*exists"
    with pytest.raises(MPrunerError, match=text):
        take(model, None, "disk", blocked)
    assert contents(model) == before


def test_too_little_room_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(1).expand(10**15))
    text = rf"A snapshot of {4 * 10**15} bytes .*\(\d+ bytes free\): the disk is too full.*snapshot=\"cpu\""
    with pytest.raises(MPrunerError, match=text):
        take(model, None, "disk", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit on the size of files fails like a full disk: in the middle of a write."""
    model = nn.Linear(100, 100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = contents(model, optimizer)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(MPrunerError, match=r"A snapshot of 40400 bytes cannot be written .*Nothing was changed"):
            take(model, optimizer, "disk", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
    assert contents(model, optimizer) == before


def test_the_folder_must_be_given_and_must_not_be_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="where='disk' needs a folder"):
        Snapshot.take(make_tower(), None, removed=(), where="disk")
    folder = tmp_path / "checkpoint-500"
    with pytest.raises(
        ValueError, match=f"directory='{folder}' is named like a checkpoint.*Pass another.*'{tmp_path}'"
    ):
        take(make_tower(), None, "disk", folder)
    assert not folder.exists()


KILLED = """
import sys, torch
from pathlib import Path
from hf_mpruner.snapshot import Snapshot
model = torch.nn.Linear(1000, 1000)
Path(sys.argv[1]).mkdir()
while True:
    Snapshot.take(model, None, removed=(), where="disk", directory=Path(sys.argv[1]))
"""


def test_a_killed_process_leaves_complete_files_only(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)])
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not folder.exists() or len(list(folder.glob("*.pt"))) < 3):
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    files = list(folder.glob("*.pt"))
    assert len(files) >= 3
    for file in files:
        weight, bias = torch.load(file, weights_only=True)
        assert (weight.shape, bias.shape) == ((1000, 1000), (1000,))


# -- shards ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of one process, enough to make sharded parameters."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("where", PLACES)
def test_shards_are_copied_and_restored_in_place(where: Where, tmp_path: Path) -> None:
    torch.manual_seed(0)
    mesh = distributed.init_device_mesh("cpu", (1,))
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1))
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def step() -> None:
        model(torch.ones(2, WIDTH)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    assert isinstance(model[0].weight, DTensor)
    values = [local_tensor(param).clone() for param in model.parameters()]
    moments = [local_tensor(optimizer.state[param]["exp_avg"]).clone() for param in model.parameters()]
    snapshot = take(model, optimizer, where, tmp_path)
    step()
    assert not torch.equal(local_tensor(model[0].weight), values[0])
    snapshot.restore()
    assert all(torch.equal(local_tensor(p), v) for p, v in zip(model.parameters(), values, strict=True))
    restored = [optimizer.state[param]["exp_avg"] for param in model.parameters()]
    assert all(isinstance(moment, DTensor) for moment in restored)
    assert all(torch.equal(local_tensor(m), v) for m, v in zip(restored, moments, strict=True))
    step()
