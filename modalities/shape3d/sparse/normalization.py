"""Normalisation of sparse features."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.modalities.shape3d.sparse.tensor import SparseTensor

EPS = 1e-5


class SparseGroupNorm(nn.Module):
    """Over all voxels of a sample and the channels of a group, in float32 (Wu & He, 2018)."""

    def __init__(self, num_groups: int, channels: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: SparseTensor) -> SparseTensor:
        wide = x.feats.to(torch.promote_types(x.feats.dtype, torch.float32))
        normed = torch.cat([self._sample(wide[rows]) for rows in x.layout])
        return x.replace(normed.to(x.feats.dtype))

    def _sample(self, rows: Float[Tensor, " voxel channel"]) -> Float[Tensor, " voxel channel"]:
        # per channel first: that is one pass over contiguous memory
        per_group = rows.shape[1] // self.num_groups
        mean = rows.mean(0).view(self.num_groups, -1).mean(1)
        centred = rows - mean.repeat_interleave(per_group)
        variance = centred.square().mean(0).view(self.num_groups, -1).mean(1)
        scale = (variance + EPS).rsqrt().repeat_interleave(per_group) * self.weight.to(rows.dtype)
        return torch.addcmul(self.bias.to(rows.dtype), centred, scale)
