"""Convolutions that live on active voxels only: where no voxel is, nothing comes in and nothing comes out.

The parameters are those of spconv: ``conv.weight`` ``[out, x, y, z, in]`` and ``conv.bias``.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fewstep.modalities.shape3d.sparse import spconv_kernels
from fewstep.modalities.shape3d.sparse.tensor import CHILDREN, NEIGHBOURHOOD, SparseTensor

ALL_TAPS = tuple(range(NEIGHBOURHOOD))
GATHERED_BYTES = {"cpu": 2**21}  # what a chunk's neighbours fill: on a CPU they stay in its cache
GATHERED_BYTES_ELSEWHERE = 2**29


class Kernel(nn.Module):
    """Weight and bias of a convolution, under the names and in the order that spconv has them."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, size, size, size, in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        bound = 1 / math.sqrt(in_channels * size**3)
        nn.init.uniform_(self.weight, -bound, bound)


class SubmanifoldConv3d(nn.Module):
    """3 x 3 x 3, without stride; equal to ``conv3d`` with padding 1 on a grid that is zero elsewhere.

    In float32 and below gradients are first order; forward-mode derivatives work, and so do higher ones
    through them.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Kernel(in_channels, out_channels, 3)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """By spconv on GPUs where it works, see ``spconv_kernels``; by ``gathered_product`` elsewhere."""
        if spconv_kernels.takes(x.feats):
            return x.replace(spconv_kernels.by_spconv(self.conv, x) + self.conv.bias)
        taps = self.conv.weight.flatten(1, 3).permute(1, 2, 0)
        return x.replace(gathered_product(x.feats, taps, x.voxels.neighbours) + self.conv.bias)

    def subdivided(self, x: SparseTensor) -> SparseTensor:
        """The same as ``self(subdivide(x))`` for less than a third of its products.

        All eight children of a voxel carry the features of their parent, so that a child sees at most
        2 x 2 x 2 distinct ones: the taps that fall on the same parent are added up beforehand.
        """
        taps = self.conv.weight.flatten(1, 3).permute(1, 2, 0)
        sums, columns = _parent_taps(taps.device)
        joined = (sums.to(taps.dtype).flatten(0, 1) @ taps.flatten(1)).view(
            CHILDREN, CHILDREN, *taps.shape[1:]
        )
        children = [
            gathered_product(x.feats, of_child, x.voxels.neighbours, tuple(seen))
            for of_child, seen in zip(joined, columns, strict=True)
        ]
        feats = torch.stack(children, 1).flatten(0, 1) + self.conv.bias
        return SparseTensor(feats, x.voxels.finer)


class PointwiseConv3d(nn.Module):
    """1 x 1 x 1.

    spconv stores the weight as ``[out, 1, 1, 1, in]`` but, for this size alone, reads the same memory as a
    matrix ``[in, out]``. TRELLIS was trained with that, so its weights only mean something this way.

    Args:
        reinterpret: whether to read it so, which is what released weights need.
    """

    def __init__(self, in_channels: int, out_channels: int, *, reinterpret: bool = True) -> None:
        super().__init__()
        self.conv = Kernel(in_channels, out_channels, 1)
        self.reinterpret = reinterpret

    def forward(self, x: SparseTensor) -> SparseTensor:
        weight = self.conv.weight
        out_channels, in_channels = weight.shape[0], weight.shape[-1]
        if self.reinterpret:
            matrix = weight.reshape(in_channels, out_channels).T
        else:
            matrix = weight.view(out_channels, in_channels)
        return x.replace(F.linear(x.feats, matrix, self.conv.bias))


def gathered_product(
    feats: Float[Tensor, " voxel in"],
    weights: Float[Tensor, " tap in out"],
    neighbours: Int32[Tensor, " voxel offset"],
    taps: tuple[int, ...] = ALL_TAPS,
) -> Float[Tensor, " voxel out"]:
    r""":math:`y_n = \sum_j x_{m(n, taps_j)} W_j`, where m is the table and a missing neighbour is 0.

    The table is that of ``Voxels.neighbours``, of whose symmetry the backward pass makes use: it gathers as
    the forward pass does, and nothing is scattered.
    """
    if torch.is_autocast_enabled(feats.device.type):
        dtype = torch.get_autocast_dtype(feats.device.type)
        feats, weights = feats.to(dtype), weights.to(dtype)
    if forward_ad._current_level >= 0:
        columns = torch.tensor(taps, device=neighbours.device)
        return _neighbourhoods(_with_zero_row(feats), neighbours[:, columns]) @ weights.flatten(0, 1)
    return _GatheredProduct.apply(feats, weights, neighbours, taps)


class _GatheredProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, feats: Tensor, weights: Tensor, neighbours: Tensor, taps: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(feats, weights, neighbours)
        ctx.taps = taps
        return _product(feats, weights, _columns(neighbours, taps))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides the signature
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grad_outputs
        feats, weights, neighbours = ctx.saved_tensors
        grad_feats, grad_weights = None, None
        if ctx.needs_input_grad[0]:
            opposite = tuple(NEIGHBOURHOOD - 1 - tap for tap in ctx.taps)
            grad_feats = _product(grad, weights.transpose(1, 2), _columns(neighbours, opposite))
        if ctx.needs_input_grad[1]:
            grad_weights = _weight_gradient(feats, grad, _columns(neighbours, ctx.taps), weights)
        return grad_feats, grad_weights, None, None


def _columns(neighbours: Tensor, taps: tuple[int, ...]) -> Tensor:
    if taps == ALL_TAPS:
        return neighbours
    return neighbours[:, torch.tensor(taps, device=neighbours.device)]


def _product(feats: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    padded, matrix = _with_zero_row(feats), weights.flatten(0, 1)
    out = feats.new_empty(len(table), matrix.shape[1])
    for rows in _chunks(table, feats):
        torch.mm(_neighbourhoods(padded, table[rows]), matrix, out=out[rows])
    return out


def _weight_gradient(feats: Tensor, grad: Tensor, table: Tensor, weights: Tensor) -> Tensor:
    padded = _with_zero_row(feats)
    total = torch.zeros_like(weights.flatten(0, 1), dtype=torch.promote_types(weights.dtype, torch.float32))
    for rows in _chunks(table, feats):
        total += _neighbourhoods(padded, table[rows]).T @ grad[rows]
    return total.to(weights.dtype).view(weights.shape)


def _with_zero_row(feats: Tensor) -> Tensor:
    return torch.cat([feats, feats.new_zeros(1, feats.shape[1])])


def _neighbourhoods(padded: Tensor, table: Tensor) -> Tensor:
    return padded.index_select(0, table.flatten()).view(len(table), -1)


def _chunks(table: Tensor, feats: Tensor) -> list[slice]:
    row = table.shape[1] * feats.shape[1] * feats.element_size()
    size = max(1, GATHERED_BYTES.get(feats.device.type, GATHERED_BYTES_ELSEWHERE) // row)
    return [slice(start, start + size) for start in range(0, len(table), size)]


def _parent_taps(device: torch.device) -> tuple[Float[Tensor, " child tap offset"], list[list[int]]]:
    """Which of a child's 27 offsets fall on each of the 8 parents it sees, and those parents' own offsets."""
    # along one axis the lower child sees its parent's lower neighbour once and its parent twice
    along = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], device=device)
    sums = torch.einsum("adg,beh,cfi->abcdefghi", along, along, along)
    columns = [
        [((x + i) * 3 + y + j) * 3 + z + k for i in range(2) for j in range(2) for k in range(2)]
        for x in range(2)
        for y in range(2)
        for z in range(2)
    ]
    return sums.reshape(CHILDREN, CHILDREN, NEIGHBOURHOOD), columns
