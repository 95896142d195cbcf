"""Chains as pictures: a tube from blue to red with what is near in front, and a map of distances."""

import colorsys

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from fewstep.modalities.protein.chains import Chain

MARGIN = 0.08  # of the picture's edge, on each side
WIDTH, OUTLINE = 1.5, 0.6  # angstrom: of the tube, and of the dark line beside it
OVERSAMPLING = 3
SUBDIVISIONS = 6  # of the way from one CA atom to the next
BLUE, RED = 0.66, 0.0  # hues
INK = (40, 40, 40)
STRUCTURE_COLOURS = {"H": (0.02, 0.72), "E": (0.58, 0.72), "-": (0.0, 0.0)}  # hue and saturation
STRUCTURE_WIDTHS = {"H": 1.25, "E": 1.25, "-": 0.7}  # of the tube's
FARTHEST = 3.0  # nanometre, where a map of distances is black


def chain_picture(
    chain: Chain, *, size: int = 240, scale: float | None = None, letters: str | None = None
) -> Float[Tensor, "3 size size"]:
    """One chain in angstrom, seen along its shortest axis; values in [0, 1].

    Args:
        chain: CA atoms.
        size: edge of the picture in pixels.
        scale: pixels per angstrom; by default the chain fills the picture.
        letters: H, E or - per residue, as ``SecondaryStructure.texts``: red and wide helices, blue strands
            and grey loops in place of blue to red.
    """
    points = _smooth(_seen_flat(chain))
    extent = float(np.abs(points[:, :2]).max()) + WIDTH
    edge = size * OVERSAMPLING
    zoom = edge * (0.5 - MARGIN) / extent if scale is None else scale * OVERSAMPLING
    image = Image.new("RGB", (edge, edge), "white")
    draw = ImageDraw.Draw(image)
    flat = points[:, :2] * zoom + edge / 2
    depth = points[:, 2]
    order = np.argsort((depth[:-1] + depth[1:]) / 2)
    nearness = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-6)
    colours, widths = _looks(nearness[:-1], letters)
    drawn: set[int] = set()

    def stroke(segment: int, colour: tuple[int, int, int], more: float) -> None:
        width = (widths[segment] + more) * zoom
        draw.line(flat[segment : segment + 2].ravel().tolist(), fill=colour, width=max(1, round(width)))
        for x, y in flat[segment : segment + 2]:
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=colour)

    for segment in order.tolist():
        stroke(segment, INK, OUTLINE)
        drawn.add(segment)
        # the line beside a segment would also run across those before and after it
        for near in {segment - 1, segment + 1} & drawn:
            stroke(near, colours[near], 0.0)
        stroke(segment, colours[segment], 0.0)
    shrunk = image.resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(shrunk).copy()).permute(2, 0, 1).float() / 255


def sheet(pictures: list[Float[Tensor, "3 size size"]], *, columns: int) -> Float[Tensor, "3 height width"]:
    """Pictures of one size in rows."""
    blank = torch.ones_like(pictures[0])
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    return torch.cat([torch.cat([*row, *[blank] * (columns - len(row))], 2) for row in rows], 1)


def distance_maps(x: Float[Tensor, " batch residue 3"]) -> Float[Tensor, " batch 1 3 residue residue"]:
    """Chains in nanometre as pictures of all distances, white at 0 and black from 3 on; differentiable."""
    squared = (x[:, :, None] - x[:, None]).square().sum(-1)
    near = (1 - (squared + 1e-6).sqrt() / FARTHEST).clamp(0.0, 1.0)
    return near[:, None, None].expand(-1, 1, 3, -1, -1)


def _looks(
    nearness: Float[np.ndarray, " segment"], letters: str | None
) -> tuple[list[tuple[int, int, int]], list[float]]:
    """Colour, lighter where nearer, and width of each segment in angstrom."""
    colours, widths = [], []
    for segment, near in enumerate(nearness.tolist()):
        hue, saturation = BLUE + (RED - BLUE) * segment / max(len(nearness) - 1, 1), 0.85
        width = WIDTH
        if letters is not None:
            letter = letters[round(segment / SUBDIVISIONS)]
            hue, saturation = STRUCTURE_COLOURS[letter]
            width *= STRUCTURE_WIDTHS[letter]
        red, green, blue = (
            int(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, 0.55 + 0.4 * near)
        )
        colours.append((red, green, blue))
        widths.append(width)
    return colours, widths


def _seen_flat(chain: Chain) -> Float[np.ndarray, " residue 3"]:
    centred = chain.astype(np.float64) - chain.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    axes[2] = np.cross(axes[0], axes[1])  # a view and not its mirror image
    return centred @ axes.T


def _smooth(points: Float[np.ndarray, " residue 3"]) -> Float[np.ndarray, " point 3"]:
    """A Catmull-Rom spline through all points."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    u = np.arange(SUBDIVISIONS)[:, None, None] / SUBDIVISIONS
    before, start, stop, after = (padded[k : len(padded) - 3 + k][None] for k in range(4))
    spline = start + 0.5 * u * (
        stop
        - before
        + u * (2 * before - 5 * start + 4 * stop - after + u * (3 * (start - stop) + after - before))
    )
    return np.concatenate([spline.transpose(1, 0, 2).reshape(-1, 3), points[-1:]])
