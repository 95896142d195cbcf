import torch
from torch import nn

from fewstep.modalities.shape3d.sparse.normalization import SparseGroupNorm
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor


def test_groups_are_normalised_within_their_sample() -> None:
    coords = (torch.rand(2, 6, 6, 6) < 0.3).nonzero()
    feats = 100 + 5 * torch.randn(len(coords), 8)  # far from zero, where squares would cancel
    x = SparseTensor.of(feats, coords, batch_size=2, resolution=6)
    own, torchs = SparseGroupNorm(4, 8), nn.GroupNorm(4, 8)
    for norm in (own, torchs):
        nn.init.constant_(norm.weight, 0.5)
        nn.init.constant_(norm.bias, 3.0)
    found = own(x).feats
    for rows in x.layout:
        expected = torchs(feats[rows].T[None])[0].T
        torch.testing.assert_close(found[rows], expected, atol=1e-4, rtol=1e-4)


def test_half_precision_is_normalised_in_float32() -> None:
    coords = (torch.rand(1, 6, 6, 6) < 0.3).nonzero()
    feats = (300 * torch.randn(len(coords), 8)).half()  # whose squares overflow
    x = SparseTensor.of(feats, coords, batch_size=1, resolution=6)
    found = SparseGroupNorm(4, 8)(x).feats
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float().std(), torch.tensor(1.0), atol=0.02, rtol=0)
