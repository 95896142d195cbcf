"""Normalisation of sparse features."""

import torch
from torch import nn

from fewstep.modalities.shape3d.sparse.tensor import SparseTensor


class SparseGroupNorm(nn.GroupNorm):
    """Over all voxels of a sample and the channels of a group, in float32 (Wu & He, 2018)."""

    def forward(self, input: SparseTensor) -> SparseTensor:
        dtype = torch.promote_types(input.feats.dtype, torch.float32)
        return input.replace(
            torch.cat([self._sample(input.feats[rows].to(dtype)) for rows in input.layout]).to(
                input.feats.dtype
            )
        )

    def _sample(self, rows: torch.Tensor) -> torch.Tensor:
        grouped = rows.unflatten(1, (self.num_groups, -1))
        # per channel first: that is one pass over contiguous memory
        mean = grouped.mean(0).mean(1)
        centred = rows - mean.repeat_interleave(grouped.shape[2])
        variance = centred.square().mean(0).view(self.num_groups, -1).mean(1)
        scale = (variance + self.eps).rsqrt().repeat_interleave(grouped.shape[2]) * self.weight.to(rows.dtype)
        return torch.addcmul(self.bias.to(rows.dtype), centred, scale)
