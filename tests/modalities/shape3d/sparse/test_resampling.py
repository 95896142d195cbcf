import pytest
import torch

from fewstep.modalities.shape3d.sparse.resampling import downsample, subdivide, upsample
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor


def pair() -> SparseTensor:
    coords = torch.tensor([[0, 2, 2, 2], [0, 3, 2, 3]])
    return SparseTensor.of(torch.tensor([[2.0], [4.0]]), coords, batch_size=1, resolution=4)


@pytest.mark.parametrize(("include_self", "mean"), [(True, 2.0), (False, 3.0)])
def test_the_mean_of_two_children_counts_the_zero_it_started_from(include_self: bool, mean: float) -> None:
    coarse = downsample(pair(), pool_include_self=include_self)
    assert coarse.feats.tolist() == [[mean]]
    assert coarse.coords.tolist() == [[0, 1, 1, 1]]
    assert coarse.resolution == 2


def test_going_down_and_up_gives_every_voxel_its_parents_features() -> None:
    coords = (torch.rand(2, 6, 6, 6) < 0.4).nonzero()
    x = SparseTensor.of(torch.randn(len(coords), 3), coords, batch_size=2, resolution=6)
    coarse = downsample(x)
    back = upsample(coarse, x.voxels)
    assert back.voxels is x.voxels
    parent = x.voxels.coarser(2)[1]
    assert torch.equal(back.feats, coarse.feats[parent])


def test_going_up_to_voxels_that_one_does_not_come_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="not the coarser ones"):
        upsample(downsample(pair()), pair().voxels)


def test_a_voxel_is_divided_into_eight_with_z_fastest() -> None:
    fine = subdivide(pair())
    assert fine.coords[:3].tolist() == [[0, 4, 4, 4], [0, 4, 4, 5], [0, 4, 5, 4]]
    assert fine.coords[8].tolist() == [0, 6, 4, 6]
    assert fine.feats[:, 0].tolist() == [2.0] * 8 + [4.0] * 8
    assert fine.resolution == 8
