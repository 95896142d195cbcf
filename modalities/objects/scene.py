"""The world of objects: one object on the floor of a studio, drawn from a seed and rendered."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8

from fewstep.modalities.objects.captions import (
    BACKGROUNDS,
    LIGHTS,
    MATERIALS,
    TONES,
    VIEWS,
    Attributes,
    pairs,
)
from fewstep.modalities.objects.primitives import Points
from fewstep.modalities.objects.raycast import box_span, light_reaching, normals, openness, trace
from fewstep.modalities.objects.shapes import Shape, draw_shape
from fewstep.modalities.objects.surfaces import BACKGROUNDS_SRGB, Studio, albedo, developed, finish, linear
from fewstep.modalities.objects.surfaces import TONES as TONE_COLOURS

SPLITS = ("train", "val", "heldout")
SAMPLES = 3  # per pixel and axis, on the object; the backdrop is smooth and needs one
DISTANCE = 3.0  # of the eye from the object's centre, in lengths of its longest edge
SHADOW_SOFTNESS = 0.16
OUTLINE = 28  # rays per axis that find how large the object looks
# degrees: azimuth around the object, 0 in front of it and positive towards its +x side; elevation
_ANGLES = {
    "front": ((-10, 10), (8, 18)),
    "side": ((80, 100), (8, 18)),
    "above": ((-40, 40), (46, 60)),
    "three-quarter": ((30, 58), (20, 32)),
}


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Where the eye is, in degrees, and how large the object stands in the picture."""

    azimuth: float
    elevation: float
    fill: float = 0.8
    shift: tuple[float, float] = (0.0, 0.0)

    @property
    def axes(self) -> Float32[np.ndarray, " 3 3"]:
        """Rows: to the right of the picture, up in it, and from the object to the eye; in object space."""
        a, e = np.deg2rad(self.azimuth), np.deg2rad(self.elevation)
        right = (np.cos(a), np.sin(a), 0.0)
        back = (np.sin(a) * np.cos(e), -np.cos(a) * np.cos(e), np.sin(e))
        return np.array([right, np.cross(back, right), back], np.float32)

    @property
    def position(self) -> Float32[np.ndarray, " 3"]:
        """The eye, in object space."""
        return self.axes[2] * np.float32(DISTANCE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """An object with its finish and colour, a camera and the direction of the light."""

    attributes: Attributes
    shape: Shape
    camera: Camera
    light: Float32[np.ndarray, " 3"]

    def albedo(self, points: Float[np.ndarray, " point 3"]) -> Float32[np.ndarray, " point 3"]:
        """Linear RGB of the surface nearest to each point, free of light and view."""
        table = np.stack([albedo(slot, self.attributes.colour) for slot in self.shape.slots])
        return table[self.shape.material(points)]

    @property
    def studio(self) -> Studio:
        tone = np.array(TONE_COLOURS[self.attributes.tone], np.float32)
        return Studio(
            direction=self.light,
            key=tone,
            ambient=0.5 + 0.5 * tone,
            backdrop=linear(BACKGROUNDS_SRGB[self.attributes.background]),
        )


def draw_attributes(rng: np.random.Generator, *, heldout: bool = False) -> Attributes:
    """Random attributes, of the pairs of category and colour that training shows or of the held-out ones."""
    allowed = pairs(heldout=heldout)
    category, colour = allowed[int(rng.integers(len(allowed)))]
    return Attributes(
        category=category,
        colour=colour,
        material=str(rng.choice(MATERIALS)),
        view=str(rng.choice(VIEWS)),
        light=str(rng.choice(LIGHTS)),
        tone=str(rng.choice(TONES)),
        background=str(rng.choice(BACKGROUNDS)),
    )


def draw_scene(attributes: Attributes, rng: np.random.Generator) -> Scene:
    """A random object, camera and light that fit the attributes."""
    azimuth, elevation = (float(rng.uniform(*limits)) for limits in _ANGLES[attributes.view])
    if attributes.view == "three-quarter" and rng.random() < 0.5:
        azimuth = -azimuth
    camera = Camera(
        azimuth=azimuth,
        elevation=elevation,
        fill=float(rng.uniform(0.74, 0.84)),
        shift=(float(rng.uniform(-0.04, 0.04)), float(rng.uniform(-0.04, 0.04))),
    )
    shape = draw_shape(attributes.category, rng)
    return Scene(attributes=attributes, shape=shape, camera=camera, light=_light(attributes, camera, rng))


def numbered_scene(number: int, *, seed: int = 0, split: str = "train") -> Scene:
    """Scene `number` of a split: it follows from (seed, split, number) and from nothing else.

    "train" and "val" show the same pairs of category and colour, "heldout" the pairs that neither shows.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; use one of {', '.join(SPLITS)}")
    rng = np.random.default_rng((seed, SPLITS.index(split), number))
    return draw_scene(draw_attributes(rng, heldout=split == "heldout"), rng)


def _light(attributes: Attributes, camera: Camera, rng: np.random.Generator) -> Float32[np.ndarray, " 3"]:
    right, _, back = camera.axes
    toward_eye = np.array([back[0], back[1], 0]) / np.hypot(back[0], back[1])
    aside, height, forward = {
        "left": (-1.0, 0.75, 0.5),
        "right": (1.0, 0.75, 0.5),
        "above": (0.0, 1.0, 0.22),
    }[attributes.light]
    direction = aside * right + np.array([0, 0, height]) + forward * toward_eye + rng.normal(0, 0.08, 3)
    return (direction / np.linalg.norm(direction)).astype(np.float32)


def render(scene: Scene, *, size: int = 64) -> UInt8[np.ndarray, " size size 3"]:
    """The picture of a scene as 8-bit sRGB."""
    return np.ascontiguousarray(render_with_coverage(scene, size=size)[..., :3])


def render_with_coverage(scene: Scene, *, size: int = 64) -> UInt8[np.ndarray, " size size 4"]:
    """The picture of a scene, and as a fourth channel how much of each pixel the object covers.

    The first three channels are those of the whole picture with its background.
    """
    if size < 8:
        raise ValueError(f"size={size} is too small to show an object; use at least 8, for example 64")
    view = _Frame(scene, size)
    backdrop = developed(_backdrop(scene, view).T).reshape(size, size, 3)
    colour, coverage = _object(scene, view)
    picture = backdrop * (1 - coverage[..., None]) + colour
    layers = np.concatenate([picture, coverage[..., None]], axis=-1)
    return np.round(layers * 255).clip(0, 255).astype(np.uint8)


class _Frame:
    """Pixels as rays, scaled so that the object's outline fills the picture as the camera asks."""

    def __init__(self, scene: Scene, size: int) -> None:
        self.size, self.camera = size, scene.camera
        low, high = scene.shape.bounds
        corners = np.array(np.meshgrid(*np.stack([low, high], 1))).reshape(3, 8)
        local = self.camera.axes @ corners
        screen = local[:2] / (DISTANCE - local[2])
        self.low, self.high = screen.min(1), screen.max(1)
        self._aim(self.low, self.high, 1.0)
        grid_y, grid_x = np.meshgrid(*(2 * [(np.arange(OUTLINE) + 0.5) * size / OUTLINE]), indexing="ij")
        rays = self.directions(grid_x.ravel(), grid_y.ravel())
        hit = np.isfinite(trace(scene.shape, scene.camera.position[:, None], rays))
        if hit.any():  # always, but for shapes thinner than the grid
            seen = (self.camera.axes @ rays)[:, hit]
            seen = seen[:2] / -seen[2]
            margin = 0.5 * self.scale / OUTLINE
            self._aim(seen.min(1) - margin, seen.max(1) + margin, self.camera.fill)
            self.centre += np.array(self.camera.shift) * self.scale
        else:
            self._aim(self.low, self.high, self.camera.fill)

    def _aim(self, low: np.ndarray, high: np.ndarray, fill: float) -> None:
        self.centre, self.scale = (low + high) / 2, float((high - low).max()) / fill

    def directions(self, columns: np.ndarray, rows: np.ndarray) -> Points:
        """Unit directions through picture positions in pixels, from the upper left corner."""
        x = self.centre[0] + (columns / self.size - 0.5) * self.scale
        y = self.centre[1] - (rows / self.size - 0.5) * self.scale
        local = np.stack([x, y, -np.ones_like(x)]).astype(np.float32)
        local /= np.sqrt((local * local).sum(0))
        return np.ascontiguousarray(self.camera.axes.T @ local)

    def window(self) -> tuple[slice, slice]:
        """The rows and columns of pixels that the object's box can touch."""
        left, right = ((edge - self.centre[0]) / self.scale + 0.5 for edge in (self.low[0], self.high[0]))
        top, bottom = (0.5 - (edge - self.centre[1]) / self.scale for edge in (self.high[1], self.low[1]))
        columns = slice(max(0, int(left * self.size)), min(self.size, int(right * self.size) + 1))
        return slice(max(0, int(top * self.size)), min(self.size, int(bottom * self.size) + 1)), columns


def _object(
    scene: Scene, frame: _Frame
) -> tuple[Float32[np.ndarray, " size size 3"], Float32[np.ndarray, " size size"]]:
    """Colour of the object times its coverage, and its coverage, of every pixel."""
    rows, columns = frame.window()
    steps = (np.arange(SAMPLES) + 0.5) / SAMPLES
    ys = (np.arange(rows.start, rows.stop)[:, None] + steps).ravel()
    xs = (np.arange(columns.start, columns.stop)[:, None] + steps).ravel()
    grid_y, grid_x = np.meshgrid(ys, xs, indexing="ij")
    directions = frame.directions(grid_x.ravel(), grid_y.ravel())
    eye = scene.camera.position[:, None]
    lengths = trace(scene.shape, eye, directions)
    hit = np.flatnonzero(np.isfinite(lengths))
    samples = np.zeros((4, len(lengths)), np.float32)
    if len(hit):
        seen = directions[:, hit]
        samples[:3, hit] = developed(_surface(scene, eye + seen * lengths[hit], -seen).T).T
        samples[3, hit] = 1
    blocks = samples.reshape(4, len(ys) // SAMPLES, SAMPLES, len(xs) // SAMPLES, SAMPLES).mean((2, 4))
    colour = np.zeros((frame.size, frame.size, 3), np.float32)
    coverage = np.zeros((frame.size, frame.size), np.float32)
    colour[rows, columns], coverage[rows, columns] = blocks[:3].transpose(1, 2, 0), blocks[3]
    return colour, coverage


def _surface(scene: Scene, points: Points, view: Points) -> Points:
    shape, studio = scene.shape, scene.studio
    normal = normals(shape, points)
    free = openness(shape, points, normal)
    floor = points[2] - np.float32(shape.bounds[0][2])
    free *= 0.55 + 0.45 * np.clip(floor / 0.2, 0, 1)  # the floor darkens what stands near it
    lit = np.zeros(points.shape[1], np.float32)
    toward = np.flatnonzero(studio.direction @ normal > 0)
    start = points[:, toward] + normal[:, toward] * np.float32(0.01)
    lit[toward] = light_reaching(shape, start, studio.direction, softness=SHADOW_SOFTNESS)
    result = np.zeros_like(points)
    material = shape.rows_material(points)
    for index, slot in enumerate(shape.slots):
        of = np.flatnonzero(material == index)
        if len(of):
            colour = albedo(slot, scene.attributes.colour)
            result[:, of] = studio.shaded(
                colour, finish(slot, scene.attributes.material), normal[:, of], view[:, of], lit[of], free[of]
            )
    return result


def _backdrop(scene: Scene, frame: _Frame) -> Points:
    """Radiance of a floor that bends up into a wall far behind the object, with the object's shadow."""
    centres = np.arange(frame.size) + 0.5
    grid_y, grid_x = np.meshgrid(centres, centres, indexing="ij")
    directions = frame.directions(grid_x.ravel(), grid_y.ravel())
    eye, studio, shape = scene.camera.position[:, None], scene.studio, scene.shape
    ground = np.float32(shape.bounds[0][2])
    down = np.minimum(directions[2], np.float32(-0.02))
    points = eye + directions * ((ground - eye[2]) / down)
    from_centre = np.sqrt(points[0] ** 2 + points[1] ** 2)
    wall = np.clip((from_centre - 1.2) / 3.0, 0, 1)
    wall = np.where(directions[2] > -0.02, 1, wall * wall * (3 - 2 * wall))
    light = 0.93 - 0.1 * np.clip(from_centre / 2, 0, 1)  # a pool of light around the object
    light = light * (1 - wall) + wall * (0.80 + 0.16 * (grid_y.ravel() / frame.size - 0.5))
    shadow = np.ones_like(light)
    near = np.flatnonzero((wall < 1) & (from_centre < 2.0))
    close = points[:, near]
    close[2] = ground + np.float32(0.002)
    lit = light_reaching(shape, close, studio.direction, softness=SHADOW_SOFTNESS)
    contact = _contact(shape, close)
    shadow[near] = (0.42 + 0.58 * lit) * contact
    # half the key's tint: a grey backdrop stays grey in warm light
    return (studio.backdrop * studio.ambient)[:, None] * (light * shadow).astype(np.float32)


def _contact(shape: Shape, points: Points) -> Float32[np.ndarray, " point"]:
    """How much of the sky the object leaves to points on the floor."""
    near, far = box_span(
        points, np.array([[0], [0], [1]], np.float32), (shape.bounds[0] - 0.15, shape.bounds[1] + 0.15)
    )
    free = np.ones(points.shape[1], np.float32)
    below = np.flatnonzero(near < far)
    gap = shape.rows_distance(points[:, below] + np.array([[0], [0], [0.03]], np.float32))
    free[below] = 0.55 + 0.45 * np.clip((gap + 0.02) / 0.14, 0, 1)
    return free
