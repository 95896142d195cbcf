"""Between the levels of sparse grids."""

import torch

from fewstep.modalities.shape3d.sparse.tensor import CHILDREN, SparseTensor, Voxels


def downsample(x: SparseTensor, factor: int = 2, *, pool_include_self: bool = True) -> SparseTensor:
    """The mean of the features of each coarse voxel's n children.

    Args:
        factor: between the resolutions.
        pool_include_self: divide by n + 1 and not by n, as TRELLIS does (its mean counts the zero that it
            starts from); released weights were trained with it.
    """
    voxels, parent = x.voxels.coarser(factor)
    total = x.feats.new_zeros(len(voxels), *x.feats.shape[1:]).index_add(0, parent, x.feats)
    count = torch.bincount(parent, minlength=len(voxels)) + int(pool_include_self)
    return SparseTensor(total / count.to(total.dtype).view(-1, *[1] * (total.ndim - 1)), voxels)


def upsample(x: SparseTensor, fine: Voxels, factor: int = 2) -> SparseTensor:
    """Each parent's features on all its children.

    Args:
        fine: the voxels from which ``downsample`` made those of ``x``.
        factor: with which it did.

    Raises:
        ValueError: ``x`` does not come from there.
    """
    coarse, parent = fine.coarser(factor)
    if coarse is not x.voxels:
        raise ValueError(
            f"x has {len(x.voxels)} voxels that are not the coarser ones of fine; "
            "downsample a tensor of fine first"
        )
    return SparseTensor(x.feats[parent], fine)


def subdivide(x: SparseTensor) -> SparseTensor:
    """Each voxel's features on all eight halves of it, z fastest: 000, 001, 010, ..."""
    return SparseTensor(x.feats.repeat_interleave(CHILDREN, dim=0), x.voxels.finer)
