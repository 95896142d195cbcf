import pytest
import torch
from torch import Tensor, nn

from fewstep.modalities.shape3d.sampling import FlowSampling
from fewstep.modalities.shape3d.several_pictures import Several


class Asked(nn.Module):
    """A velocity that is its condition; notes conditions and samples of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[float]] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        self.calls.append(condition[:, 0].tolist())
        return condition.expand_as(x_t)


def condition(value: float) -> Tensor:
    return torch.full((1, 1), value)


def run(several: object, **settings: object) -> tuple[Asked, float]:
    network, sampling = Asked(), FlowSampling(num_steps=4, shift=1.0, **settings)  # pyright: ignore[reportArgumentType]
    noise = torch.zeros(1, 1)
    return network, sampling.sample(network, noise, several, null_condition=condition(0.0)).item()


def test_the_mean_over_conditions_is_taken_at_every_step() -> None:
    several = Several((condition(1.0), condition(2.0), condition(6.0)))
    network, end = run(several, guidance_scale=1.0)
    assert network.calls == [[1.0], [2.0], [6.0]] * 4
    assert end == pytest.approx(-3.0)  # minus the mean velocity


def test_turns_ask_about_one_condition_per_step() -> None:
    several = Several((condition(1.0), condition(2.0), condition(6.0)), how="turns")
    network, end = run(several, guidance_scale=1.0)
    assert network.calls == [[1.0], [2.0], [6.0], [1.0]]
    assert end == pytest.approx(-(1 + 2 + 6 + 1) / 4)


def test_guidance_asks_about_nothing_once_per_step() -> None:
    several = Several((condition(1.0), condition(2.0)))
    network, end = run(several, guidance_scale=3.0, interval=(0.5, 1.0))
    assert network.calls == [[1.0], [2.0], [0.0]] * 3 + [[1.0], [2.0]]
    assert end == pytest.approx(-(3 * 4.5 + 1.5) / 4)


def test_no_condition_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="give at least one"):
        Several(())
