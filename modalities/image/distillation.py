"""What images bring to the Distiller: latents of captioned pictures, students of a few steps."""

import copy
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fewstep.core.checkpoints import Guidance, student_grids
from fewstep.core.denoisers import Denoiser, Guided, NetworkDenoiser, NetworkFlowMap
from fewstep.core.objectives.contract import Data, Sample
from fewstep.core.rollouts import FewStep
from fewstep.core.training.roles import Roles
from fewstep.modalities.image.model_folder import (
    load_codec,
    load_transformer,
    preset_part,
    save_transformer,
)
from fewstep.modalities.image.network import ImageTransformer
from fewstep.modalities.video.text import TextEncoder
from fewstep.modalities.video.transformer import with_two_times


class ImageRoles(Roles):
    """Teacher, student and critic that all start as the teacher of a model folder.

    The student generates in a random one of its step grids and gives the prediction of a random step
    (DMD2's backward simulation). Batches hold ``features`` ``[B, L, D]`` and, for objectives that want real
    samples, ``pixels``.

    Args:
        teacher: model folder of an ``ImageTransformer``, or the name of a bundled preset: ``objects``.
        codec: model folder of the autoencoder, or that name.
        step_grids: number of steps -> times.
        guidance_scale: of the teacher (w, 1 is off); the student learns the guided distribution.
        two_times: whether the student is a ``FlowMap``.
        renoise: how the student goes on between its steps (``FewStep``).
        size: height and width of the pictures in pixels.
    """

    def __init__(
        self,
        teacher: str,
        codec: str,
        step_grids: dict[int, list[float]],
        guidance_scale: float = 2.5,
        two_times: bool = False,
        renoise: Literal["fresh", "ddim"] = "fresh",
        size: int = 64,
    ) -> None:
        super().__init__()
        network = load_transformer(preset_part(teacher, "teacher"))
        self.null_condition = TextEncoder()([""]).clone()  # an ordinary tensor, not one of inference mode
        self.teacher = Guided(
            NetworkDenoiser(network), guidance_scale=guidance_scale, null_condition=self.null_condition
        )
        self.critic = NetworkDenoiser(copy.deepcopy(network))
        self.student = with_two_times(network) if two_times else copy.deepcopy(network)
        self.codec = load_codec(preset_part(codec, "codec")).requires_grad_(False)
        self.rollouts = {
            steps: FewStep(times, renoise=renoise) for steps, times in student_grids(step_grids).items()
        }
        self.guidance_scale = guidance_scale
        self.latent_shape = (network.config.channels, size // 8, size // 8)

    @property
    def network(self) -> ImageTransformer:
        """The student by its class."""
        return cast(ImageTransformer, self.student)

    def train(self, mode: bool = True) -> "ImageRoles":
        super().train(mode)
        self.codec.eval()  # its batch norm holds the latents' statistics
        return self

    def generate(self, batch: Any, *, generator: torch.Generator, with_grad: bool) -> Sample:
        features = batch["features"]
        rollout = list(self.rollouts.values())[self.choose(len(self.rollouts), generator)]
        shape = (len(features), *self.latent_shape)
        noise = torch.randn(shape, generator=generator, device=features.device)
        x, call = rollout.rollout_and_call(
            self.denoiser(self.student),
            noise,
            features,
            exit_step=self.choose(len(rollout.times), generator),
            generator=generator,
        )
        return Sample(
            x=x, condition=features, call=call, diagnostics={"latent_std": x.detach().float().std()}
        )

    @torch.no_grad()
    def data(self, batch: Any) -> Data:
        return Data(x0=self.codec.encode(batch["pixels"]).float(), condition=batch["features"])

    def decode(self, x: Tensor) -> Tensor:
        return (self.codec.decode(x).float() * 0.5 + 0.5).clamp(0.0, 1.0)[:, None]

    def denoiser(self, student: nn.Module) -> Denoiser:
        return NetworkFlowMap(student) if self.network.config.two_times else NetworkDenoiser(student)

    def save_student(
        self, folder: Path, *, training: dict[str, Any], metrics: dict[str, int | float]
    ) -> None:
        save_transformer(
            folder,
            self.network,
            training=training,
            metrics=metrics,
            step_grids={steps: list(rollout.times) for steps, rollout in self.rollouts.items()},
            guidance=Guidance(scale=self.guidance_scale, baked=True),
        )
