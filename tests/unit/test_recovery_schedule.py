"""The learning rates of a restarted round, and that no scheduler notices them."""

from __future__ import annotations

import pytest
import torch

from hf_mpruner.errors import UnsupportedBackendError
from hf_mpruner.recovery import RecoveryRate, restart_factor


def test_a_round_warms_up_to_one_and_decays_to_zero():
    factors = [restart_factor(step, 10, 10, 0.2) for step in range(10, 21)]
    assert factors == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0])
    assert restart_factor(0, 0, 5, 0.0) == 1.0
    assert restart_factor(4, 0, 5, 1.0) == 1.0


@pytest.mark.parametrize("tensor", [False, True])
def test_the_rate_is_used_and_the_schedule_goes_on(tensor):
    lr = torch.tensor(0.5) if tensor else 0.5
    param = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([param], lr=lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    rate, scheduled = RecoveryRate("restart", 0.0, None), []
    for step in range(3):
        before = float(param)
        param.grad = torch.ones(1)
        rate.before_step(optimizer, step, 0, 4)
        optimizer.step()
        rate.after_step()
        assert before - float(param) == pytest.approx(0.5 * (4 - step) / 4)
        scheduled.append(float(optimizer.param_groups[0]["lr"]))
        schedule.step()
    assert scheduled == pytest.approx([0.5, 0.25, 0.125])
    assert rate.used == pytest.approx(0.25)
    rate.forget()
    assert rate.used is None


def test_a_peak_keeps_the_groups_in_proportion_and_the_schedule_in_place():
    params = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [params[0]], "lr": 0.2}, {"params": [params[1]], "lr": 0.1}])
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5).step()
    rates = []
    for policy in ("run", "restart"):
        rate = RecoveryRate(policy, 0.0, 2.0)
        rate.before_step(optimizer, 1, 0, 4)
        rates.append([group["lr"] for group in optimizer.param_groups])
        rate.after_step()
    assert rates == [pytest.approx([1.0, 0.5]), pytest.approx([1.5, 0.75])]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.05])


def test_an_optimizer_without_a_rate_is_refused_by_name():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    optimizer.param_groups[0]["lr"] = None  # as transformers' Adafactor does with relative steps
    RecoveryRate("run", 0.1, None).check(optimizer)
    for rate in (RecoveryRate("restart", 0.1, None), RecoveryRate("run", 0.1, 1e-4)):
        with pytest.raises(UnsupportedBackendError, match="SGD has no learning rate"):
            rate.check(optimizer)
