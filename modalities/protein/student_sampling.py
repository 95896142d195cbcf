"""How a few-step student makes chains: from noise weaker than it is told (noise modulation)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoisers import Denoiser
from fewstep.core.rollouts import FewStep
from fewstep.modalities.protein.centring import CentredDenoiser, Generators, centred_noise
from fewstep.modalities.protein.denoisers import ChainCondition
from fewstep.modalities.protein.times import student_grid

NOISE_SCALE = 0.45  # of the standard deviation; in ChainSampling it is the variance


@dataclass(frozen=True, kw_only=True)
class StudentSampling:
    """Denoise, noise to the next time, and again, in one call of the student per step.

    It also drives a teacher, which a student has to be better than at equally many steps.

    Args:
        times: at which the student is called; those of its card, or ``student_grid(num_steps)``.
        noise_scale: factor on all noise while the times stay. Students are trained at 1; below that they
            give more regular chains, and fewer different ones.
    """

    times: tuple[float, ...] = student_grid(16)
    noise_scale: float = NOISE_SCALE

    def __post_init__(self) -> None:
        FewStep(tuple(self.times), noise_scale=self.noise_scale)

    @property
    def num_steps(self) -> int:
        """Calls of the student for one sample."""
        return len(self.times)

    @torch.no_grad()
    def sample(
        self, student: Denoiser, condition: ChainCondition, *, generator: Generators | None = None
    ) -> Float[Tensor, " batch residue 3"]:
        """Centred chains in nanometre, 0 at padding.

        Args:
            student: on the linear path.
            condition: how long the chains are, and their folds.
            generator: of all noise, on the condition's device; or one on the CPU for each chain.
        """
        return FewStep(tuple(self.times), noise_scale=self.noise_scale).rollout(
            CentredDenoiser(student),
            centred_noise(condition.mask, generator),
            condition,
            noises=lambda _: centred_noise(condition.mask, generator),
        )
