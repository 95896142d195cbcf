"""The two flows behind the denoiser contract: dense latents of the structure, packed latents of voxels."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoisers import Denoiser, NetworkDenoiser
from fewstep.core.layouts import Packed
from fewstep.core.paths import Path
from fewstep.modalities.shape3d.networks.latent_flow import LatentFlow
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor


@dataclass(frozen=True, kw_only=True, eq=False)
class VoxelCondition:
    """What a flow on voxels is given beside their noised latents.

    Args:
        voxels: a sparse tensor of the active voxels; its features are not looked at.
        picture: tokens ``[B, L, C]`` of each object's picture.
    """

    voxels: SparseTensor
    picture: Float[Tensor, " batch token dim"]

    def without_picture(self) -> "VoxelCondition":
        """The same voxels and zeros for tokens, which is what training without a condition shows."""
        return replace(self, picture=torch.zeros_like(self.picture))

    @property
    def layout(self) -> Packed:
        """How samples lie in the rows."""
        return Packed(self.voxels.index, self.voxels.batch_size)


class VoxelVelocity(nn.Module):
    """A ``LatentFlow`` as a network of packed rows: one time per row, of which each object's are equal."""

    def __init__(self, flow: LatentFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(
        self, x_t: Float[Tensor, " voxel channel"], t: Float[Tensor, " voxel"], condition: VoxelCondition
    ) -> Float[Tensor, " voxel channel"]:
        voxels = condition.voxels
        first = torch.tensor([rows.start for rows in voxels.layout], device=t.device)
        return self.flow(voxels.replace(x_t), t[first], condition.picture).feats


class GuidedVoxels(nn.Module):
    """Classifier-free guidance whose null condition keeps the voxels; see ``Guided`` for the formula.

    Args:
        denoiser: of packed rows.
        guidance_scale: w, 1 is off.
        interval: times, ends included, where w applies; outside it w is 1.
    """

    def __init__(
        self, denoiser: Denoiser, *, guidance_scale: float, interval: tuple[float, float] | None = None
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.guidance_scale = guidance_scale
        self.low, self.high = interval or (-torch.inf, torch.inf)

    @property
    def path(self) -> Path:
        return self.denoiser.path

    def forward(
        self, x_t: Float[Tensor, " voxel channel"], t: Float[Tensor, " voxel"], condition: VoxelCondition
    ) -> Float[Tensor, " voxel channel"]:
        inside = (t >= self.low) & (t <= self.high)
        x0 = self.denoiser(x_t, t, condition)
        if self.guidance_scale == 1 or not bool(inside.any()):
            return x0
        null = self.denoiser(x_t, t, condition.without_picture()).float()
        guided = null + self.guidance_scale * (x0.float() - null)
        return torch.where(inside[:, None], guided.to(x0.dtype), x0)


def voxel_denoiser(flow: LatentFlow) -> NetworkDenoiser:
    """A latent flow as a denoiser of packed rows."""
    return NetworkDenoiser(VoxelVelocity(flow))
