"""Chairs, tables, sofas and lamps of random proportions, in metres."""

import numpy as np

from fewstep.modalities.objects.parts import Part, Slot, pick
from fewstep.modalities.objects.primitives import (
    Blend,
    Box,
    Capsule,
    Cylinder,
    Ellipsoid,
    Mirrored,
    Moved,
    Revolved,
    Solid,
    turned,
)


def chair(rng: np.random.Generator) -> list[Part]:
    """Four legs, a seat and a back, now and then with arms."""
    width, depth, seat = rng.uniform(0.42, 0.56), rng.uniform(0.42, 0.52), rng.uniform(0.4, 0.5)
    thickness, leg = rng.uniform(0.05, 0.1), rng.uniform(0.027, 0.042)
    back, lean = rng.uniform(0.42, 0.62), rng.uniform(3, 12)
    legs = pick(rng, "main", "main", "wood", "steel")
    parts = [
        _four_legs(width, depth, seat - thickness / 2, leg, rng.uniform(0, 0.05), legs),
        Part("main", Moved(Box((width / 2, depth / 2, thickness / 2), 0.02), (0, 0, seat))),
    ]
    rear = (0.0, depth / 2 - 0.03, seat)
    if rng.random() < 0.6:
        panel: Solid = Moved(Box((width / 2, 0.03, back / 2), 0.025), (0, 0, back / 2))
    else:
        posts = Mirrored(Capsule((width / 2 - leg, 0, 0), (width / 2 - leg, 0, back), leg * 0.9))
        rails = [
            Moved(Box((width / 2 - leg, 0.02, back * 0.09), 0.015), (0, 0, back * height))
            for height in (0.35, 0.62, 0.9)
        ]
        panel = Blend((posts, *rails))
    parts.append(Part("main", Moved(panel, rear, turned(0, -lean))))
    if rng.random() < 0.3:
        rest = Capsule((width / 2, -depth / 3, 0.22), (width / 2, depth / 2, 0.22), 0.028)
        post = Capsule((width / 2, -depth / 3, 0), (width / 2, -depth / 3, 0.22), 0.022)
        parts.append(Part(legs, Moved(Mirrored(Blend((rest, post))), (0, 0, seat))))
    return parts


def table(rng: np.random.Generator) -> list[Part]:
    """A rectangular or round top on four legs or on one foot."""
    width, depth, height = rng.uniform(0.9, 1.4), rng.uniform(0.65, 0.9), rng.uniform(0.6, 0.78)
    thickness, leg = rng.uniform(0.05, 0.09), rng.uniform(0.03, 0.05)
    legs = pick(rng, "main", "main", "wood", "steel")
    if rng.random() < 0.3:
        radius = rng.uniform(0.42, 0.6)
        foot = Moved(Cylinder(radius * 0.5, 0.025, 0.02), (0, 0, 0.025))
        column = Capsule((0, 0, 0.03), (0, 0, height - leg * 1.3), leg * 1.3)
        top: Solid = Cylinder(radius, thickness / 2, 0.02)
        return [
            Part("main", Moved(top, (0, 0, height))),
            Part(legs, Blend((foot, column), 0.06)),
        ]
    return [
        Part("main", Moved(Box((width / 2, depth / 2, thickness / 2), 0.02), (0, 0, height))),
        _four_legs(width - 0.06, depth - 0.06, height, leg, rng.uniform(-0.03, 0.03), legs),
    ]


def _four_legs(width: float, depth: float, height: float, radius: float, splay: float, slot: Slot) -> Part:
    top = (width / 2 - radius - 0.01, depth / 2 - radius - 0.01, height - radius)
    leg = Capsule(top, (top[0] + splay, top[1] + splay, radius), radius)
    return Part(slot, Mirrored(leg, (0, 1)))


def sofa(rng: np.random.Generator) -> list[Part]:
    """A base with two or three cushions, a back, two arms and small feet."""
    width, depth = rng.uniform(1.35, 2.0), rng.uniform(0.75, 0.95)
    arm, arm_height, back_height = rng.uniform(0.14, 0.24), rng.uniform(0.52, 0.64), rng.uniform(0.72, 0.92)
    softness = rng.uniform(0.04, 0.075)
    cushions = int(rng.integers(2, 4))
    inner = width / 2 - arm
    pitch = 2 * inner / cushions
    back = 0.2
    seats = tuple(
        Moved(
            Box((pitch / 2 - 0.006, (depth - back) / 2, 0.09), softness),
            (-inner + pitch * (number + 0.5), -back / 2 - 0.01, 0.41),
        )
        for number in range(cushions)
    )
    body = (
        Moved(Box((width / 2 - 0.02, depth / 2, 0.12), 0.04), (0, 0, 0.22)),
        Moved(
            Box((inner + 0.02, back / 2, (back_height - 0.2) / 2), softness),
            (0, depth / 2 - back / 2, (back_height + 0.2) / 2),
        ),
        Mirrored(
            Moved(
                Box((arm / 2, depth / 2, (arm_height - 0.1) / 2), softness),
                (width / 2 - arm / 2, 0, (arm_height + 0.1) / 2),
            )
        ),
    )
    feet = Moved(Cylinder(0.04, 0.06), (width / 2 - 0.1, depth / 2 - 0.1, 0.06))
    return [Part("main", Blend(body + seats)), Part("wood", Mirrored(feet, (0, 1)))]


def lamp(rng: np.random.Generator) -> list[Part]:
    """A lamp for a table: a foot, a stem or a round body, and a shade in the object's colour."""
    height, shade = rng.uniform(0.42, 0.58), rng.uniform(0.2, 0.27)
    low, high = rng.uniform(0.2, 0.26), rng.uniform(0.1, 0.16)
    body = pick(rng, "main", "wood", "steel", "cream")
    foot = Moved(Cylinder(rng.uniform(0.11, 0.15), 0.018, 0.012), (0, 0, 0.018))
    stem: Solid = Capsule((0, 0, 0.02), (0, 0, height), 0.02)
    if rng.random() < 0.5:
        round_part = Moved(Ellipsoid((0.11, 0.11, 0.13)), (0, 0, 0.16))
        stem = Blend((stem, round_part), 0.04)
    heights = np.array([height - shade * 0.35, height + shade * 0.65])
    return [
        Part(body, Blend((foot, stem), 0.03)),
        Part("shade", Revolved(heights, np.array([low, high]))),
    ]
