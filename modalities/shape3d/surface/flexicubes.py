"""FlexiCubes (Shen et al., SIGGRAPH 2023) on the cells near a surface.

Of the whole grid there is one number per point, by which what is known is found; all else is kept for the
cells near the surface only.

Signed distances are negative inside. A cell's corners, and what is said of them, are numbered as in
``tables``. Axis names: ``cell`` (the active cells that are given), ``cube`` (those that the surface passes),
``edge`` (crossed edges of cubes, each cube's own), ``vertex``, ``face``.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor
from torch.nn import functional as F

from fewstep.modalities.shape3d.surface.tables import AXES, CORNERS, EDGES, JOINS, tables

OUTSIDE = 1.0  # signed distance at corners of which no active cell knows
EPSILON = 1e-8


@dataclass(frozen=True, eq=False)
class Cells:
    """The active cells of a grid of ``resolution`` cells per axis, and what a decoder says of them.

    Args:
        coords: ``[N, 3]``, distinct, in [0, resolution).
        sdf: signed distances at the corners; those of a corner that several cells share are averaged.
        deform: displacements of the corners before tanh, averaged likewise.
        weights: raw weights: 12 of edges (beta, in the order of ``EDGES``), 8 of corners (alpha), 1 of the
            split of quads (gamma).
        colours: raw colours of the corners, and what else there is to know; averaged likewise; None for none.
    """

    coords: Int64[Tensor, " cell 3"]
    sdf: Float[Tensor, " cell 8"]
    deform: Float[Tensor, " cell 8 3"]
    weights: Float[Tensor, " cell 21"]
    resolution: int
    colours: Float[Tensor, " cell 8 colour"] | None = None

    def __post_init__(self) -> None:
        low, high = (int(self.coords.min()), int(self.coords.max())) if len(self.coords) else (0, 0)
        if low < 0 or high >= self.resolution:
            raise ValueError(
                f"coords from {low} to {high} do not lie in a grid of resolution={self.resolution}; "
                f"give cells from 0 to {self.resolution - 1}"
            )
        taken = torch.zeros(self.resolution**3, dtype=torch.bool, device=self.coords.device)
        taken[_code(self.coords, self.resolution)] = True
        if int(taken.sum()) != len(self.coords):
            raise ValueError(f"coords name some of {len(self.coords)} cells twice; give each once")


@dataclass(frozen=True, eq=False)
class Surface:
    """Triangles in [-0.5, 0.5]^3, counter-clockwise seen from outside.

    Args:
        vertices: positions.
        faces: numbers of their vertices.
        colours: of the vertices, in (0, 1), in the channels that the cells have; None for none.
        deviation: for each crossed edge of a cube, how far its crossing's distance from the dual vertex is
            from the mean of that vertex's crossings; a regulariser. Empty where it was not asked for.
    """

    vertices: Float[Tensor, " vertex 3"]
    faces: Int64[Tensor, " face 3"]
    colours: Float[Tensor, " vertex colour"] | None
    deviation: Float[Tensor, " edge"]


@dataclass(frozen=True, eq=False)
class Corners:
    """What is known of grid points; of all others, that they lie outside.

    Args:
        coords: in [0, resolution].
        number: of each grid point among these; -1 for all others.
        values: averaged: signed distance, deformation, and colours if there are any.
    """

    coords: Int64[Tensor, " point 3"]
    number: Int32[Tensor, " grid"]
    values: Float[Tensor, " point value"]

    @property
    def sdf(self) -> Float[Tensor, " point"]:
        return self.values[:, 0]

    @property
    def deform(self) -> Float[Tensor, " point 3"]:
        return self.values[:, 1:4]

    @property
    def colours(self) -> Float[Tensor, " point colour"]:
        """Of no channels for cells without."""
        return self.values[:, 4:]

    def and_also(self, codes: Int64[Tensor, " more"], sdf: float, *, size: int) -> "Corners":
        """With more points of a grid of ``size`` per axis, all of one signed distance, neither moved nor
        coloured.
        """
        number, known = self.number.clone(), len(self.coords)
        number[codes] = torch.arange(known, known + len(codes), dtype=number.dtype, device=number.device)
        added = self.values.new_zeros(len(codes), self.values.shape[1])
        added[:, 0] = sdf
        coords = torch.cat([self.coords, _coords(codes, size)])
        return Corners(coords, number, torch.cat([self.values, added]))


def extract_surface(
    cells: Cells,
    *,
    fans: bool = False,
    solid: Int64[Tensor, " solid 3"] | None = None,
    deviation: bool = True,
) -> Surface:
    """The surface that runs through active cells and their neighbours.

    Cells that touch an active one can hold surface too, since corners of which nobody knows lie outside.
    Every result is differentiable with respect to what the decoder says.

    Args:
        fans: four triangles around the middle of each quad, whose gradient does not depend on how quads are
            split; for training.
        solid: other cells, of which no decoder speaks, that lie within the object: those of their corners
            of which nobody knows lie inside.
        deviation: whether it is wanted, as for training.
    """
    corners = averaged_corners(cells)
    size = cells.resolution
    if solid is not None and len(solid):
        wanted = _corner_codes(solid, size + 1).flatten()
        corners = corners.and_also(wanted[corners.number[wanted] < 0].unique(), -OUTSIDE, size=size + 1)
    passed = _passed_cells(corners, size)
    return surface_of_cubes(cells, corners, passed, fans=fans, deviation=deviation)


def _passed_cells(corners: Corners, size: int) -> Int64[Tensor, " candidate 3"]:
    """Cells with a corner inside and one outside, found on the whole grid, where a point takes one byte."""
    inside = torch.zeros((size + 1) ** 3, dtype=torch.bool, device=corners.coords.device)
    inside[_code(corners.coords, size + 1)] = corners.sdf.detach() < 0
    some = every = inside.view(size + 1, size + 1, size + 1)
    for axis in range(3):  # along one axis after another, the cells' lower and upper ends are joined
        some = some.narrow(axis, 0, size) | some.narrow(axis, 1, size)
        every = every.narrow(axis, 0, size) & every.narrow(axis, 1, size)
    return torch.nonzero(some & ~every)


def averaged_corners(cells: Cells) -> Corners:
    """The mean over the cells around each grid point of what they say of it."""
    size = cells.resolution + 1
    number, codes = _numbered(_corner_codes(cells.coords, size).flatten(), size)
    coords = _coords(codes, size)
    around = _cells_around(coords, cells)

    def total(values: Float[Tensor, " cell 8 value"]) -> Float[Tensor, " point value"]:
        rows = values.new_zeros(len(values) + 1, *values.shape[1:])
        rows[:-1] = values
        # each point gathers its rows: in less than half the time in which each row is added to its point
        return F.embedding_bag(around, rows.flatten(0, 1), mode="sum")

    said = [torch.stack([torch.ones_like(cells.sdf), cells.sdf], dim=-1), cells.deform]
    said += [] if cells.colours is None else [cells.colours]
    totals = torch.cat([total(values) for values in said], dim=1)
    return Corners(coords, number, totals[:, 1:] / totals[:, :1])


def _cells_around(points: Int64[Tensor, " point 3"], cells: Cells) -> Int32[Tensor, " point 8"]:
    """For each point and corner the row, cell by cell and corner by corner, of the active cell that has the
    point there; a row after the last one where there is none.
    """
    size, count = cells.resolution + 2, len(cells.coords)  # with an empty layer around the grid
    first = torch.full((size**3,), 8 * count, dtype=torch.int32, device=points.device)
    first[_code(cells.coords + 1, size)] = torch.arange(
        0, 8 * count, 8, dtype=torch.int32, device=points.device
    )
    codes = _code(points + 1, size)[:, None] - _code(CORNERS, size).to(points.device)
    rows = first.index_select(0, codes.flatten()).view(codes.shape)
    return rows + torch.arange(8, dtype=torch.int32, device=points.device)


def surface_of_cubes(
    cells: Cells,
    corners: Corners,
    candidates: Int64[Tensor, " candidate 3"],
    *,
    fans: bool,
    deviation: bool = True,
) -> Surface:
    """The surface in the candidate cells, which are distinct."""
    size, device = cells.resolution, candidates.device
    codes = _corner_codes(candidates, size + 1)
    place, known = _found(corners.number, codes)
    inside = known & (corners.sdf.detach() < 0)[place]
    mixed = inside.any(-1) & ~inside.all(-1)
    cubes = candidates
    if not mixed.all():
        cubes, codes, place, known, inside = (x[mixed] for x in (cubes, codes, place, known, inside))
    if not known.all():
        corners = corners.and_also(codes[~known].unique(), OUTSIDE, size=size + 1)
        place = corners.number[codes].long()

    beta, alpha, gamma = _weights(cells, cubes)
    configuration = (inside.long() << torch.arange(8, device=device)).sum(-1)
    cube, edge, vertex, vertex_cube = _dual_vertices(configuration, cubes, size)
    low, high = (8 * cube + end.to(device)[edge] for end in EDGES.unbind(-1))  # among all cubes' corners
    low_point, high_point = (place.flatten().index_select(0, end) for end in (low, high))
    # the zero of alpha * sdf, linear along the edge; a convex combination, as the signs differ
    near, far = (
        alpha.flatten().index_select(0, end) * corners.sdf.index_select(0, point)
        for end, point in ((low, low_point), (high, high_point))
    )
    share = (far / (far - near))[:, None]
    moved = (1 - EPSILON) / (2 * size) * torch.tanh(corners.deform)
    position = corners.coords / size - 0.5 + moved
    points = torch.cat([position, torch.sigmoid(corners.colours)], dim=1)
    crossing = share * points.index_select(0, low_point) + (1 - share) * points.index_select(0, high_point)

    count = len(vertex_cube)
    weight = beta.flatten().index_select(0, 12 * cube + edge)[:, None]
    weighted = torch.cat([weight * crossing, weight], dim=1)
    total = weighted.new_zeros(count, weighted.shape[1]).index_add(0, vertex, weighted)
    means = total[:, :-1] / total[:, -1:]
    vertices, colours = means[:, :3], None if cells.colours is None else means[:, 3:]

    spread = _deviation(crossing[:, :3], vertices, vertex) if deviation else crossing.new_zeros(0)
    lower_inside = inside.flatten().index_select(0, low)
    quads = _quads(_code(cubes, size + 1), cube, edge, vertex, lower_inside, size)
    gammas = gamma[vertex_cube][quads]
    if fans:
        return _fanned(vertices, quads, gammas, colours, spread)
    return Surface(vertices, _split(quads, gammas), colours, spread)


def _deviation(
    crossing: Float[Tensor, " edge 3"], vertices: Float[Tensor, " vertex 3"], vertex: Int64[Tensor, " edge"]
) -> Float[Tensor, " edge"]:
    """See `Surface`."""
    distance = (crossing - vertices[vertex]).norm(dim=-1)
    count = torch.bincount(vertex, minlength=len(vertices))
    mean = distance.new_zeros(len(vertices)).index_add(0, vertex, distance) / count
    return (distance - mean[vertex]).abs()


def _weights(cells: Cells, cubes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Beta ``[cube, 12]``, alpha ``[cube, 8]`` and gamma ``[cube]``; raw weights of inactive cells are 0."""
    number = torch.full((cells.resolution**3,), -1, dtype=torch.int32, device=cubes.device)
    own = _code(cells.coords, cells.resolution)
    number[own] = torch.arange(len(own), dtype=torch.int32, device=cubes.device)
    place, active = _found(number, _code(cubes, cells.resolution))
    raw = torch.where(active[:, None], cells.weights[place], 0.0)
    beta, alpha, gamma = raw.split((12, 8, 1), dim=-1)
    return (
        torch.tanh(beta) * 0.99 + 1,
        torch.tanh(alpha) * 0.99 + 1,
        torch.sigmoid(gamma[:, 0]) * 0.99 + 0.005,
    )


def _dual_vertices(
    configuration: Int64[Tensor, " cube"], cubes: Int64[Tensor, " cube 3"], size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each crossed edge of a cube: the cube, the edge and the dual vertex; for each vertex its cube."""
    found = tables()
    device = configuration.device
    knotted = found.knotted.to(device)[configuration]
    join = torch.zeros_like(configuration)
    cube = torch.nonzero(knotted >= 0).flatten()
    if len(cube):
        # where the cell beyond a knotted face is knotted at the same face, both join it the other way
        face = knotted[cube]
        step = F.one_hot(face // 2, 3) * (2 * (face % 2) - 1)[:, None]
        codes, order = _code(cubes[cube], size).sort()
        beyond = cubes[cube] + step
        wanted = _code(beyond.clamp(0, size - 1), size)
        place = torch.searchsorted(codes, wanted).clamp(max=len(codes) - 1)
        exists = (codes[place] == wanted) & (beyond == beyond.clamp(0, size - 1)).all(-1)
        both = exists & (face[order[place]] == face ^ 1)
        join[cube[both]] = 1 + face[both]
    loops = found.loops.to(device)[configuration, join]
    first = loops.cumsum(0) - loops
    loop = found.loop.view(256, JOINS, 12).to(device)[configuration, join]
    cube, edge = torch.nonzero(loop >= 0).unbind(-1)
    vertex_cube = torch.repeat_interleave(torch.arange(len(cubes), device=device), loops)
    return cube, edge, first[cube] + loop[cube, edge], vertex_cube


def _quads(
    lowest: Int64[Tensor, " cube"],
    cube: Int64[Tensor, " edge"],
    edge: Int64[Tensor, " edge"],
    vertex: Int64[Tensor, " edge"],
    lower_inside: Bool[Tensor, " edge"],
    size: int,
) -> Int64[Tensor, " quad 4"]:
    """The dual vertices around each crossed edge of the grid that four cubes share, seen from outside.

    Args:
        lowest: code of each cube's lowest corner.
    """
    low = CORNERS[EDGES[:, 0]]
    # the cube's place around the edge: which of the two other axes, in cyclic order, it lies below
    second, third = (low.gather(1, ((AXES + step) % 3)[:, None])[:, 0] for step in (1, 2))
    turn = torch.where(third == 1, 1 - second, 2 + second)  # (-, -), (+, -), (+, +), (-, +)
    own = 4 * (3 * _code(low, size + 1) + AXES) + turn
    key, order = (12 * lowest[cube] + own.to(edge.device)[edge]).sort()
    group = key // 4  # an edge of the grid; of its four cubes the last is three after the first
    first = torch.nonzero(group[3:] == group[:-3])
    around = order[first + torch.arange(4, device=edge.device)]
    quads, outwards = vertex[around], lower_inside[around[:, 0]]
    quads = torch.where(outwards[:, None], quads, quads.flip(1))
    # where quads start matters for the split of those with equal weights only; this is as in TRELLIS
    along_y = group[first] % 3 == 1
    return torch.where(along_y, quads, quads.roll(1, 1))


def _split(quads: Int64[Tensor, " quad 4"], gammas: Tensor) -> Int64[Tensor, " face 3"]:
    """Two triangles per quad, split along the diagonal with the larger product of weights."""
    first = (gammas[:, 0] * gammas[:, 2] > gammas[:, 1] * gammas[:, 3])[:, None]
    one = torch.where(first, quads[:, [0, 1, 2]], quads[:, [0, 1, 3]])
    other = torch.where(first, quads[:, [0, 2, 3]], quads[:, [3, 1, 2]])
    return torch.stack([one, other], dim=1).flatten(0, 1)


def _fanned(
    vertices: Tensor, quads: Tensor, gammas: Tensor, colours: Tensor | None, deviation: Tensor
) -> Surface:
    """Four triangles per quad around the mean of its diagonals' middles."""
    first, second = gammas[:, 0] * gammas[:, 2], gammas[:, 1] * gammas[:, 3]
    share = (first / (first + second + EPSILON))[:, None]

    def with_middles(of_vertices: Tensor) -> Tensor:
        a, b, c, d = (of_vertices[quads[:, corner]] for corner in range(4))
        return torch.cat([of_vertices, share * (a + c) / 2 + (1 - share) * (b + d) / 2])

    middle = len(vertices) + torch.arange(len(quads), device=quads.device)
    around = torch.stack([quads, quads.roll(-1, 1), middle[:, None].expand(-1, 4)], dim=-1)
    painted = None if colours is None else with_middles(colours)
    return Surface(with_middles(vertices), around.flatten(0, 1), painted, deviation)


def _code(coords: Int64[Tensor, " *shape 3"], size: int) -> Int64[Tensor, " *shape"]:
    return (coords[..., 0] * size + coords[..., 1]) * size + coords[..., 2]


def _corner_codes(coords: Int64[Tensor, " cell 3"], size: int) -> Int64[Tensor, " cell 8"]:
    """Of the corners of cells, on the grid of points."""
    return _code(coords, size)[:, None] + _code(CORNERS, size).to(coords.device)


def _coords(codes: Int64[Tensor, " cell"], size: int) -> Int64[Tensor, " cell 3"]:
    return torch.stack([codes // (size * size), codes // size % size, codes % size], dim=-1)


def _numbered(
    codes: Int64[Tensor, " some"], size: int
) -> tuple[Int32[Tensor, " grid"], Int64[Tensor, " distinct"]]:
    """Numbers of the codes that occur, ascending, by code, -1 for others; and the codes by number."""
    number = torch.full((size**3,), -1, dtype=torch.int32, device=codes.device)
    number[codes] = 0
    distinct = torch.nonzero(number == 0).flatten()
    number[distinct] = torch.arange(len(distinct), dtype=torch.int32, device=codes.device)
    return number, distinct


def _found(
    number: Int32[Tensor, " grid"], codes: Int64[Tensor, " *shape"]
) -> tuple[Int64[Tensor, " *shape"], Bool[Tensor, " *shape"]]:
    """Numbers of codes, 0 for those without one, and whether they have one."""
    found = number[codes].long()
    return found.clamp(min=0), found >= 0
