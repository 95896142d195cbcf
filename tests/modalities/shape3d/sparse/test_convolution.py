import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.modalities.shape3d.sparse.convolution import PointwiseConv3d, SubmanifoldConv3d
from fewstep.modalities.shape3d.sparse.resampling import subdivide
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor

RESOLUTION = 16
ROUNDING = 1e-5  # float32 sums of 27 * 6 terms of size 1


@pytest.fixture
def occupied() -> Tensor:
    """Two samples, a fifth of whose places are active."""
    return torch.rand(2, RESOLUTION, RESOLUTION, RESOLUTION) < 0.2


@pytest.fixture
def x(occupied: Tensor) -> SparseTensor:
    coords = occupied.nonzero()
    feats = torch.randn(len(coords), 6)
    return SparseTensor.of(feats, coords, batch_size=2, resolution=RESOLUTION)


def dense(x: SparseTensor) -> Tensor:
    b, i, j, k = x.coords.long().unbind(1)
    grid = x.feats.new_zeros(x.batch_size, *[x.resolution] * 3, x.feats.shape[1])
    return grid.index_put((b, i, j, k), x.feats).movedim(-1, 1)


def dense_convolution(conv: SubmanifoldConv3d, x: SparseTensor) -> Tensor:
    b, i, j, k = x.coords.long().unbind(1)
    out = F.conv3d(dense(x), conv.conv.weight.permute(0, 4, 1, 2, 3), conv.conv.bias, padding=1)
    return out.movedim(1, -1)[b, i, j, k]


def test_a_submanifold_convolution_is_a_dense_one_on_a_grid_that_is_zero_elsewhere(x: SparseTensor) -> None:
    conv = SubmanifoldConv3d(6, 5)
    torch.nn.init.normal_(conv.conv.bias)
    torch.testing.assert_close(conv(x).feats, dense_convolution(conv, x), atol=ROUNDING, rtol=ROUNDING)


def test_its_gradients_are_those_of_the_dense_one(x: SparseTensor) -> None:
    conv, feats = SubmanifoldConv3d(6, 5), x.feats.requires_grad_()
    towards = torch.randn(len(feats), 5)
    leaves = [feats, conv.conv.weight, conv.conv.bias]
    found = torch.autograd.grad((conv(x).feats * towards).sum(), leaves)
    expected = torch.autograd.grad((dense_convolution(conv, x) * towards).sum(), leaves)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, atol=1e-3, rtol=1e-4)  # sums over 1,600 voxels


def test_its_forward_mode_derivative_is_that_of_a_linear_map(x: SparseTensor) -> None:
    conv, tangent = SubmanifoldConv3d(6, 5), torch.randn_like(x.feats)
    derivative = torch.func.jvp(lambda feats: conv(x.replace(feats)).feats, (x.feats,), (tangent,))[1]
    with torch.no_grad():
        expected = conv(x.replace(tangent)).feats - conv.conv.bias
    torch.testing.assert_close(derivative, expected, atol=ROUNDING, rtol=ROUNDING)


def test_convolving_a_subdivision_by_joined_taps_changes_nothing(x: SparseTensor) -> None:
    conv = SubmanifoldConv3d(6, 5)
    torch.testing.assert_close(
        conv.subdivided(x).feats, conv(subdivide(x)).feats, atol=ROUNDING, rtol=ROUNDING
    )
    assert conv.subdivided(x).voxels is subdivide(x).voxels


def test_the_gradients_of_joined_taps_are_the_same_too(x: SparseTensor) -> None:
    conv, feats = SubmanifoldConv3d(6, 5), x.feats.requires_grad_()
    towards = torch.randn(8 * len(feats), 5)
    leaves = [feats, conv.conv.weight]
    found = torch.autograd.grad((conv.subdivided(x).feats * towards).sum(), leaves)
    expected = torch.autograd.grad((conv(subdivide(x)).feats * towards).sum(), leaves)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, atol=1e-3, rtol=1e-4)


def test_a_pointwise_weight_is_read_as_spconv_reads_it(x: SparseTensor) -> None:
    conv = PointwiseConv3d(6, 5)
    weight = conv.conv.weight
    assert weight.shape == (5, 1, 1, 1, 6)
    torch.testing.assert_close(conv(x).feats, x.feats @ weight.view(6, 5))


def test_without_the_flag_it_is_a_linear_layer(x: SparseTensor) -> None:
    conv = PointwiseConv3d(6, 5, reinterpret=False)
    expected = F.linear(x.feats, conv.conv.weight.view(5, 6))
    torch.testing.assert_close(conv(x).feats, expected)
    assert not torch.allclose(expected, x.feats @ conv.conv.weight.view(6, 5))


@pytest.mark.parametrize("chunk", [1, 2**12])
def test_the_size_of_the_chunks_does_not_matter(
    x: SparseTensor, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = SubmanifoldConv3d(6, 5)
    whole = conv(x).feats
    monkeypatch.setattr("fewstep.modalities.shape3d.sparse.convolution.GATHERED_BYTES", {"cpu": chunk})
    torch.testing.assert_close(conv(x).feats, whole, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("size", [1, 3])
def test_both_convolutions_are_those_of_spconv(occupied: Tensor, size: int) -> None:
    spconv = pytest.importorskip(
        "spconv.pytorch", reason="spconv is compared with only where it is installed"
    )
    coords = occupied.nonzero().int().contiguous()  # spconv reads memory and not strides
    theirs = spconv.SubMConv3d(6, 5, size)
    feats = torch.randn(len(coords), 6)
    expected = theirs(spconv.SparseConvTensor(feats, coords, [RESOLUTION] * 3, 2)).features
    conv = SubmanifoldConv3d(6, 5) if size == 3 else PointwiseConv3d(6, 5)
    conv.conv.load_state_dict(theirs.state_dict())
    found = conv(SparseTensor.of(feats, coords, batch_size=2, resolution=RESOLUTION)).feats
    torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=ROUNDING)
