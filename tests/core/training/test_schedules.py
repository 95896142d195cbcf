import pytest
import torch
from torch import nn

from fewstep.core.training.schedules import Scheduled, warmup_cosine, warmup_cosine_factor


def test_the_factor_rises_linearly_peaks_and_falls_to_the_floor() -> None:
    factors = [warmup_cosine_factor(step, warmup=4, total=14, floor=0.1) for step in range(16)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[9] == pytest.approx(0.55)
    assert factors[14] == factors[15] == pytest.approx(0.1)
    assert factors[4:15] == sorted(factors[4:15], reverse=True)


def test_without_an_end_the_factor_stays_at_one() -> None:
    assert [warmup_cosine_factor(step, warmup=2, total=None) for step in (0, 2, 10**6)] == [0.5, 1.0, 1.0]


def test_the_optimizer_follows_the_factor() -> None:
    scheduled = warmup_cosine(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0), 10, warmup=2, floor=0.0)
    rates = []
    for _ in range(10):
        rates.append(scheduled["optimizer"].param_groups[0]["lr"])
        scheduled["optimizer"].step()
        scheduled["lr_scheduler"]["scheduler"].step()
    assert rates == [2.0 * warmup_cosine_factor(step, warmup=2, total=10) for step in range(10)]


def test_a_changed_learning_rate_holds_for_a_run_that_goes_on() -> None:
    def scheduled(lr: float) -> Scheduled:
        return warmup_cosine(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr), 10, warmup=2)

    first, second = scheduled(2.0), scheduled(0.5)
    first["optimizer"].step()
    first["lr_scheduler"]["scheduler"].step()
    second["optimizer"].load_state_dict(first["optimizer"].state_dict())
    second["lr_scheduler"]["scheduler"].load_state_dict(first["lr_scheduler"]["scheduler"].state_dict())
    second["optimizer"].step()
    second["lr_scheduler"]["scheduler"].step()
    rate = second["optimizer"].param_groups[0]["lr"]
    assert rate == 0.5 * warmup_cosine_factor(2, warmup=2, total=10, floor=0.02)
