"""What 3D brings to the Distiller: one stage of a trained pair as teacher, student and critic."""

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fewstep.core.checkpoints import Guidance, student_grids
from fewstep.core.denoisers import Denoiser
from fewstep.core.objectives.contract import Data, Sample
from fewstep.core.rollouts import FewStep
from fewstep.core.training.roles import Roles
from fewstep.modalities.shape3d.model_folder import load_as
from fewstep.modalities.shape3d.stages import FLOW, Interval, Stage


class ShapeRoles(Roles):
    """Student and critic that start as a stage's teacher; the image encoder stays as it is.

    The average velocity to the data that MDT distils is what a student of one time predicts, so that the same
    networks serve it and the methods that match distributions. MDT's two phases are two runs: the second
    starts from the ``student`` of the first.

    Args:
        stage: loaded from the folder of a trained stage.
        step_grids: number of steps -> times.
        student: folder of a stage whose flow the student starts as; None is the teacher.
        guidance_scale: of the teacher (w, 1 is off); the student learns the guided distribution.
        guidance_interval: times, ends included, where the teacher is guided; None is everywhere.
        renoise: how the student goes on between its steps (``FewStep``).
    """

    def __init__(
        self,
        stage: Stage,
        step_grids: dict[int, list[float]],
        student: str | None = None,
        guidance_scale: float = 3.0,
        guidance_interval: Interval | None = None,
        renoise: Literal["fresh", "ddim"] = "ddim",
    ) -> None:
        super().__init__()
        self.student = copy.deepcopy(stage.flow)
        if student is not None:
            self.student.load_state_dict(load_as(type(stage.flow), Path(student) / FLOW).state_dict())
        self.teacher = stage.guided(stage.flow, guidance_scale, guidance_interval)  # pyright: ignore[reportAttributeAccessIssue] # both are denoisers
        self.critic = stage.denoiser(copy.deepcopy(stage.flow))
        # not a submodule: its networks are the teacher's, which a checkpoint leaves out
        self._stage = [stage.requires_grad_(False)]
        self.image_encoder = stage.image_encoder
        self.rollouts = {
            steps: FewStep(times, renoise=renoise) for steps, times in student_grids(step_grids).items()
        }
        self.guidance_scale = guidance_scale

    @property
    def stage(self) -> Stage:
        return self._stage[0]

    def generate(self, batch: Any, *, generator: torch.Generator, with_grad: bool) -> Sample:
        data = self.data(batch)
        rollout = list(self.rollouts.values())[self.choose(len(self.rollouts), generator)]
        x, call = rollout.rollout_and_call(
            self.denoiser(self.student),
            self.stage.noise(batch, generator),
            data.condition,
            exit_step=self.choose(len(rollout.times), generator),
            generator=generator,
        )
        return Sample(
            x=x,
            condition=data.condition,
            layout=data.layout,
            call=call,
            diagnostics={"latent_std": x.detach().float().std()},
        )

    @torch.no_grad()
    def data(self, batch: Any) -> Data:
        return self.stage.data(batch)

    def denoiser(self, student: nn.Module) -> Denoiser:
        return self.stage.denoiser(student)

    def save_student(
        self, folder: Path, *, training: dict[str, Any], metrics: dict[str, int | float]
    ) -> None:
        student = copy.copy(self.stage)
        student._modules = {**self.stage._modules, "flow": self.student}
        student.save(
            folder,
            training=training,
            metrics=metrics,
            step_grids={steps: list(rollout.times) for steps, rollout in self.rollouts.items()},
            guidance=Guidance(scale=self.guidance_scale, baked=True),
        )
