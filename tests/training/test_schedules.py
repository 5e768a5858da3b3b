from __future__ import annotations

import math

import pytest
import torch

from graphattn.errors import ArgumentError, ConfigError
from graphattn.training import WarmupCosine


def optimizer(lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(schedule: WarmupCosine, epochs: int) -> list[float]:
    found = []
    for _ in range(epochs):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_warm_up_rises_linearly_then_half_a_cosine_falls():
    found = rates(WarmupCosine(optimizer(1.0), warmup_epochs=3, max_epochs=9), 9)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[6] == pytest.approx(0.5)  # half way down the cosine
    assert found[3:] == sorted(found[3:], reverse=True)
    assert found[8] == pytest.approx((1 + math.cos(math.pi * 5 / 6)) / 2)


def test_the_floor_holds_after_the_last_epoch():
    found = rates(WarmupCosine(optimizer(2.0), warmup_epochs=0, max_epochs=4, min_factor=0.1), 8)
    assert found[0] == 2.0 and found[4:] == pytest.approx([0.2] * 4)


def test_state_continues_where_it_was():
    whole = rates(WarmupCosine(optimizer(), 2, 10), 10)
    first = WarmupCosine(optimizer(), 2, 10)
    head = rates(first, 4)
    second = WarmupCosine(optimizer(), 2, 10)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert head + rates(second, 6) == pytest.approx(whole)


@pytest.mark.parametrize("epochs", [4, 7])  # of the first part; 7: it was finished
def test_a_longer_run_has_the_rates_of_its_own_length(epochs: int):
    first = WarmupCosine(optimizer(), 2, 7)
    rates(first, epochs)
    second = WarmupCosine(optimizer(), 2, 12)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert rates(second, 12 - epochs) == pytest.approx(rates(WarmupCosine(optimizer(), 2, 12), 12)[epochs:])


def test_errors():
    with pytest.raises(ArgumentError, match="warmup_epochs must be at least 0, got -1"):
        WarmupCosine(optimizer(), warmup_epochs=-1, max_epochs=3)
    with pytest.raises(ArgumentError, match="min_factor"):
        WarmupCosine(optimizer(), max_epochs=3, min_factor=2)
    with pytest.raises(ConfigError, match="max_epochs"):
        rates(WarmupCosine(optimizer(), warmup_epochs=1), 3)
