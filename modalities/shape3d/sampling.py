"""How either stage is sampled by its teacher: a shifted grid, guidance within an interval of times, Euler."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoisers import Condition, Denoiser, Guided, NetworkDenoiser
from fewstep.core.paths import LinearPath
from fewstep.core.samplers import Progress, euler
from fewstep.core.schedules import uniform_grid
from fewstep.modalities.shape3d.several_pictures import OverSeveral

TRELLIS_SIGMA_MIN = 1e-5


@dataclass(frozen=True, kw_only=True)
class FlowSampling:
    """TRELLIS's sampler in this package's terms; the defaults are those of its image-large pipeline.

    Args:
        num_steps: of Euler's method.
        guidance_scale: w, 1 is off. TRELLIS's ``cfg_strength`` s is w - 1; TRELLIS.2's is w.
        interval: times, ends included, where w applies.
        shift: of the grid; TRELLIS's ``rescale_t``.
        sigma_min: of the linear path that the network was trained on.
    """

    num_steps: int = 25
    guidance_scale: float = 6.0
    interval: tuple[float, float] | None = (0.5, 1.0)
    shift: float = 3.0
    sigma_min: float = TRELLIS_SIGMA_MIN

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps={self.num_steps} must be at least 1")
        if not self.shift > 0:
            raise ValueError(f"shift={self.shift} must be positive; 1 leaves steps equal")

    def times(self) -> Float[Tensor, " steps"]:
        """From 1 to 0, ``num_steps + 1`` of them."""
        return uniform_grid(self.num_steps, scale=self.shift)

    @property
    def nfe(self) -> int:
        """Evaluations of the network for one sample of one condition."""
        return self.evaluations(1)

    def evaluations(self, conditions: int) -> int:
        """Likewise where every step is the mean over so many conditions."""
        plain = self.num_steps * conditions
        if self.guidance_scale == 1:
            return plain
        low, high = self.interval or (-torch.inf, torch.inf)
        called = self.times()[:-1].float()
        return plain + int(((called >= low) & (called <= high)).sum())

    def denoiser(self, network: nn.Module, null_condition: Condition) -> Denoiser:
        """A network of velocities, guided where it is to be; its condition may be `Several`."""
        plain = OverSeveral(NetworkDenoiser(network, LinearPath(sigma_min=self.sigma_min)), self.times())
        if self.guidance_scale == 1:
            return plain
        return Guided(
            plain,
            guidance_scale=self.guidance_scale,
            null_condition=null_condition,
            interval=self.interval,
        )

    @torch.no_grad()
    def sample(
        self,
        network: nn.Module,
        noise: Float[Tensor, " row *event"],
        condition: Condition,
        *,
        null_condition: Condition,
        progress: Progress | None = None,
    ) -> Float[Tensor, " row *event"]:
        """From noise to data.

        The network is called as ``network(x_t, t, condition)``: a ``StructureFlow``, or a ``LatentFlow``
        within a ``VoxelVelocity``, whose conditions carry the voxels.
        """
        return euler(
            self.denoiser(network, null_condition), noise, self.times(), condition, progress=progress
        )
