"""How a surface answers light: colours by name, finishes, and the shading of one point.

Colours are linear RGB. A studio surrounds every object: a bright ceiling, a softbox where the key light is,
and a floor in the backdrop's colour; glossy and metal surfaces mirror it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from fewstep.modalities.objects.primitives import Points

Colour = Float32[np.ndarray, " 3"]


@dataclass(frozen=True)
class Finish:
    """`mirror`: share reflected at right angles; `metal` 1: mirrors in its own colour; `glow`: own light."""

    diffuse: float
    mirror: float
    highlight: float
    sharpness: float
    metal: float = 0.0
    glow: float = 0.0


FINISHES = {
    "matte": Finish(1.0, 0.0, 0.03, 6.0),
    "glossy": Finish(0.92, 0.07, 0.9, 90.0),
    "metal": Finish(0.32, 0.75, 0.7, 28.0, metal=1.0),
    "shade": Finish(0.75, 0.0, 0.02, 6.0, glow=0.42),
    "glass": Finish(0.6, 0.12, 1.0, 120.0),
}

COLOURS_SRGB = {
    "red": (206, 24, 30),
    "orange": (246, 122, 14),
    "yellow": (255, 222, 34),
    "green": (28, 152, 52),
    "blue": (26, 76, 214),
    "purple": (122, 40, 176),
    "pink": (250, 122, 178),
    "brown": (112, 64, 30),
    "white": (238, 238, 236),
    "black": (26, 26, 28),
}
BACKGROUNDS_SRGB = {
    "white": (242, 242, 242),
    "grey": (148, 150, 154),
    "beige": (226, 206, 172),
    "blue": (158, 198, 236),
    "green": (172, 218, 172),
    "pink": (244, 186, 202),
    "dark": (72, 75, 86),
}
SLOTS_SRGB = {
    "wood": (176, 122, 70),
    "steel": (168, 172, 178),
    "rubber": (30, 30, 32),
    "glass": (40, 56, 76),
    "cream": (240, 232, 214),
    "orange": (248, 130, 20),
    "red": (200, 24, 24),
}
SLOT_FINISHES = {"steel": "metal", "rubber": "matte", "glass": "glass", "shade": "shade"}
TONES = {"neutral": (1.0, 1.0, 1.0), "warm": (1.08, 0.92, 0.70), "cool": (0.82, 0.96, 1.14)}


def linear(srgb: tuple[int, int, int]) -> Colour:
    """Linear RGB, 0 to 1, of an 8-bit sRGB colour."""
    value = np.array(srgb, np.float32) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


def developed(radiance: Float32[np.ndarray, " *pixels 3"]) -> Float32[np.ndarray, " *pixels 3"]:
    """Linear radiance as sRGB values 0 to 1; what is brighter than 0.8 is rolled off, not cut."""
    rolled = np.where(radiance > 0.8, 0.8 + 0.2 * np.tanh((radiance - 0.8) / 0.3), radiance)
    rolled = np.maximum(rolled, 0)
    return np.where(rolled <= 0.0031308, 12.92 * rolled, 1.055 * rolled ** (1 / 2.4) - 0.055).astype(
        np.float32
    )


def albedo(slot: str, colour: str) -> Colour:
    """The linear colour of a material slot on an object of a named colour."""
    return linear(COLOURS_SRGB[colour] if slot in ("main", "shade") else SLOTS_SRGB[slot])


def finish(slot: str, material: str) -> Finish:
    """The finish of a material slot on an object of a named material."""
    return FINISHES[material if slot == "main" else SLOT_FINISHES.get(slot, "matte")]


@dataclass(frozen=True, eq=False)
class Studio:
    """The light: `direction` to the key light, its colour, the colour of the backdrop."""

    direction: Colour
    key: Colour
    ambient: Colour
    backdrop: Colour

    def mirrored(self, directions: Points) -> Points:
        """Radiance ``[3, ray]`` that arrives from `directions`."""
        up = directions[2]
        ceiling = 0.5 + 0.6 * np.clip(up, 0, 1)
        softbox = _smoothstep(0.80, 0.93, self.direction @ directions)
        strip = _smoothstep(0.35, 0.1, np.abs(directions[0] * 0.8 - directions[1] * 0.6)) * (up > 0.1)
        sky = ceiling[None] * self.ambient[:, None] + (1.8 * softbox + 0.35 * strip)[None] * self.key[:, None]
        floor = 0.55 * self.backdrop[:, None] * self.key[:, None]
        return np.where(up[None] > -0.05, sky, floor).astype(np.float32)

    def shaded(
        self,
        colour: Colour,
        finish: Finish,
        normal: Points,
        view: Points,
        lit: Float32[np.ndarray, " point"],
        openness: Float32[np.ndarray, " point"],
    ) -> Points:
        """Radiance ``[3, point]`` of points of one material; `view` points from the surface to the eye."""
        facing = np.clip(self.direction @ normal, 0, 1) * lit
        up = 0.5 + 0.5 * normal[2]
        bounce = 0.22 * self.backdrop[:, None] * (1 - up)
        around = (self.ambient[:, None] * (0.18 + 0.32 * up) + bounce) * openness
        result = colour[:, None] * finish.diffuse * (self.key[:, None] * facing * 0.85 + around)
        half = self.direction[:, None] + view
        half /= np.maximum(np.sqrt((half * half).sum(0)), 1e-6)
        spot = finish.highlight * np.clip((half * normal).sum(0), 0, 1) ** finish.sharpness * lit
        tint = finish.metal * colour[:, None] + (1 - finish.metal)
        result = result + spot * tint * self.key[:, None]
        if finish.mirror > 0:
            cosine = np.clip((normal * view).sum(0), 0, 1)
            grazing = (1 - cosine) ** 5
            mirror = finish.mirror + (1 - finish.mirror) * grazing * (0.3 if finish.metal else 0.6)
            seen = self.mirrored(2 * (normal * view).sum(0) * normal - view)
            result = result + mirror * openness * tint * seen
        return result + finish.glow * colour[:, None]


def _smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    u = np.clip((value - low) / (high - low), 0, 1)
    return u * u * (3 - 2 * u)
