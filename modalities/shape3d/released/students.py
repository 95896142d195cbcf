"""Few-step students in the place of a released pipeline's flows, as MDT-dist (2509.04406) leaves them."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.modalities.shape3d.released.model_file import load_model_file, load_trainer_checkpoint
from fewstep.modalities.shape3d.released.pipeline import LATENT_FLOW, STRUCTURE_FLOW, ReleasedPipeline
from fewstep.modalities.shape3d.sampling import FlowSampling

STEPS = 2  # MDT-dist's students make 1 or 2 per stage
CHECKPOINT = re.compile(r"(?P<name>\w+?)(?:_ema(?P<rate>[\d.]+))?_step(?P<step>\d+)\.pt")
PARTS = (".json", ".safetensors")


def with_students(
    pipeline: ReleasedPipeline, students: Mapping[str, Path], *, device: torch.device | str = "cpu"
) -> ReleasedPipeline:
    """The pipeline with students in the place of flows; decoders and normalisation stay.

    A student has its teacher's network, which now predicts the mean velocity from a time to 0: it is called
    at equal steps, without guidance, which is baked in. Two steps by default.

    Args:
        students: role of a flow -> its student's file, see ``load_flow``.

    Raises:
        ValueError: for a role that is no flow's, and a network that is not of the flow's class and sizes.
    """
    models, file = dict(pipeline.models), pipeline.file
    for role, path in students.items():
        if role not in (STRUCTURE_FLOW, LATENT_FLOW):
            raise ValueError(f"role={role!r} has no student; give {STRUCTURE_FLOW} or {LATENT_FLOW}")
        student, teacher = load_flow(path, device=device), pipeline.model(role)
        if type(student) is not type(teacher) or _sizes(student) != _sizes(teacher):
            raise ValueError(
                f"{path} is a {type(student).__name__} that does not fit {role}, a {type(teacher).__name__}; "
                "give a student that was distilled from this pipeline"
            )
        models[role] = student
        stage = "structure_sampling" if role == STRUCTURE_FLOW else "latent_sampling"
        sigma_min = getattr(file, stage).sigma_min
        sampling = FlowSampling(
            num_steps=STEPS, guidance_scale=1.0, interval=None, shift=1.0, sigma_min=sigma_min
        )
        file = replace(file, **{stage: sampling})
    return ReleasedPipeline(file, models)


def _sizes(flow: nn.Module) -> Any:
    """Its configuration, however it is stored: trainers may keep in float32 what is released in half."""
    config: Any = flow.config
    return replace(config, use_fp16=False)


def load_flow(path: Path, *, device: torch.device | str = "cpu") -> nn.Module:
    """A network from `X.safetensors` beside `X.json`, or from a trainer's `RUN/ckpts/X_step0001000.pt` under
    `RUN/config.json`, averaged (`X_ema0.9999_step0001000.pt`) or not.
    """
    path = path.expanduser()
    if path.suffix != ".pt":
        return load_model_file(path.with_suffix("") if path.suffix in PARTS else path, device=device)
    found = CHECKPOINT.fullmatch(path.name)
    if found is None:
        raise ValueError(
            f"{path.name} is not named as TRELLIS's trainers name checkpoints: X_ema0.9999_step0001000.pt"
        )
    rate = found["rate"]
    return load_trainer_checkpoint(
        path.parent.parent,
        found["name"],
        step=int(found["step"]),
        ema_rate=None if rate is None else float(rate),
        device=device,
    )
