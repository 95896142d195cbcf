"""The surface that TRELLIS's own FlexiCubes, at commit 815e075, made of the cells of this file."""

import json
from pathlib import Path

import torch
from torch import Tensor

from fewstep.modalities.shape3d.surface.flexicubes import Cells, extract_surface

NUMBERS = json.loads((Path(__file__).parent / "reference_surface.json").read_text())
GOLDEN_ANGLE = 2.399963229728653
RESOLUTION = 4


def wave(shape: tuple[int, ...], pitch: float) -> Tensor:
    """Sines of multiples of an angle: neither periodic nor small."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(1, count + 1, dtype=torch.float64) * GOLDEN_ANGLE * pitch).view(shape)


def cells() -> Cells:
    """Half of a grid, so that every weight, inactive cells and unknown corners matter."""
    coords = (wave((RESOLUTION,) * 3, 0.7123) > 0).nonzero()
    count = len(coords)
    return Cells(
        coords=coords,
        sdf=wave((count, 8), 0.371),
        deform=wave((count, 8, 3), 0.613),
        weights=2 * wave((count, 21), 0.197),
        resolution=RESOLUTION,
        colours=3 * wave((count, 8, 6), 0.437),
    )


def canonical(vertices: Tensor, faces: Tensor, colours: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In an order that does not depend on that of the vertices."""
    order = torch.tensor(
        sorted(range(len(vertices)), key=lambda i: [round(x, 7) for x in vertices[i].tolist()])
    )
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    triangles = sorted(min(f[i:] + f[:i] for i in range(3)) for f in rank[faces].tolist())
    return vertices[order], torch.tensor(triangles), colours[order]


def test_vertices_colours_and_faces_are_those_of_trellis() -> None:
    found = extract_surface(cells())
    assert found.colours is not None
    vertices, faces, colours = canonical(found.vertices, found.faces, found.colours)
    torch.testing.assert_close(vertices, torch.tensor(NUMBERS["vertices"]).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(colours, torch.tensor(NUMBERS["colours"]).double(), rtol=0, atol=1e-5)
    assert faces.tolist() == NUMBERS["faces"]
