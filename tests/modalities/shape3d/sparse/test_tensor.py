import pytest
import torch

from fewstep.modalities.shape3d.sparse.tensor import SparseTensor, Voxels


def active(resolution: int, *, batch_size: int = 2, share: float = 0.2) -> Voxels:
    coords = (torch.rand(batch_size, resolution, resolution, resolution) < share).nonzero().int()
    return Voxels(coords, batch_size, resolution)


def test_both_ways_to_find_neighbours_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = active(7)
    looked_up = voxels.neighbours
    monkeypatch.setattr("fewstep.modalities.shape3d.sparse.tensor.LARGEST_LOOKUP", 0)
    searched = Voxels(voxels.coords, 2, 7).neighbours
    assert torch.equal(looked_up, searched)
    assert not bool((looked_up == len(voxels)).all(1).any())


def test_neighbours_do_not_reach_over_faces_or_into_other_samples() -> None:
    corners = torch.tensor([[0, 3, 3, 3], [1, 0, 0, 0], [1, 0, 0, 3], [1, 0, 1, 0]])
    voxels = Voxels(corners.int(), 2, 4)
    found = [(row, place) for row in range(4) for place in range(27) if voxels.neighbours[row, place] < 4]
    # besides themselves only the second and the last are neighbours: one step along y
    assert found == [(0, 13), (1, 13), (1, 16), (2, 13), (3, 10), (3, 13)]


def test_the_table_is_its_own_mirror_image() -> None:
    table = active(6).neighbours.long()
    rows, places = (table < len(table)).nonzero().unbind(1)
    assert torch.equal(table[table[rows, places], 26 - places], rows)


def test_the_table_of_a_subdivision_follows_from_that_of_the_parents() -> None:
    finer = active(5).finer
    assert torch.equal(finer.neighbours, Voxels(finer.coords, 2, 10).neighbours)


def test_coarser_voxels_are_in_order_and_know_their_children() -> None:
    voxels = active(8)
    coarse, parent = voxels.coarser(2)
    assert torch.equal(coarse.coords[parent][:, 1:], voxels.coords[:, 1:] // 2)
    assert torch.equal(coarse.index[parent], voxels.index)
    assert coarse.coords.tolist() == sorted(coarse.coords.tolist())
    assert voxels.coarser(2)[0] is coarse


def test_windows_hold_the_voxels_of_one_cube_and_one_sample() -> None:
    voxels = active(8)
    order, segments = voxels.windows(4, 2)
    for start, size in zip(segments.starts, segments.sizes, strict=True):
        inside = voxels.coords[order[start : start + size]]
        cubes = torch.cat([inside[:, :1], (inside[:, 1:] + 2) // 4], 1)
        assert len(cubes.unique(dim=0)) == 1
    assert len(segments) == len(
        torch.cat([voxels.coords[:, :1], (voxels.coords[:, 1:] + 2) // 4], 1).unique(dim=0)
    )


def test_a_sample_alone_and_in_a_batch_is_the_same() -> None:
    voxels = active(6)
    x = SparseTensor(torch.randn(len(voxels), 3), voxels)
    again = SparseTensor.batched([x.sample(0), x.sample(1)])
    assert torch.equal(again.coords, x.coords)
    assert torch.equal(again.feats, x.feats)


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ([[0, 0, 0, 4]], "reach from 0 to 4; resolution=4"),
        ([[0, 0, 0, -1]], "reach from -1"),
        ([[0, 0, 0, 1], [0, 0, 0, 1]], "1 voxels twice"),
        ([[1, 0, 0, 0]], r"\[0, 1\] voxels for batch_size=1"),
        ([[0, 0, 0]], "must be integers"),
    ],
)
def test_wrong_coordinates_are_an_error_that_names_them(coords: list[list[int]], message: str) -> None:
    given = torch.tensor(coords)
    with pytest.raises(ValueError, match=message):
        SparseTensor.of(torch.zeros(len(coords), 1), given, batch_size=1, resolution=4)


def test_samples_out_of_order_are_an_error() -> None:
    coords = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match="samples in order"):
        SparseTensor.of(torch.zeros(2, 1), coords, batch_size=2, resolution=4)
