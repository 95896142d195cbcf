"""FlexiCubes: known sizes, closed surfaces for any signs, the sparse one held against all cells."""

import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from fewstep.modalities.shape3d.surface import flexicubes
from fewstep.modalities.shape3d.surface.dense import cells_of_grid, extract_surface_densely
from fewstep.modalities.shape3d.surface.flexicubes import Cells, Surface, extract_surface
from fewstep.modalities.shape3d.surface.tables import CORNERS, EDGES, tables

RADIUS = 0.35


def points(resolution: int) -> Tensor:
    line = torch.linspace(-0.5, 0.5, resolution + 1, dtype=torch.float64)
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)


def ball(resolution: int) -> Surface:
    return extract_surface_densely(cells_of_grid(points(resolution).norm(dim=-1) - RADIUS))


def area_and_volume(surface: Surface) -> tuple[float, float]:
    a, b, c = surface.vertices[surface.faces].unbind(1)
    normals = torch.linalg.cross(b - a, c - a)
    return float(normals.norm(dim=-1).sum() / 2), float((a * normals).sum() / 6)


def half_edges(surface: Surface) -> Tensor:
    """Directed edges of all triangles as numbers."""
    ends = torch.cat([surface.faces[:, [0, 1]], surface.faces[:, [1, 2]], surface.faces[:, [2, 0]]])
    return ends[:, 0] * len(surface.vertices) + ends[:, 1]


def assert_closed(surface: Surface) -> None:
    """Every edge belongs to two triangles, which run along it in opposite directions."""
    there = half_edges(surface)
    assert len(torch.unique(there)) == len(there)
    ends = torch.stack([there // len(surface.vertices), there % len(surface.vertices)])
    back = ends[1] * len(surface.vertices) + ends[0]
    assert torch.equal(there.sort().values, back.sort().values)


def euler_number(surface: Surface) -> int:
    used = len(torch.unique(surface.faces))
    return used - len(half_edges(surface)) // 2 + len(surface.faces)


@pytest.mark.parametrize(
    ("resolution", "vertices", "faces", "area", "volume", "radial"),
    [
        (16, 584, 1164, -2.01, -3.59, 0.061),
        (32, 2408, 4812, -0.490, -0.908, 0.031),
        (64, 9488, 18972, -0.1217, -0.2276, 0.016),
    ],
)
def test_a_ball_has_the_known_size(
    resolution: int, vertices: int, faces: int, area: float, volume: float, radial: float
) -> None:
    surface = ball(resolution)
    assert (len(surface.vertices), len(surface.faces)) == (vertices, faces)
    found_area, found_volume = area_and_volume(surface)
    assert 100 * (found_area / (4 * math.pi * RADIUS**2) - 1) == pytest.approx(area, abs=0.006)
    assert 100 * (found_volume / (4 / 3 * math.pi * RADIUS**3) - 1) == pytest.approx(volume, abs=0.006)
    assert float((surface.vertices.norm(dim=-1) - RADIUS).abs().max()) * resolution < radial
    assert_closed(surface)
    assert euler_number(surface) == 2


def test_halving_the_cells_quarters_the_error() -> None:
    errors = [area_and_volume(ball(resolution))[1] - 4 / 3 * math.pi * RADIUS**3 for resolution in (16, 32)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.03)


def test_a_ring_has_a_hole() -> None:
    x, y, z = points(32).unbind(-1)
    surface = extract_surface_densely(cells_of_grid(((x * x + y * y).sqrt() - 0.28).hypot(z) - 0.12))
    assert_closed(surface)
    assert euler_number(surface) == 0


def test_balls_that_touch_diagonally_stay_closed() -> None:
    grid = points(16)
    apart = 0.3 / math.sqrt(2) * torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    for gap in (0.0, 0.01, 0.03, 0.05):
        sdf = torch.minimum((grid - apart).norm(dim=-1), (grid + apart).norm(dim=-1)) - 0.15 + gap
        assert_closed(extract_surface_densely(cells_of_grid(sdf)))


def random_grid(seed: int, resolution: int = 6) -> Tensor:
    """Random signs, outside at the border: every ambiguous cube beside every other."""
    sdf = torch.ones(resolution + 1, resolution + 1, resolution + 1, dtype=torch.float64)
    inner = torch.randn(
        *[resolution - 1] * 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    sdf[1:-1, 1:-1, 1:-1] = inner
    return sdf


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_any_signs_give_a_closed_surface(seed: int) -> None:
    assert_closed(extract_surface_densely(cells_of_grid(random_grid(seed))))


def test_without_joining_knotted_faces_anew_edges_have_four_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    known = tables()
    never = replace(known, knotted=torch.full_like(known.knotted, -1))
    monkeypatch.setattr(flexicubes, "tables", lambda: never)
    broken = 0
    for seed in range(20):
        there = half_edges(extract_surface_densely(cells_of_grid(random_grid(seed))))
        broken += len(torch.unique(there)) < len(there)
    assert broken > 10


def test_the_tables_join_every_crossed_edge_to_one_loop() -> None:
    known = tables()
    inside = torch.arange(256)[:, None] >> torch.arange(8) & 1
    crossed = inside[:, EDGES[:, 0]] != inside[:, EDGES[:, 1]]
    assert torch.equal(known.loop >= 0, crossed[:, None].expand(-1, 7, -1))
    assert torch.equal(known.loops[[0, 255]], torch.zeros(2, 7, dtype=torch.long))
    assert int(known.loops[:, 0].max()) == 4  # four corners, none beside another
    assert int(known.is_knotted.sum()) == 36
    joined = known.loops[known.is_knotted, 1 + known.knotted[known.is_knotted]]
    assert torch.equal(joined, known.loops[known.is_knotted, 0] + 1)


def random_cells(seed: int, resolution: int = 7, share: float = 0.35, colours: bool = True) -> Cells:
    """What an untrained decoder might say of some cells, float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    everywhere = torch.cartesian_prod(*[torch.arange(resolution)] * 3)
    coords = everywhere[torch.rand(len(everywhere), generator=generator) < share]
    coords = coords[torch.randperm(len(coords), generator=generator)]
    count = len(coords)
    return Cells(
        coords=coords,
        sdf=draw(count, 8),
        deform=draw(count, 8, 3),
        weights=draw(count, 21),
        resolution=resolution,
        colours=draw(count, 8, 6) if colours else None,
    )


def canonical(surface: Surface) -> tuple[Tensor, Tensor]:
    """Vertices in an order of their own, and triangles by their least corner first, sorted."""
    order = torch.tensor(sorted(range(len(surface.vertices)), key=lambda i: surface.vertices[i].tolist()))
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    faces = [min(f[i:] + f[:i] for i in range(3)) for f in rank[surface.faces].tolist()]
    return surface.vertices[order], torch.tensor(sorted(faces)).view(-1, 3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.9), fans=st.booleans())
def test_the_sparse_surface_is_that_of_all_cells(seed: int, share: float, fans: bool) -> None:
    cells = random_cells(seed, share=share)
    sparse, dense = extract_surface(cells, fans=fans), extract_surface_densely(cells, fans=fans)
    for one, other in zip(canonical(sparse), canonical(dense), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for name in ("colours", "deviation"):
        torch.testing.assert_close(
            getattr(sparse, name).flatten().sort().values, getattr(dense, name).flatten().sort().values
        )


def test_without_the_cells_around_active_ones_surface_is_missing() -> None:
    """The control of the test above."""
    cells = random_cells(1)
    alone = flexicubes.surface_of_cubes(cells, flexicubes.averaged_corners(cells), cells.coords, fans=False)
    assert len(alone.faces) < 0.9 * len(extract_surface(cells).faces)


def test_the_order_of_cells_does_not_matter() -> None:
    cells = random_cells(3)
    order = torch.randperm(len(cells.coords))
    shuffled = Cells(
        coords=cells.coords[order],
        sdf=cells.sdf[order],
        deform=cells.deform[order],
        weights=cells.weights[order],
        resolution=cells.resolution,
        colours=None if cells.colours is None else cells.colours[order],
    )
    one, other = extract_surface(cells), extract_surface(shuffled)
    assert torch.equal(one.faces, other.faces)
    torch.testing.assert_close(one.vertices, other.vertices)


def test_shared_corners_are_averaged_and_displaced_by_less_than_half_a_cell() -> None:
    two = torch.tensor([[0, 0, 0], [1, 0, 0]])
    sdf = torch.ones(2, 8, dtype=torch.float64)
    sdf[0, 1::2], sdf[1, ::2] = -3.0, -1.0  # the corners that both cells have
    deform = torch.zeros(2, 8, 3, dtype=torch.float64)
    deform[0, 1::2, 0] = 1e3
    cells = Cells(two, sdf, deform, torch.zeros(2, 21, dtype=torch.float64), 4)
    corners = flexicubes.averaged_corners(cells)
    assert corners.sdf.tolist() == [1.0] * 4 + [-2.0] * 4 + [1.0] * 4
    moved = extract_surface(cells).vertices
    still = extract_surface(replace(cells, deform=torch.zeros_like(deform))).vertices
    shift = float((moved - still).abs().max()) * 4
    assert 0.1 < shift < 0.5


def test_colours_follow_the_weights_of_positions() -> None:
    """A colour that is linear in space, at corners that are not displaced, is that of the vertex's place."""
    grid = points(12)
    cells = cells_of_grid(grid.norm(dim=-1) - RADIUS)
    weights = torch.randn(
        len(cells.coords), 21, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    share = (0.3 + 0.4 * ((cells.coords[:, None] + CORNERS) / 12)).double()  # in (0.3, 0.7)
    colours = torch.logit(torch.cat([share, share], -1))
    surface = extract_surface(replace(cells, weights=weights, colours=colours))
    assert surface.colours is not None
    torch.testing.assert_close(surface.colours[:, :3], 0.3 + 0.4 * (surface.vertices + 0.5))
    torch.testing.assert_close(surface.colours[:, 3:], surface.colours[:, :3])


def test_gradients_are_those_of_finite_differences() -> None:
    cells = random_cells(5, resolution=4, share=0.3)

    def value(sdf: Tensor, deform: Tensor, weights: Tensor, colours: Tensor) -> Tensor:
        surface = extract_surface(
            replace(cells, sdf=sdf, deform=deform, weights=weights, colours=colours), fans=True
        )
        assert surface.colours is not None
        # deviations of two crossings are equal but for rounding, and have a kink where they are 0
        return (surface.vertices.pow(2).sum() + surface.colours.pow(2).sum())[None]

    inputs = [cells.sdf, cells.deform, cells.weights, cells.colours]
    torch.autograd.gradcheck(
        value, [x.clone().requires_grad_() for x in inputs if x is not None], fast_mode=True, atol=1e-6
    )


def test_the_deviation_is_zero_only_where_crossings_are_equally_far() -> None:
    cells = cells_of_grid(points(4)[..., 0] + 0.01)  # a plane: its dual vertices are squares' middles
    flat = extract_surface(cells).deviation
    assert float(flat.max()) < 1e-12
    assert float(ball(8).deviation.mean()) > 1e-3


def test_nothing_inside_is_an_empty_surface() -> None:
    surface = extract_surface(replace(random_cells(0), sdf=torch.ones_like(random_cells(0).sdf)))
    assert surface.vertices.shape == (0, 3)
    assert surface.faces.shape == (0, 3)


def test_impossible_cells_are_named() -> None:
    cells = random_cells(0)
    with pytest.raises(ValueError, match="do not lie in a grid of resolution=5"):
        replace(cells, resolution=5)
    with pytest.raises(ValueError, match="twice"):
        replace(cells, coords=cells.coords * 0)
