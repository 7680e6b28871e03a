"""Parameters leave a live optimizer and its scheduler and come back; what cannot do that is refused by name."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim import lr_scheduler as torch_schedules
from transformers import Adafactor, get_scheduler
from transformers.optimization import GreedyLR
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from hf_mpruner.errors import MPrunerError, UnsupportedBackendError
from hf_mpruner.optimizer import (
    OptimizerEdit,
    check_optimizer,
    check_optimizer_matches,
    find_missing_parameters,
    find_schedulers,
    unwrap_optimizer,
)

WIDTH = 4
KEPT = [0, 2, 5]

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamw_loop": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "adamw_tensor_lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), foreach=False),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "adafactor": lambda p: Adafactor(p, lr=0.01, scale_parameter=False, relative_step=False),
    "torch_adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}

# Everything that a learning-rate schedule keeps per group is somewhere in these.
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "cosine": lambda o: get_scheduler("cosine", o, num_warmup_steps=2, num_training_steps=20),
    "plateau": lambda o: torch_schedules.ReduceLROnPlateau(o, patience=0, min_lr=[1e-5] * len(o.param_groups)),
    "greedy": lambda o: GreedyLR(o, patience=0, min_lr=1e-5, smooth=True, window_size=8),
    "exponential": lambda o: torch_schedules.ExponentialLR(o, 0.9),
    "onecycle": lambda o: torch_schedules.OneCycleLR(o, max_lr=0.1, total_steps=40),
    "cyclic": lambda o: torch_schedules.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=4),
    "sequential": lambda o: torch_schedules.SequentialLR(
        o,
        [torch_schedules.LinearLR(o, 0.1, total_iters=4), torch_schedules.CosineAnnealingLR(o, 20)],
        milestones=[4],
    ),
    "chained": lambda o: torch_schedules.ChainedScheduler(
        [torch_schedules.ConstantLR(o, 0.5, total_iters=4), torch_schedules.ExponentialLR(o, 0.9)]
    ),
    "nested": lambda o: torch_schedules.ChainedScheduler([SCHEDULES["sequential"](o)]),
}


class Tower(nn.Module):
    """A stack of blocks with dropout between a stem and a head."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(0.2)) for _ in range(depth)
        )
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x).square().mean()


def make_tower(depth: int = 6) -> Tower:
    torch.manual_seed(0)
    return Tower(depth)


def keep_blocks_(model: Tower, kept: Iterable[int]) -> list[nn.Module]:
    """Leave only the named blocks; returns all there were."""
    blocks = list(model.blocks)
    model.blocks._modules.clear()
    model.blocks.extend(blocks[i] for i in kept)
    return blocks


def removed_parameters(model: Tower, kept: Iterable[int]) -> list[nn.Parameter]:
    return [param for i, block in enumerate(model.blocks) if i not in kept for param in block.parameters()]


def groups_per_block(model: Tower) -> list[dict[str, Any]]:
    """Layer-wise learning rates: one group for each block, one for the rest."""
    blocks = [{"params": list(b.parameters()), "lr": 0.01 * 2**-i} for i, b in enumerate(model.blocks)]
    return [{"params": [*model.stem.parameters(), *model.head.parameters()], "lr": 0.02}, *blocks]


def step_schedule(schedule: Any, value: float) -> None:
    if isinstance(schedule, torch_schedules.ReduceLROnPlateau | GreedyLR):
        schedule.step(value)
    else:
        schedule.step()


def train(model: Tower, optimizer: Any, schedule: Any = None, *, steps: int = 3, seed: int = 1) -> list[float]:
    torch.manual_seed(seed)
    losses = []
    for step in range(steps):
        loss = model(torch.randn(8, WIDTH))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if schedule is not None:
            step_schedule(schedule, float(step))
        losses.append(loss.item())
    return losses


def plain(value: Any) -> Any:
    """A value that can be compared with ==; tensors by identity and content."""
    if isinstance(value, torch.Tensor):
        return (id(value), value.dtype, value.detach().flatten().tolist())
    if isinstance(value, dict):
        return {key if isinstance(key, str | int) else id(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, int | float | str | bool | type(None)) else id(value)


def picture(optimizer: torch.optim.Optimizer, schedule: Any = None) -> list[Any]:
    """Everything that an edit may touch: identities, order and values."""
    return [
        id(optimizer.param_groups),
        [(id(group), id(group["params"]), list(group), plain(group)) for group in optimizer.param_groups],
        [(id(key), id(state), plain(state)) for key, state in optimizer.state.items()],
        [
            (id(owner), {name: plain(value) for name, value in vars(owner).items() if isinstance(value, list)})
            for owner in find_schedulers(schedule)
        ],
    ]


# -- apply and undo ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_apply_then_undo_is_the_identity(name: str) -> None:
    model = make_tower()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    before = picture(optimizer)
    edit = OptimizerEdit(optimizer, None, removed_parameters(model, KEPT))
    edit.apply()
    assert picture(optimizer) != before
    edit.undo()
    assert picture(optimizer) == before


@pytest.mark.parametrize("name", SCHEDULES)
def test_apply_then_undo_is_the_identity_for_groups_and_schedules(name: str) -> None:
    model = make_tower()
    optimizer = torch.optim.SGD(groups_per_block(model), momentum=0.9)
    schedule = SCHEDULES[name](optimizer)
    train(model, optimizer, schedule, steps=6)
    before = picture(optimizer, schedule)
    edit = OptimizerEdit(optimizer, schedule, removed_parameters(model, KEPT))
    edit.apply()
    assert len(optimizer.param_groups) == 1 + len(KEPT)
    edit.undo()
    assert picture(optimizer, schedule) == before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_apply_leaves_the_survivors_alone(name: str) -> None:
    model = make_tower()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    removed = removed_parameters(model, KEPT)
    survivors = [param for param in model.parameters() if all(param is not gone for gone in removed)]
    before = [plain(optimizer.state[param]) for param in survivors]
    OptimizerEdit(optimizer, None, removed).apply()
    assert [plain(optimizer.state[param]) for param in survivors] == before
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in survivors]
    assert set(map(id, optimizer.state)) == set(map(id, survivors))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_a_fresh_small_model_that_loads_the_saved_state(name: str) -> None:
    model = make_tower()
    optimizer = OPTIMIZERS[name](model.parameters())
    schedule = SCHEDULES["cosine"](optimizer)
    train(model, optimizer, schedule)
    edit = OptimizerEdit(optimizer, schedule, removed_parameters(model, KEPT))
    keep_blocks_(model, KEPT)
    edit.apply()

    fresh = make_tower(len(KEPT))
    fresh.load_state_dict(model.state_dict())
    fresh_optimizer = OPTIMIZERS[name](fresh.parameters())
    fresh_schedule = SCHEDULES["cosine"](fresh_optimizer)
    fresh_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fresh_schedule.load_state_dict(copy.deepcopy(schedule.state_dict()))

    assert train(model, optimizer, schedule) == train(fresh, fresh_optimizer, fresh_schedule)
    for live, loaded in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(live, loaded)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_dropped_group_leaves_the_schedule_too(name: str) -> None:
    model = make_tower()
    optimizer = torch.optim.SGD(groups_per_block(model), momentum=0.9)
    schedule = SCHEDULES[name](optimizer)
    train(model, optimizer, schedule)
    edit = OptimizerEdit(optimizer, schedule, removed_parameters(model, KEPT))
    keep_blocks_(model, KEPT)
    edit.apply()

    fresh = make_tower(len(KEPT))
    fresh.load_state_dict(model.state_dict())
    fresh_optimizer = torch.optim.SGD(groups_per_block(fresh), momentum=0.9)
    fresh_schedule = SCHEDULES[name](fresh_optimizer)
    fresh_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fresh_schedule.load_state_dict(copy.deepcopy(schedule.state_dict()))

    assert train(model, optimizer, schedule, steps=6) == train(fresh, fresh_optimizer, fresh_schedule, steps=6)
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in fresh_optimizer.param_groups]


def test_lists_that_count_milestones_or_phases_are_not_cut() -> None:
    model = make_tower(3)
    optimizer = torch.optim.SGD([{"params": list(block.parameters()), "lr": 0.1} for block in model.blocks])
    parts = [torch_schedules.ExponentialLR(optimizer, 0.9) for _ in range(3)]
    schedule = torch_schedules.SequentialLR(optimizer, parts, milestones=[2, 4])
    OptimizerEdit(optimizer, schedule, removed_parameters(model, [0, 2])).apply()
    assert len(schedule._schedulers) == 3
    assert len(schedule.get_last_lr()) == len(parts[1].base_lrs) == 2

    two = torch.optim.SGD(
        [{"params": list(block.parameters()), "lr": 0.1} for block in make_tower(2).blocks], momentum=0
    )
    cycle = torch_schedules.OneCycleLR(two, max_lr=0.1, total_steps=10)
    OptimizerEdit(two, cycle, two.param_groups[0]["params"]).apply()
    assert len(cycle._schedule_phases) == 2


# -- the learning rate of a group that comes back ----------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_group_comes_back_with_the_rate_that_its_schedule_has_reached(name: str) -> None:
    """Compared with the same run without a cut; the momentum-like settings follow at the next step."""
    rates = []
    for cut in (True, False):
        model = make_tower()
        optimizer = torch.optim.SGD(groups_per_block(model), momentum=0.9)
        schedule = SCHEDULES[name](optimizer)
        train(model, optimizer, schedule, steps=6)
        edit = OptimizerEdit(optimizer, schedule, removed_parameters(model, KEPT) if cut else ())
        blocks = keep_blocks_(model, KEPT if cut else range(6))
        edit.apply()
        train(model, optimizer, schedule, steps=3)
        keep_blocks_(model, [])
        model.blocks.extend(blocks)
        edit.undo()
        now = [group["lr"] for group in optimizer.param_groups]
        train(model, optimizer, schedule, steps=1)
        rates.append((now, [group["lr"] for group in optimizer.param_groups], schedule.get_last_lr()))
    (now, later, last), (now_uncut, later_uncut, last_uncut) = rates
    assert now == pytest.approx(now_uncut, rel=1e-12 if name in {"cosine", "plateau", "exponential"} else 1e-6)
    assert later == pytest.approx(later_uncut, rel=1e-6)
    assert list(last) == pytest.approx(list(last_uncut), rel=1e-6)


def test_under_a_lambda_schedule_each_group_follows_its_own_lambda() -> None:
    model = make_tower(3)
    optimizer = torch.optim.SGD([{"params": list(b.parameters()), "lr": 0.1} for b in model.blocks])
    schedule = torch_schedules.LambdaLR(optimizer, [lambda _: 1.0, lambda step: step / 10, lambda step: 0.5**step])
    edit = OptimizerEdit(optimizer, schedule, removed_parameters(model, [0]))
    edit.apply()
    optimizer.step()
    for _ in range(3):
        schedule.step()
    edit.undo()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1 * (3 / 10), 0.1 * 0.5**3]
    assert schedule.get_last_lr() == [0.1, 0.1 * (3 / 10), 0.1 * 0.5**3]


def test_a_plateau_does_not_go_below_the_floor_of_the_group() -> None:
    model = make_tower(2)
    optimizer = torch.optim.SGD([{"params": list(b.parameters()), "lr": 1.0} for b in model.blocks])
    schedule = torch_schedules.ReduceLROnPlateau(optimizer, patience=0, min_lr=[0.0, 0.5])
    edit = OptimizerEdit(optimizer, schedule, removed_parameters(model, [0]))
    edit.apply()
    for value in (1.0, 2.0, 3.0):
        schedule.step(value)
    edit.undo()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.5])


def test_a_rate_that_someone_else_set_survives_an_undo_at_once() -> None:
    model = make_tower(2)
    optimizer = torch.optim.SGD([{"params": list(b.parameters()), "lr": 1.0} for b in model.blocks])
    schedule = torch_schedules.LambdaLR(optimizer, lambda _: 1.0)
    optimizer.param_groups[1]["lr"] = 0.3
    edit = OptimizerEdit(optimizer, schedule, removed_parameters(model, [0]))
    edit.apply()
    edit.undo()
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.3]


def test_a_tensor_rate_stays_the_same_tensor() -> None:
    model = make_tower(2)
    groups = [{"params": list(b.parameters()), "lr": torch.tensor(1.0)} for b in model.blocks]
    optimizer = torch.optim.AdamW(groups, foreach=False)
    schedule = torch_schedules.ExponentialLR(optimizer, 0.5)
    rate = optimizer.param_groups[1]["lr"]
    edit = OptimizerEdit(optimizer, schedule, removed_parameters(model, [0]))
    edit.apply()
    optimizer.step()
    schedule.step()
    edit.undo()
    assert optimizer.param_groups[1]["lr"] is rate
    assert rate.item() == 0.5


# -- details of the edit -----------------------------------------------------------------------------------------------


def test_names_stay_in_step_with_parameters() -> None:
    model = make_tower(3)
    optimizer = torch.optim.AdamW(model.named_parameters())
    edit = OptimizerEdit(optimizer, None, removed_parameters(model, [0, 2]))
    names = list(optimizer.param_groups[0]["param_names"])
    edit.apply()
    group = optimizer.param_groups[0]
    assert group["param_names"] == [name for name in names if not name.startswith("blocks.1.")]
    assert len(group["param_names"]) == len(group["params"])
    edit.undo()
    assert group["param_names"] == names


def test_a_group_that_was_empty_before_stays() -> None:
    model = make_tower(3)
    optimizer = torch.optim.SGD([{"params": list(model.parameters())}, {"params": []}], lr=0.1)
    edit = OptimizerEdit(optimizer, None, removed_parameters(model, [0]))
    edit.apply()
    assert [len(group["params"]) for group in optimizer.param_groups] == [6, 0]
    edit.undo()
    assert [len(group["params"]) for group in optimizer.param_groups] == [10, 0]


def test_what_moves_meanwhile_stays() -> None:
    model = make_tower()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer)
    edit = OptimizerEdit(optimizer, None, removed_parameters(model, KEPT))
    blocks = keep_blocks_(model, KEPT)
    edit.apply()
    train(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.005
    edit.undo()
    assert optimizer.param_groups[0]["lr"] == 0.005
    steps = {id(param): state["step"].item() for param, state in optimizer.state.items()}
    assert steps[id(model.stem.weight)] == 6
    assert steps[id(blocks[1][0].weight)] == 3


def test_two_edits_are_undone_in_reverse_order() -> None:
    model = make_tower()
    optimizer = torch.optim.AdamW(groups_per_block(model))
    schedule = SCHEDULES["cosine"](optimizer)
    train(model, optimizer, schedule)
    before = picture(optimizer, schedule)
    first = OptimizerEdit(optimizer, schedule, removed_parameters(model, [0, 1, 2, 3]))
    first.apply()
    second = OptimizerEdit(optimizer, schedule, removed_parameters(model, [0, 2, 4, 5]))
    second.apply()
    assert len(optimizer.param_groups) == 3
    with pytest.raises(MPrunerError, match=r"groups of \[4, 2, 2\] parameters, but the cut left \[4, 2, 2, 2, 2\]"):
        first.undo()
    second.undo()
    first.undo()
    assert picture(optimizer, schedule) == before


def test_an_edit_may_be_applied_again_after_undo_and_undo_alone_does_nothing() -> None:
    model = make_tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = picture(optimizer)
    edit = OptimizerEdit(optimizer, None, removed_parameters(model, KEPT))
    edit.undo()
    assert picture(optimizer) == before
    for _ in range(2):
        edit.apply()
        edit.undo()
    assert picture(optimizer) == before


def test_a_parameter_in_no_group_is_no_obstacle() -> None:
    model = make_tower()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    before = picture(optimizer)
    edit = OptimizerEdit(optimizer, None, removed_parameters(model, KEPT))
    edit.apply()
    assert picture(optimizer) == before
    edit.undo()
    assert picture(optimizer) == before


def test_applying_twice_is_refused() -> None:
    model = make_tower()
    edit = OptimizerEdit(torch.optim.SGD(model.parameters(), lr=0.1), None, removed_parameters(model, KEPT))
    edit.apply()
    with pytest.raises(MPrunerError, match=r"applied already: call undo\(\) first"):
        edit.apply()


def test_an_optimizer_is_never_left_without_parameters() -> None:
    model = make_tower()
    optimizer = torch.optim.SGD(model.blocks[3].parameters(), lr=0.1)
    before = picture(optimizer)
    with pytest.raises(MPrunerError, match=r"remove all 2 parameters that SGD trains.*Nothing was changed"):
        OptimizerEdit(optimizer, None, removed_parameters(model, KEPT)).apply()
    assert picture(optimizer) == before


def test_undo_refuses_a_schedule_that_someone_replaced_lists_of() -> None:
    model = make_tower()
    optimizer = torch.optim.SGD(groups_per_block(model))
    schedule = SCHEDULES["exponential"](optimizer)
    edit = OptimizerEdit(optimizer, schedule, removed_parameters(model, KEPT))
    edit.apply()
    schedule.base_lrs = [0.1]
    with pytest.raises(MPrunerError, match=r"SGD cannot take.*ExponentialLR.base_lrs of length 1, but the cut left 4"):
        edit.undo()
    assert len(optimizer.param_groups) == 4


def test_removed_blocks_are_freed_once_the_edit_is_dropped() -> None:
    model = make_tower()
    optimizer = torch.optim.AdamW(groups_per_block(model))
    schedule = SCHEDULES["cosine"](optimizer)
    train(model, optimizer, schedule)
    edit = OptimizerEdit(optimizer, schedule, removed_parameters(model, KEPT))
    block = model.blocks[1]
    watched = [
        weakref.ref(block),
        weakref.ref(block[0].weight),
        weakref.ref(optimizer.state[block[0].weight]["exp_avg"]),
    ]
    del block
    keep_blocks_(model, KEPT)
    edit.apply()
    gc.collect()
    assert all(reference() is not None for reference in watched[1:])
    del edit
    gc.collect()
    assert [reference() for reference in watched] == [None, None, None]


# -- wrappers ----------------------------------------------------------------------------------------------------------


def test_the_wrappers_of_accelerate_are_seen_through_and_kept() -> None:
    accelerator = Accelerator(cpu=True)
    model = make_tower()
    inner = torch.optim.AdamW(groups_per_block(model))
    optimizer, schedule = accelerator.prepare(inner, SCHEDULES["cosine"](inner))
    train(model, optimizer, schedule)
    assert unwrap_optimizer(optimizer) is inner
    before = picture(inner, schedule)
    edit = OptimizerEdit(optimizer, schedule, removed_parameters(model, KEPT))
    blocks = keep_blocks_(model, KEPT)
    edit.apply()
    check_optimizer(model, optimizer)
    check_optimizer_matches(model, optimizer)
    assert len(inner.param_groups) == len(schedule.get_last_lr()) == 1 + len(KEPT)
    keep_blocks_(model, [])
    model.blocks.extend(blocks)
    edit.undo()
    assert optimizer.optimizer is inner
    assert picture(inner, schedule) == before


def test_a_gradient_scaler_goes_on_and_still_skips_an_overflow() -> None:
    Accelerator(cpu=True)
    model = make_tower()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = AcceleratedOptimizer(inner, scaler=scaler)
    edit = OptimizerEdit(optimizer, None, removed_parameters(model, KEPT))
    keep_blocks_(model, KEPT)
    edit.apply()
    for factor in (1.0, math.inf):
        before = model.stem.weight.detach().clone()
        scaler.scale(model(torch.randn(8, WIDTH)) * factor).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert optimizer.step_was_skipped == (factor == math.inf)
        assert torch.equal(model.stem.weight, before) == (factor == math.inf)


def test_every_scheduler_is_found_once() -> None:
    optimizer = torch.optim.SGD(make_tower().parameters(), lr=0.1)
    schedule = SCHEDULES["nested"](optimizer)
    found = [type(item).__name__ for item in find_schedulers(schedule)]
    assert found == ["ChainedScheduler", "SequentialLR", "LinearLR", "CosineAnnealingLR"]
    assert list(find_schedulers(None)) == []


class Lookahead(torch.optim.Optimizer):
    """Shows the groups of another optimizer, but keeps slow weights beside its state."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.state = {"slow": []}


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_the_optimizers_of_torch_and_transformers_are_accepted() -> None:
    for make in OPTIMIZERS.values():
        model = make_tower()
        optimizer = make(model.parameters())
        check_optimizer(model, optimizer)
        train(model, optimizer)
        check_optimizer(model, optimizer)


@pytest.mark.parametrize(
    ("module", "name", "reason"),
    [
        ("bitsandbytes.optim.adamw", "PagedAdamW8bit", "settings by the position of a parameter"),
        ("galore_torch.adamw", "AdamW", "a projector object for every parameter"),
        ("apollo_torch.apollo", "AdamW", "a projector object for every parameter"),
        ("lomo_optim.adalomo", "AdaLomo", "in hooks on the parameters"),
        ("grokadamw.grokadamw", "GrokAdamW", "its moments inside param_groups"),
        ("deepspeed.ops.adam.cpu_adam", "DeepSpeedCPUAdam", "flat copies of the parameters"),
        ("torchao.optim.cpu_offload", "CPUOffloadOptimizer", "one hidden optimizer for every parameter"),
        ("torch.distributed.optim.zero_redundancy_optimizer", "ZeroRedundancyOptimizer", "a partition"),
    ],
)
@pytest.mark.parametrize("subclass", [False, True], ids=["itself", "subclass"])
def test_what_cannot_be_installed_everywhere_is_refused_by_name(
    module: str, name: str, reason: str, subclass: bool
) -> None:
    kind = type(name, (torch.optim.SGD,), {"__module__": module})
    if subclass:
        name = "Mine"
        kind = type(name, (kind,), {"__module__": "my_project"})
    model = make_tower()
    expected = rf"{name} cannot lose layers while it trains: .*{reason}.*adamw_torch.*Nothing was changed"
    with pytest.raises(UnsupportedBackendError, match=expected):
        check_optimizer(model, kind(model.parameters(), lr=0.1))


def test_other_optimizers_of_torchao_and_others_of_the_same_name_are_accepted() -> None:
    model = make_tower()
    for module, name in (("torchao.optim.adam", "AdamW8bit"), ("my_project", "LBFGS"), ("galore", "AdamW")):
        check_optimizer(model, type(name, (torch.optim.SGD,), {"__module__": module})(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: torch.optim.LBFGS(p), r"LBFGS cannot lose layers.*one flat history"),
        (lambda p: LayerWiseDummyOptimizer(optimizer_dict={}), r"LayerWiseDummyOptimizer cannot lose.*in hooks"),
        (lambda p: Lookahead(torch.optim.SGD(p, lr=0.1)), r"Lookahead cannot lose.*wraps another optimizer"),
        (lambda p: "adamw", r"str cannot lose.*it is not a torch.optim.Optimizer"),
    ],
)
def test_refused_by_what_it_is(make: Callable[[Any], Any], text: str) -> None:
    model = make_tower()
    with pytest.raises(UnsupportedBackendError, match=text):
        check_optimizer(model, make(model.parameters()))


def test_an_optimizer_of_flat_copies_is_refused() -> None:
    model = make_tower()
    flat = nn.Parameter(torch.cat([param.detach().flatten() for param in model.parameters()]))
    text = r"SGD trains 1 tensors that are no parameters of Tower \(the first: a tensor of shape \(145,\)\)"
    with pytest.raises(UnsupportedBackendError, match=text):
        check_optimizer(model, torch.optim.SGD([flat], lr=0.1))


def test_an_optimizer_with_state_of_its_own_is_refused() -> None:
    model = make_tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state["running_norm"] = 1.0
    with pytest.raises(UnsupportedBackendError, match=r"SGD cannot lose.*keeps state for 'running_norm'"):
        check_optimizer(model, optimizer)


# -- the check after every edit ----------------------------------------------------------------------------------------


def test_a_dead_parameter_is_found() -> None:
    model = make_tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    check_optimizer_matches(model, optimizer)
    keep_blocks_(model, [0, 1, 2, 3, 4])
    text = r"SGD does not match Tower.*2 parameters in its groups are not in the model \(the first: .*\(4, 4\)\)"
    with pytest.raises(MPrunerError, match=text):
        check_optimizer_matches(model, optimizer)


def test_a_missing_parameter_is_found_unless_it_was_missing_before() -> None:
    model = make_tower()
    optimizer = torch.optim.SGD([*model.stem.parameters(), *model.blocks.parameters()], lr=0.1)
    missing = find_missing_parameters(model, optimizer)
    assert [id(param) for param in missing] == [id(param) for param in model.head.parameters()]
    check_optimizer_matches(model, optimizer, missing)
    with pytest.raises(
        MPrunerError, match=r"2 trainable parameters .* in none of its groups \(the first: head.weight\)"
    ):
        check_optimizer_matches(model, optimizer)
    model.head.requires_grad_(False)
    check_optimizer_matches(model, optimizer)


def test_state_of_a_stranger_is_found() -> None:
    model = make_tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[nn.Parameter(torch.zeros(3))] = {}
    with pytest.raises(MPrunerError, match=r"1 entries of its state .*a tensor of shape \(3,\)"):
        check_optimizer_matches(model, optimizer)
