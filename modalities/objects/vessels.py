"""Mugs, teapots, bottles, vases and bowls of random proportions, in units of about their height."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from fewstep.modalities.objects.parts import Part, pick
from fewstep.modalities.objects.primitives import (
    Below,
    Blend,
    Capsule,
    Cut,
    Cylinder,
    Ellipsoid,
    Moved,
    Number,
    Revolved,
    Torus,
)

PROFILE_KNOTS = 64


def mug(rng: np.random.Generator) -> list[Part]:
    """A cup with straight or slightly slanted walls and one ring of a handle."""
    height, bottom = rng.uniform(0.85, 1.15), rng.uniform(0.34, 0.42)
    top, wall = bottom * rng.uniform(1.0, 1.15), rng.uniform(0.045, 0.06)
    body = Revolved(np.array([0.0, height]), np.array([bottom, top]), wall=wall, floor=0.07)
    ring, tube = height * rng.uniform(0.25, 0.31), rng.uniform(0.05, 0.07)
    middle = (bottom + top) / 2
    handle = Cut(
        Moved(Torus(ring, tube), (middle + ring * 0.25, 0, height * 0.5)),
        Moved(Cylinder(middle - wall / 2, height), (0, 0, height / 2)),
    )
    return [Part("main", body), Part("main", handle)]


def teapot(rng: np.random.Generator) -> list[Part]:
    """A round body with a spout to the left, a handle to the right, and a lid with a knob."""
    flat, foot = rng.uniform(0.78, 0.95), rng.uniform(0.26, 0.34)
    rise = rng.uniform(0.12, 0.28)
    body = Ellipsoid((0.5, 0.5, 0.5 * flat))
    base = Moved(Cylinder(foot, 0.06, 0.02), (0, 0, -0.5 * flat + 0.02))
    spout = Blend(
        (
            Capsule((-0.4, 0, -0.08), (-0.62, 0, 0.02), 0.1),
            Capsule((-0.62, 0, 0.02), (-0.78, 0, rise), 0.065),
        ),
        0.08,
    )
    handle = Moved(Torus(0.23, rng.uniform(0.045, 0.06)), (0.56, 0, 0.03))
    lid = Moved(Ellipsoid((0.27, 0.27, 0.14)), (0, 0, 0.42 * flat))
    knob = Moved(Ellipsoid((0.075, 0.075, 0.075)), (0, 0, 0.42 * flat + 0.18))
    top = pick(rng, "main", "main", "steel", "cream")
    return [Part("main", Blend((body, base, spout, handle), 0.07)), Part("main", lid), Part(top, knob)]


def bottle(rng: np.random.Generator) -> list[Part]:
    """A tall body, a shoulder, a neck, a cap and often a label."""
    body, neck = rng.uniform(0.16, 0.21), rng.uniform(0.055, 0.075)
    shoulder, slope = rng.uniform(0.48, 0.6), rng.uniform(0.13, 0.24)
    profile = _profile([0, 0.03, shoulder, shoulder + slope, 1.0], [body * 0.9, body, body, neck, neck * 0.9])
    cap = pick(rng, "cream", "steel", "rubber")
    parts = [
        Part("main", Revolved(*profile)),
        Part(cap, Moved(Cylinder(neck * 1.25, 0.05, 0.01), (0, 0, 1.0))),
    ]
    if rng.random() < 0.6:
        half = rng.uniform(0.08, 0.12)
        parts.append(Part("cream", Moved(Cylinder(body + 0.006, half), (0, 0, shoulder * 0.5))))
    return parts


def vase(rng: np.random.Generator) -> list[Part]:
    """A hollow vessel with a belly, a waist and a rim."""
    foot, belly = rng.uniform(0.14, 0.2), rng.uniform(0.27, 0.38)
    waist, rim = rng.uniform(0.09, 0.17), rng.uniform(0.17, 0.26)
    middle, narrow = rng.uniform(0.3, 0.5), rng.uniform(0.74, 0.84)
    heights, radii = _profile([0, middle, narrow, 1.0], [foot, belly, waist, rim])
    return [Part("main", Revolved(heights, radii, wall=0.035, floor=0.08))]


def bowl(rng: np.random.Generator) -> list[Part]:
    """A part of a hollow sphere on a low foot."""
    depth, wall = rng.uniform(0.62, 0.85), rng.uniform(0.05, 0.07)
    shell = Cut(Ellipsoid((1, 1, 1)), Ellipsoid((1 - wall, 1 - wall, 1 - wall)))
    foot = Moved(Cylinder(rng.uniform(0.36, 0.48), 0.09, 0.02), (0, 0, -0.96))
    return [Part("main", Below(shell, depth - 1)), Part("main", foot)]


def _profile(
    heights: Sequence[Number], radii: Sequence[Number]
) -> tuple[Float[np.ndarray, " knot"], Float[np.ndarray, " knot"]]:
    """A smooth curve through the knots, flat at each, as many short straight pieces."""
    dense = np.linspace(heights[0], heights[-1], PROFILE_KNOTS)
    piece = np.clip(np.searchsorted(heights, dense, side="right") - 1, 0, len(heights) - 2)
    knots, values = np.array(heights), np.array(radii)
    u = (dense - knots[piece]) / (knots[piece + 1] - knots[piece])
    return dense, values[piece] + (values[piece + 1] - values[piece]) * u * u * (3 - 2 * u)
