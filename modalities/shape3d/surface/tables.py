"""Which crossed edges of a cube share a dual vertex, for all 256 ways its corners can lie in or out.

Corners are numbered with bit 0 = x, bit 1 = y, bit 2 = z. The surface meets every face of the cube in
segments, each from one crossed edge to another; the segments of all faces close to loops, and each loop gets
one dual vertex (Nielson, Dual Marching Cubes, 2004). A face whose two inside corners lie diagonally could be
joined in two ways: here each segment goes around one inside corner.

Both cubes at a face read it alike, so that loops fit together. Where both segments of such a face belong to
the same loop in both cubes, four polygons would meet at one dual edge. There the face is joined the other
way, which splits either loop in two.
"""

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

CORNERS = torch.tensor([[corner & 1, corner >> 1 & 1, corner >> 2 & 1] for corner in range(8)])
"""Offsets ``[8, 3]`` of a cube's corners."""

EDGES = torch.tensor(
    [
        *[(0, 1), (1, 5), (4, 5), (0, 4)],
        *[(2, 3), (3, 7), (6, 7), (2, 6)],
        *[(0, 2), (1, 3), (5, 7), (4, 6)],
    ]
)
"""Corners ``[12, 2]`` at the lower and upper end of a cube's edges: around the face of the lower y, around
that of the upper y, and between them; the order in which TRELLIS's decoders give weights of edges.
"""

AXES = torch.tensor([0, 2, 0, 2, 0, 2, 0, 2, 1, 1, 1, 1])
"""The axis ``[12]`` along which each edge runs."""

FACES = 6  # face 2 * axis + side: side 0 is the lower one
JOINS = 1 + FACES  # no face joined the other way, or one of the six
Segment = tuple[int, int]


@dataclass(frozen=True)
class Tables:
    """What follows from the signs of a cube's corners; bit i of a configuration says that corner i is inside.

    Args:
        loop: number of the loop that an edge belongs to, -1 where it is not crossed; by configuration, by the
            face that is joined the other way (0 is none, 1 + f is face f), and by edge.
        loops: how many there are.
        knotted: the face whose two segments belong to one loop, -1 where there is none; by configuration.
    """

    loop: Int64[Tensor, " 256 7 12"]
    loops: Int64[Tensor, " 256 7"]
    knotted: Int64[Tensor, " 256"]

    @property
    def is_knotted(self) -> Bool[Tensor, " 256"]:
        return self.knotted >= 0


@cache
def tables() -> Tables:
    """Derived once."""
    loop = torch.full((256, JOINS, 12), -1)
    knotted = torch.full((256,), -1)
    for configuration in range(256):
        inside = [bool(configuration >> corner & 1) for corner in range(8)]
        for join in range(JOINS):
            loop[configuration, join] = torch.tensor(_loops(inside, join - 1))
        for face in range(FACES):
            segments = _segments(inside, face, otherwise=False)
            if len(segments) == 2 and len({int(loop[configuration, 0, edge]) for edge, _ in segments}) == 1:
                # two such faces in one cube would need two faces joined anew; there is no such configuration
                assert knotted[configuration] < 0
                knotted[configuration] = face
    return Tables(loop, loop.amax(-1) + 1, knotted)


def _loops(inside: list[bool], joined_otherwise: int) -> list[int]:
    """The loop of every edge."""
    beside: dict[int, list[int]] = {}
    for face in range(FACES):
        for one, other in _segments(inside, face, otherwise=face == joined_otherwise):
            beside.setdefault(one, []).append(other)
            beside.setdefault(other, []).append(one)
    found, loop = [-1] * 12, -1
    for start in sorted(beside):
        if found[start] >= 0:
            continue
        loop += 1
        todo = [start]
        while todo:
            edge = todo.pop()
            if found[edge] < 0:
                found[edge] = loop
                todo += beside[edge]
    return found


def _segments(inside: list[bool], face: int, *, otherwise: bool) -> list[Segment]:
    """Pairs of crossed edges that the surface joins on a face."""
    axis, side = divmod(face, 2)
    corners = [corner for corner in range(8) if (corner >> axis & 1) == side]
    edges = [
        (number, int(low), int(high))
        for number, (low, high) in enumerate(EDGES.tolist())
        if low in corners and high in corners
    ]
    crossed = [(number, low, high) for number, low, high in edges if inside[low] != inside[high]]
    if len(crossed) == 2:
        return [(crossed[0][0], crossed[1][0])]
    around = [corner for corner in corners if inside[corner] != otherwise]
    return [
        (one, other)
        for corner in (around if crossed else [])
        for one, other in [[number for number, *ends in crossed if corner in ends]]
    ]
