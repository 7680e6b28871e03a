"""The learning rates of a restarted round, and that no scheduler notices them."""

from __future__ import annotations

import pytest
import torch

from hf_mpruner.recovery import RestartedRate, restart_factor


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
    rate, scheduled = RestartedRate(0.0), []
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
    logs = {"learning_rate": 0.125}
    rate.correct_log(logs)
    assert logs == {"learning_rate": 0.25}
    rate.forget()
    logs = {"learning_rate": 0.125}
    rate.correct_log(logs)
    assert logs == {"learning_rate": 0.125}
