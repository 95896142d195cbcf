"""What a diffusers teacher brings to the Distiller: students of a few steps that diffusers loads again."""

import json
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from fewstep.core.checkpoints import DTYPES, student_grids
from fewstep.core.objectives.contract import Data, Sample
from fewstep.core.rollouts import FewStep
from fewstep.core.training.checkpointing import checkpoint_blocks
from fewstep.core.training.lora import Adapted, LoraSettings, lora_denoisers, merged, save_adapter
from fewstep.core.training.roles import Roles
from fewstep.modalities.image.pretrained.backbone import BackboneTeacher
from fewstep.modalities.image.pretrained.loading import load_teacher
from fewstep.modalities.image.pretrained.teacher import DiffusersTeacher

STUDENT = "student.json"
ADAPTER = "adapter"


class PretrainedRoles(Roles):
    """Teacher, student and critic that all start as the network of a diffusers pipeline.

    The student generates in a random one of its step grids and gives the prediction of a random step
    (DMD2's backward simulation). Batches hold ``captions``, a list of B texts, and, for objectives that want
    real samples, ``pixels`` ``[B, 3, height, width]`` in [-1, 1].

    Args:
        teacher: diffusers folder or hub id.
        step_grids: number of steps -> times, descending from 1.
        guidance_scale: of the teacher (w, 1 is off), as its pipeline guides; the student learns the result.
        height: of the generated images, in pixels.
        width: of the generated images, in pixels.
        renoise: how the student goes on between its steps (``FewStep``).
        teacher_dtype: of the teacher, the text encoders and the autoencoder: float32, bfloat16 or float16.
            Student and critic are in float32.
        lora: student and critic are adapters of this size on the teacher's own network; None trains copies of
            the network whole.
        gradient_checkpointing: blocks of student and critic keep only their input for the backward pass.
    """

    def __init__(
        self,
        teacher: str,
        step_grids: dict[int, list[float]],
        guidance_scale: float,
        height: int,
        width: int,
        renoise: Literal["fresh", "ddim"] = "fresh",
        teacher_dtype: str = "float32",
        lora: LoraSettings | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if teacher_dtype not in DTYPES:
            raise ValueError(f"teacher_dtype={teacher_dtype!r} must be one of {', '.join(DTYPES)}")
        loaded = load_teacher(teacher, dtype=DTYPES[teacher_dtype])
        self.source, self.guidance_scale = teacher, guidance_scale
        self.null_condition = loaded.null_condition
        if gradient_checkpointing:
            checkpoint_blocks(loaded.architecture.blocks(loaded.network))
        if lora is None:
            self.student = loaded.copy().float()
            self.critic = loaded.copy().float()
            self.teacher = loaded.guided(guidance_scale)
        else:
            views = lora_denoisers(loaded.network, lambda network: loaded, **vars(lora))
            self.student, self.critic = views.student, views.critic
            self.teacher = loaded.guided(guidance_scale, through=BackboneTeacher(views.teacher))
        self.latent_shape = loaded.latent_shape(height, width)
        self.rollouts = {
            steps: FewStep(times, renoise=renoise) for steps, times in student_grids(step_grids).items()
        }
        self.train()  # loaded in eval mode; which network stays in it is the Distiller's business

    @property
    def network(self) -> DiffusersTeacher:
        """The student by its class; with LoRA the denoiser under it, which computes as the teacher."""
        student = self.student
        return cast(DiffusersTeacher, student.denoiser if isinstance(student, Adapted) else student)

    def generate(self, batch: Any, *, generator: torch.Generator, with_grad: bool) -> Sample:
        condition = self.network.encode_prompt(batch["captions"])
        rollout = list(self.rollouts.values())[self.choose(len(self.rollouts), generator)]
        shape = (len(batch["captions"]), *self.latent_shape)
        x, call = rollout.rollout_and_call(
            self.denoiser(self.student),
            torch.randn(shape, generator=generator, device=generator.device),
            condition,
            exit_step=self.choose(len(rollout.times), generator),
            generator=generator,
        )
        return Sample(
            x=x, condition=condition, call=call, diagnostics={"latent_std": x.detach().float().std()}
        )

    @torch.no_grad()
    def data(self, batch: Any) -> Data:
        condition = self.network.encode_prompt(batch["captions"])
        return Data(x0=self.network.encode(batch["pixels"]), condition=condition)

    def decode(self, x: Tensor) -> Tensor:
        return (self.network.decode(x) * 0.5 + 0.5)[:, None]

    def save_student(
        self, folder: Path, *, training: dict[str, object], metrics: dict[str, int | float]
    ) -> None:
        """Write the network as diffusers does, and beside it ``student.json``: how to use it.

        With LoRA the network is the merged one in float32, and ``adapter`` is what peft reads.
        """
        student = self.student
        if isinstance(student, Adapted):
            self.network.save_student(folder, network=merged(student, dtype=torch.float32))
            save_adapter(student, folder / ADAPTER)
        else:
            self.network.save_student(folder)
        record = {
            "teacher": self.source,
            "step_grids": {str(steps): list(rollout.times) for steps, rollout in self.rollouts.items()},
            "guidance": {"scale": self.guidance_scale, "baked": True},
            "training": training,
            "metrics": metrics,
        }
        (folder / STUDENT).write_text(json.dumps(record, indent=2) + "\n")
