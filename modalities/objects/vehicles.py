"""Cars, planes, sailing boats and bath ducks of random proportions; their fronts look to -y."""

import numpy as np

from fewstep.modalities.objects.parts import Part, pick
from fewstep.modalities.objects.primitives import (
    Below,
    Blend,
    Box,
    Capsule,
    Cylinder,
    Ellipsoid,
    Mirrored,
    Moved,
    Solid,
    prism,
    turned,
)

LYING_X = turned(1, 90)  # an upright cylinder, now along x
LYING_Y = turned(0, 90)  # an upright cylinder, now along y


def car(rng: np.random.Generator) -> list[Part]:
    """A body with a cabin of glass under a roof, four wheels, lights."""
    half_length, half_width = rng.uniform(1.6, 2.0), rng.uniform(0.78, 0.9)
    wheel, belt, roof = rng.uniform(0.34, 0.42), rng.uniform(0.85, 0.98), rng.uniform(1.32, 1.62)
    low = wheel * 0.75
    bonnet, boot = rng.uniform(0.35, 0.6) * half_length, rng.uniform(0.0, 0.35) * half_length
    front, rear = -half_length + bonnet, half_length - boot - 0.08
    slant, tail = rng.uniform(0.3, 0.55), rng.uniform(0.08, 0.4)
    body = Moved(Box((half_width, half_length, (belt - low) / 2), 0.17), (0, 0, (belt + low) / 2))
    # corners in the plane (y, z), counter-clockwise
    cabin = prism(
        [(front, belt - 0.1), (rear, belt - 0.1), (rear - tail, roof - 0.03), (front + slant, roof - 0.03)],
        half_width - 0.1,
        axis=0,
    )
    middle, reach = (front + slant + rear - tail) / 2, (rear - tail - front - slant) / 2
    top = Moved(Box((half_width - 0.06, reach + 0.05, 0.06), 0.05), (0, middle, roof))
    pillar = Box((half_width - 0.085, 0.06, (roof - belt) / 2 + 0.03), 0.02)
    axle = half_length * rng.uniform(0.6, 0.68)
    tyre = Moved(Cylinder(wheel, 0.12, 0.04), (half_width - 0.06, axle, wheel), LYING_X)
    hub = Moved(Cylinder(wheel * 0.5, 0.13, 0.02), (half_width - 0.05, axle, wheel), LYING_X)
    lights = Moved(Ellipsoid((0.16, 0.12, 0.11)), (half_width * 0.66, -half_length + 0.06, belt - 0.22))
    rear_lights = Moved(Box((0.14, 0.06, 0.08), 0.03), (half_width * 0.68, half_length, belt - 0.22))
    return [
        Part("main", Blend((body, top, Moved(pillar, (0, middle, (belt + roof) / 2 - 0.02))))),
        Part("glass", cabin),
        Part("rubber", Mirrored(tyre, (0, 1))),
        Part("steel", Mirrored(hub, (0, 1))),
        Part("cream", Mirrored(lights)),
        Part("red", Mirrored(rear_lights)),
    ]


def plane(rng: np.random.Generator) -> list[Part]:
    """A fuselage with swept wings, a tail, two engines and a windscreen."""
    length, radius = rng.uniform(1.15, 1.4), rng.uniform(0.17, 0.23)
    span, root, tip = rng.uniform(1.1, 1.45), rng.uniform(0.42, 0.56), rng.uniform(0.16, 0.26)
    sweep, start = rng.uniform(0.15, 0.55), rng.uniform(-0.4, -0.2)
    fuselage = Blend(
        (
            Capsule((0, -length + radius, 0), (0, length * 0.45, 0), radius),
            Capsule((0, length * 0.3, 0.02), (0, length, 0.08), radius * 0.55),
        ),
        radius,
    )
    # corners in the plane (x, y), counter-clockwise
    wing = prism(
        [(0, start), (span, start + sweep), (span, start + sweep + tip), (0, start + root)], 0.035, axis=2
    )
    tail = prism(
        [(0, length * 0.72), (span * 0.4, length * 0.85), (span * 0.4, length * 0.97), (0, length)],
        0.03,
        axis=2,
    )
    height = rng.uniform(0.42, 0.56)
    # corners in the plane (y, z), counter-clockwise
    fin = prism(
        [(length * 0.6, 0.1), (length * 1.0, 0.1), (length * 1.08, height), (length * 0.9, height)],
        0.03,
        axis=0,
    )
    out = span * rng.uniform(0.34, 0.45)
    engine = Moved(Cylinder(0.085, 0.17, 0.03), (out, start + sweep * out / span + 0.02, -0.12), LYING_Y)
    windscreen = Moved(Ellipsoid((radius * 0.8, 0.13, 0.085)), (0, -length + radius * 0.85, radius * 0.62))
    wings = pick(rng, "main", "main", "main", "cream")
    engines = pick(rng, "steel", "cream", "main")
    return [
        Part("main", Blend((fuselage, fin, Moved(Mirrored(tail), (0, 0, 0.08))))),
        Part(wings, Moved(Mirrored(wing), (0, 0, -0.05))),
        Part(engines, Mirrored(engine)),
        Part("glass", windscreen),
    ]


def boat(rng: np.random.Generator) -> list[Part]:
    """A sailing boat: a hull, a mast and two sails that stand at an angle to the hull."""
    length, beam, depth = rng.uniform(0.85, 1.05), rng.uniform(0.34, 0.44), rng.uniform(0.4, 0.5)
    mast, boom = rng.uniform(1.35, 1.7), rng.uniform(0.62, 0.8)
    hull = Below(Moved(Ellipsoid((beam, length, depth)), (0, 0, 0.1)), 0.05)
    deck = Moved(Cylinder(beam * 0.8, 0.03), (0, 0.05, 0.03))
    swing = turned(2, rng.uniform(25, 45) * rng.choice((-1, 1)))
    # corners in the plane (y, z), counter-clockwise
    main_sail = prism([(0.04, 0.2), (boom, 0.2), (0.04, mast - 0.08)], 0.02, axis=0)
    jib = prism([(-length * 0.7, 0.16), (-0.06, 0.22), (-0.06, mast * 0.8)], 0.02, axis=0)
    sails = pick(rng, "cream", "cream", "main")
    return [
        Part("main", hull),
        Part("wood", Blend((deck, Capsule((0, 0, 0), (0, 0, mast), 0.028)))),
        Part(sails, Moved(main_sail, (0, 0, 0), swing)),
        Part(sails, Moved(jib, (0, 0, 0), turned(2, 12 * float(np.sign(swing[1, 0]))))),
    ]


def duck(rng: np.random.Generator) -> list[Part]:
    """A bath duck: a body with a raised tail, a round head, an orange beak and two eyes."""
    body, head = rng.uniform(0.36, 0.44), rng.uniform(0.25, 0.31)
    up = rng.uniform(0.44, 0.54)
    neck = (0.0, -0.24, up)
    trunk: Solid = Moved(Ellipsoid((body, 0.55, 0.36)), (0, 0, 0))
    tail = Capsule((0, 0.4, 0.05), (0, 0.58, 0.26), 0.09)
    crown = Moved(Ellipsoid((head, head, head)), neck)
    wing = Moved(Ellipsoid((0.09, 0.28, 0.19)), (body * 0.93, 0.06, 0.06), turned(0, 18))
    beak = Moved(Ellipsoid((0.14, 0.15, 0.055)), (0, -0.24 - head * 0.98, up - 0.06))
    eye = Moved(Ellipsoid((0.05, 0.05, 0.05)), (head * 0.55, -0.24 - head * 0.68, up + head * 0.42))
    return [
        Part("main", Blend((trunk, tail, crown), 0.16)),
        Part("main", Mirrored(wing)),
        Part("orange", beak),
        Part("rubber", Mirrored(eye)),
    ]
