"""Paths, predictions and times from scheduler configurations."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from fewstep.core.paths import DiscreteVPPath, LinearPath
from fewstep.core.schedules import shift
from fewstep.modalities.image.pretrained.schedule import read_schedule

VP = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
DYNAMIC = FLOW | {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
STRETCHED = DYNAMIC | {"shift_terminal": 0.02}
DPM_FLOW = {
    "_class_name": "DPMSolverMultistepScheduler",
    "beta_schedule": "linear",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}
ENTRIES = torch.arange(1000)


@pytest.mark.parametrize(
    ("diffusers_name", "ours"), [("epsilon", "eps"), ("v_prediction", "v_ddpm"), ("sample", "x0")]
)
def test_predictions_have_our_names(diffusers_name: str, ours: str) -> None:
    assert read_schedule(VP | {"prediction_type": diffusers_name}).prediction == ours


def test_stable_diffusions_table_is_the_path_of_core() -> None:
    path = read_schedule(VP).path
    assert isinstance(path, DiscreteVPPath)
    # diffusers multiplies the thousand factors in float32
    torch.testing.assert_close(
        torch.tensor(path.alphas_cumprod),
        torch.tensor(DiscreteVPPath.scaled_linear().alphas_cumprod),
        rtol=1e-4,
        atol=0,
    )


def test_table_entries_are_exact_timesteps() -> None:
    t = (ENTRIES.double() / 999).float()
    assert torch.equal(read_schedule(VP).timestep(t), ENTRIES.float())


def test_between_entries_the_timestep_is_a_fraction() -> None:
    t = (ENTRIES[:-1].double() + 0.25) / 999
    torch.testing.assert_close(read_schedule(VP).timestep(t), ENTRIES[:-1].double() + 0.25)


def test_timesteps_have_the_slope_of_the_table_at_entries_and_between() -> None:
    t = torch.tensor([500 / 999, 500.4 / 999, 1.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(read_schedule(VP).timestep(t).sum(), t)
    torch.testing.assert_close(slope, torch.full_like(t, 999.0))


def test_a_flow_counts_to_a_thousand() -> None:
    schedule = read_schedule(FLOW)
    assert isinstance(schedule.path, LinearPath)
    assert schedule.prediction == "velocity"
    assert schedule.timestep(torch.tensor([0.25])).item() == 250


def test_a_table_without_signal_at_its_end_stays_finite() -> None:
    schedule = read_schedule(VP | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
    one = torch.ones(1, 1)
    assert schedule.path.alpha(one).item() == pytest.approx(2.0**-12)
    assert schedule.path.x0_from_v_ddpm(one, one, one).isfinite().all()


@pytest.mark.parametrize(
    ("config", "tokens", "scale"),
    [
        (VP, 1024, 1.0),
        (FLOW, 1024, 3.0),
        (DPM_FLOW, 1024, 3.0),
        (DYNAMIC, 256, math.exp(0.5)),
        (DYNAMIC, 4096, math.exp(1.15)),
        (DYNAMIC, 2176, math.exp(0.825)),  # half way
        (DYNAMIC | {"time_shift_type": "linear"}, 4096, 1.15),
    ],
)
def test_the_shift_grows_with_the_image_where_the_scheduler_says_so(
    config: dict[str, Any], tokens: int, scale: float
) -> None:
    assert read_schedule(config).shift(tokens) == pytest.approx(scale)


def test_a_dynamic_grid_is_the_uniform_one_shifted() -> None:
    schedule = read_schedule(DYNAMIC)
    times = schedule.times(4, 1024, from_one=True)
    expected = [shift(t, schedule.shift(1024)) for t in (1.0, 0.75, 0.5, 0.25, 0.0)]
    assert times == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "config", [VP, VP | {"timestep_spacing": "linspace"}, FLOW, DYNAMIC, STRETCHED, DPM_FLOW]
)
@pytest.mark.parametrize("num_steps", [1, 2, 4, 50])
def test_grids_fall_strictly_to_zero(config: dict[str, Any], num_steps: int) -> None:
    times = read_schedule(config).times(num_steps, 1024, from_one=config in (DYNAMIC, STRETCHED))
    assert len(times) == num_steps + 1
    assert all(before > after for before, after in pairwise(times))
    assert 0 < times[0] <= 1
    assert times[-1] == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "EDMEulerScheduler", "sigma_max": 80.0}, "EDMEulerScheduler is neither a flow nor"),
        (VP | {"prediction_type": "score"}, "prediction_type='score' of PNDMScheduler is unknown"),
    ],
)
def test_other_schedulers_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_schedule(config)
