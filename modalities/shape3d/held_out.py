"""Held-out objects of the world of objects: a picture, and the surface that it shows."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import UInt8

from fewstep.modalities.objects.scene import Scene, numbered_scene, render
from fewstep.modalities.shape3d.data.voxels import SceneSurface
from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.metrics import SET_POINTS, SurfacePoints, surface_points
from fewstep.modalities.shape3d.surface.flexicubes import Cells, extract_surface
from fewstep.modalities.shape3d.surface.occupancy import Occupied, occupied
from fewstep.modalities.shape3d.surface.tables import CORNERS

CELLS = 128  # per axis of the true surfaces' grid
OCCUPANCY = 64
POINTS = 50_000  # on a surface: as many, drawn again, are 0.004 away, and nearly all within 0.01


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Object `number` of a split, as `fewstep render --world shapes` numbers them."""

    number: int
    split: str = "val"

    @cached_property
    def scene(self) -> Scene:
        return numbered_scene(self.number, split=self.split)

    @property
    def category(self) -> str:
        return self.scene.attributes.category

    @cached_property
    def picture(self) -> UInt8[np.ndarray, " 64 64 3"]:
        return render(self.scene)

    @cached_property
    def mesh(self) -> Mesh:
        """The surface as triangles, with its colours without light."""
        return true_mesh(self.scene, cells=CELLS)

    @cached_property
    def points(self) -> SurfacePoints:
        return surface_points(self.mesh, POINTS, seed=0)

    @cached_property
    def few_points(self) -> SurfacePoints:
        """For distances within sets."""
        return surface_points(self.mesh, SET_POINTS, seed=0)

    @cached_property
    def occupied(self) -> Occupied:
        """The cells of a grid of 64 whose middles lie inside."""
        return occupied(self.mesh, OCCUPANCY)


def true_mesh(scene: Scene, *, cells: int) -> Mesh:
    """The surface of a scene's object by FlexiCubes on its signed distances, coloured by its albedo."""
    surface = SceneSurface(scene)
    lattice = surface.lattice(cells)
    inside = lattice < 0
    corners = np.stack([_corner(inside, corner) for corner in CORNERS.tolist()], -1)
    coords = torch.from_numpy(np.argwhere(corners.any(-1)))  # those within too, or it would come out hollow
    at = coords[:, None] + CORNERS
    count = len(coords)
    found = extract_surface(
        Cells(
            coords=coords,
            sdf=torch.from_numpy(lattice)[at[..., 0], at[..., 1], at[..., 2]],
            deform=torch.zeros(count, 8, 3),
            weights=torch.zeros(count, 21),
            resolution=cells,
        )
    )
    vertices = found.vertices.numpy().astype(np.float32)
    colours = surface.colour(vertices).astype(np.float32) / 255
    return Mesh(vertices, found.faces.numpy().astype(np.int64), colours)


def _corner(lattice: np.ndarray, corner: list[int]) -> np.ndarray:
    """Of every cell, the value at one of its corners."""
    x, y, z = (slice(step, len(lattice) - 1 + step) for step in corner)
    return lattice[x, y, z]
