"""What a pipeline's scheduler says of its network: the path, the prediction, the times, the shift."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.paths import DiscreteVPPath, LinearPath, Path, Prediction

PREDICTIONS: dict[object, Prediction] = {"epsilon": "eps", "v_prediction": "v_ddpm", "sample": "x0"}
SMALLEST_ALPHA = (
    2.0**-24
)  # in place of 0 where the table ends without signal; diffusers' own solvers use it too
SNAP = 1e-3  # in table entries; a float32 time is within 1e-4 of the entry that it means
BASE_TOKENS, MAX_TOKENS, BASE_SHIFT, MAX_SHIFT = 256, 4096, 0.5, 1.15  # where the scheduler names none
FLOW_KEYS = (
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
    "shift_terminal",
    "time_shift_type",
)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The path and prediction of a pretrained network, its timesteps, and the time grid of its first-order
    solver (DDIM, or Euler's method on the flow).
    """

    path: Path
    prediction: Prediction
    scheduler: Any

    @property
    def is_flow(self) -> bool:
        return isinstance(self.path, LinearPath)

    def timestep(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """``t`` as the network was trained to read it: entries of the table, or t times 1000.

        Between two entries of the table it is a fraction; at an entry it is exactly that entry.
        """
        count = self.scheduler.config.num_train_timesteps
        if self.is_flow:
            return t * count
        position = t * (count - 1)
        nearest = position + (position.round() - position).detach()  # with the derivative of the position
        return torch.where((position - nearest).abs() < SNAP, nearest, position)

    def shift(self, tokens: int) -> float:
        """The scale of ``fewstep.core.schedules.shift`` that the pipeline uses for so many image tokens."""
        config = self.scheduler.config
        if not self.is_flow:
            return 1.0
        if not config.use_dynamic_shifting:
            return float(config.shift)
        mu = self._mu(tokens)
        return math.exp(mu) if config.time_shift_type == "exponential" else mu

    def times(self, num_steps: int, tokens: int, *, from_one: bool) -> list[float]:
        """``num_steps + 1`` descending times that end in 0: the grid of the pipeline's first-order solver.

        Args:
            tokens: image tokens of a sample, for a shift that depends on the resolution.
            from_one: the flow's grid before the shift is 1 to 1 / num_steps, not the scheduler's own.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} generates nothing; use at least 1")
        scheduler = self.scheduler
        if not self.is_flow:
            # DDIM's "linspace" has entry 0 among its steps, where nothing is left to do
            reaches_zero = scheduler.config.timestep_spacing == "linspace"
            scheduler.set_timesteps(num_steps + 1 if reaches_zero else num_steps)
            last = scheduler.config.num_train_timesteps - 1
            return sorted({0.0, *(step / last for step in scheduler.timesteps.tolist())}, reverse=True)
        if num_steps == 1:
            return [1.0, 0.0]  # the scheduler's stretch to ``shift_terminal`` would divide by zero
        mu = self._mu(tokens) if scheduler.config.use_dynamic_shifting else None
        if from_one:
            scheduler.set_timesteps(sigmas=np.linspace(1, 1 / num_steps, num_steps).tolist(), mu=mu)
        else:
            scheduler.set_timesteps(num_steps, mu=mu)
        return scheduler.sigmas.tolist()

    def _mu(self, tokens: int) -> float:
        get = self.scheduler.config.get
        low, high = get("base_image_seq_len", BASE_TOKENS), get("max_image_seq_len", MAX_TOKENS)
        base, top = get("base_shift", BASE_SHIFT), get("max_shift", MAX_SHIFT)
        slope = (top - base) / (high - low)
        return tokens * slope + base - low * slope


def read_schedule(config: Mapping[str, object]) -> NoiseSchedule:
    """The noise schedule of a ``scheduler_config.json``, whichever solver the pipeline prefers.

    Raises:
        ValueError: for a scheduler that is neither a linear flow nor a variance-preserving table, and for
            an unknown ``prediction_type``.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    name = str(config.get("_class_name"))
    prediction = config.get("prediction_type", "epsilon")
    if name == "FlowMatchEulerDiscreteScheduler":
        return NoiseSchedule(
            LinearPath(), "velocity", FlowMatchEulerDiscreteScheduler.from_config(dict(config))
        )
    if prediction == "flow_prediction":
        known: dict[str, Any] = {key: config[key] for key in FLOW_KEYS if key in config}
        known["shift"] = config.get("flow_shift", 1.0)
        return NoiseSchedule(LinearPath(), "velocity", FlowMatchEulerDiscreteScheduler(**known))
    if "beta_schedule" not in config:
        raise ValueError(f"scheduler {name} is neither a flow nor a table of betas; supported are those two")
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"prediction_type={prediction!r} of {name} is unknown; known: {', '.join(map(str, PREDICTIONS))}"
        )
    scheduler: Any = DDIMScheduler.from_config(dict(config))
    table = scheduler.alphas_cumprod.double().clamp(min=SMALLEST_ALPHA)
    return NoiseSchedule(DiscreteVPPath(tuple(table.tolist())), PREDICTIONS[prediction], scheduler)
