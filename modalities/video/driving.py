"""A captioned driving world: gymnasium's CarRacing physics and tracks, our own driver and camera."""

import math
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from fewstep.modalities.video.captions import (
    MANOEUVRES,
    PALETTES,
    SPEEDS,
    Attributes,
    all_attributes,
)

Rgb = tuple[int, int, int]

FPS = 12.0
PHYSICS_FPS = 50  # CarRacing's own step
STEPS_PER_FRAME = 4  # every fourth physics step is filmed; played back at 12 frames per second
FRAME_SECONDS = STEPS_PER_FRAME / PHYSICS_FPS
IMAGE_SIZE = 96
SUPERSAMPLE = 6
PIXELS_PER_UNIT = 96 * 2.7 * 6 / 700  # CarRacing's zoom, seen through a 700-pixel square crop of its window
CAR_ROW = 82.3  # the car's centre, where CarRacing's camera has it after that crop
CAR_COLUMN = 48.0
HALF_WIDTH = 40 / 6  # of the road, in world units
TRACK_STEP = 21 / 6  # between two track points, in world units
GRASS_CELL = 2000 / 6 / 20
STRIPE_PERIOD = 3

TARGET_SPEED = {"slow": 15.0, "fast": 38.0}  # world units per second
TARGET_OFFSET = {"left": -0.55, "centre": 0.0, "right": 0.55}  # half-widths of the road, positive = right
WEAVE_AMPLITUDE = 0.6
WEAVE_PERIOD = 31 * STEPS_PER_FRAME / PHYSICS_FPS  # seconds of physics; 31 filmed frames
OFF_ROAD = 1.05
OFF_ROAD_FRAMES = 12
MAX_TURN = 0.285  # mean turn in radians per track point over a window; about a third of the tracks pass
GRIP = 130.0  # sideways acceleration the driver allows itself in bends, world units per second squared
TURN_WINDOW = 6

SEGMENT_FRAMES = (48, 96)  # 4 to 8 seconds
PALETTE_CHANGE = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Palette:
    """Colours of everything but the car."""

    ground: Rgb
    grass: Rgb
    road: Rgb
    stripe: int  # how much brighter each third track tile is than the first
    kerb: tuple[Rgb, Rgb]
    light: float = 1.0  # brightness of the car


PALETTE_COLOURS = {
    "meadow": Palette(
        ground=(102, 204, 102),
        grass=(88, 182, 84),
        road=(104, 104, 104),
        stripe=7,
        kerb=((255, 255, 255), (230, 30, 30)),
    ),
    "desert": Palette(
        ground=(226, 188, 118),
        grass=(206, 162, 92),
        road=(126, 104, 88),
        stripe=7,
        kerb=((255, 250, 235), (200, 60, 30)),
    ),
    "snow": Palette(
        ground=(238, 243, 250),
        grass=(208, 220, 236),
        road=(134, 140, 152),
        stripe=8,
        kerb=((255, 255, 255), (225, 40, 60)),
    ),
    "night": Palette(
        ground=(17, 24, 54),
        grass=(26, 37, 80),
        road=(62, 64, 84),
        stripe=6,
        kerb=((140, 140, 165), (135, 25, 45)),
        light=0.8,
    ),
}


@dataclass(kw_only=True)
class Drive:
    """One filmed clip.

    `lane_offset` is the car's true distance from the centre line in half-widths of the road, positive to the
    right; `speed` is its true speed in world units per second; `segments` holds (first frame, attributes).
    """

    frames: UInt8[np.ndarray, " frame height width 3"]
    segments: list[tuple[int, Attributes]]
    lane_offset: Float[np.ndarray, " frame"]
    speed: Float[np.ndarray, " frame"]
    seed: int

    @property
    def off_road(self) -> bool:
        """Whether the car left the road for more than a second."""
        run = 0
        for outside in np.abs(self.lane_offset) > OFF_ROAD:
            run = run + 1 if outside else 0
            if run > OFF_ROAD_FRAMES:
                return True
        return False


def draw_script(
    frames: int, random: Random, *, start: Attributes | None = None
) -> list[tuple[int, Attributes]]:
    """Segments of 4 to 8 seconds; one or two attributes change at a time, the palette in a third of them."""
    attributes = start or random.choice(all_attributes())
    script = [(0, attributes)]
    at = random.randint(*SEGMENT_FRAMES)
    while at <= frames - SEGMENT_FRAMES[0]:
        changed = _changed_names(random)
        values = attributes.as_dict()
        for name in changed:
            choices = {"palette": PALETTES, "manoeuvre": MANOEUVRES, "speed": SPEEDS}[name]
            values[name] = random.choice([value for value in choices if value != values[name]])
        attributes = Attributes(**values)
        script.append((at, attributes))
        at += random.randint(*SEGMENT_FRAMES)
    return script


def _changed_names(random: Random) -> list[str]:
    if random.random() < PALETTE_CHANGE:
        return ["palette", *random.choice([[], ["manoeuvre"], ["manoeuvre"], ["speed"]])]
    return random.choice([["manoeuvre"], ["manoeuvre"], ["speed"], ["manoeuvre", "speed"]])


@dataclass
class DrivingWorld:
    """A car on a random closed track, driven by a controller and filmed from above.

    Needs the `data` extra (gymnasium with Box2D and pygame).
    """

    seed: int
    _env: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._env = _quiet_car_racing()
        track_seed = self.seed
        while True:
            self._env.reset(seed=track_seed % 2**31)
            track = np.asarray(self._env.track)
            if _sharpest_turn(track[:, 1]) <= MAX_TURN:
                break
            track_seed += 7919
        self._points = track[:, 2:4]
        self._headings = np.unwrap(track[:, 1])
        self._index = 0
        self._clock = 0.0
        self._polygons = _scenery(self._env)
        self._seconds_per_step = 1.0 / PHYSICS_FPS

    def film(self, script: list[tuple[int, Attributes]], *, frames: int) -> Drive:
        """Drives `frames` filmed frames by the script of (first frame, attributes)."""
        starts = [start for start, _ in script]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"script starts {starts} must begin at 0 and rise; sort the segments")
        images = np.zeros((frames, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        offsets, speeds = np.zeros(frames), np.zeros(frames)
        self._settle(script[0][1])
        current = 0
        for frame in range(frames):
            while current + 1 < len(script) and script[current + 1][0] <= frame:
                current += 1
            attributes = script[current][1]
            if frame:
                for _ in range(STEPS_PER_FRAME):
                    self._step(attributes)
            images[frame] = self._picture(PALETTE_COLOURS[attributes.palette])
            offsets[frame], speeds[frame] = self._locate()[0], self._speed()
        return Drive(frames=images, segments=script, lane_offset=offsets, speed=speeds, seed=self.seed)

    def _settle(self, attributes: Attributes) -> None:
        for _ in range(3 * PHYSICS_FPS):
            self._step(attributes)

    def _speed(self) -> float:
        return float(np.hypot(*self._env.car.hull.linearVelocity))

    def _locate(self) -> tuple[float, float]:
        """Lateral offset in half-widths (positive right) and heading error in radians (positive left)."""
        position = np.asarray(self._env.car.hull.position)
        count = len(self._points)
        near = (self._index + np.arange(-3, 12)) % count
        self._index = int(near[np.argmin(np.sum((self._points[near] - position) ** 2, axis=1))])
        heading = self._headings[self._index]
        right = np.array([math.cos(heading), math.sin(heading)])
        offset = float((position - self._points[self._index]) @ right) / HALF_WIDTH
        error = math.remainder(self._env.car.hull.angle - heading, 2 * math.pi)
        return offset, error

    def _target_offset(self, manoeuvre: str) -> float:
        if manoeuvre == "weave":
            return WEAVE_AMPLITUDE * math.sin(2 * math.pi * self._clock / WEAVE_PERIOD)
        return TARGET_OFFSET[manoeuvre]

    def _step(self, attributes: Attributes) -> None:
        """One physics step of pure pursuit: aim at a point ahead, shifted sideways by the lane wanted."""
        self._locate()
        hull, speed = self._env.car.hull, self._speed()
        ahead = max(2, round((3.0 + 0.22 * speed) / TRACK_STEP))
        aim = (self._index + ahead) % len(self._points)
        heading = self._headings[aim]
        right = np.array([math.cos(heading), math.sin(heading)])
        goal = self._points[aim] + self._target_offset(attributes.manoeuvre) * HALF_WIDTH * right
        delta = goal - np.asarray(hull.position)
        bearing = math.atan2(-delta[0], delta[1])
        error = math.remainder(bearing - hull.angle, 2 * math.pi)
        steer = -2.2 * error + 0.08 * hull.angularVelocity
        wanted = min(TARGET_SPEED[attributes.speed], self._bend_speed(speed))
        gas = float(np.clip(0.06 * (wanted - speed) + 0.0035 * wanted, 0.0, 0.5))
        brake = float(np.clip(0.03 * (speed - wanted - 1.5), 0.0, 0.35))
        self._env.step(np.array([np.clip(steer, -1.0, 1.0), gas, brake]))
        self._clock += self._seconds_per_step

    def _bend_speed(self, speed: float) -> float:
        """The speed at which the sharpest bend within braking distance can be driven."""
        count = len(self._points)
        ahead = self._headings[(self._index + np.arange(4 + int(0.35 * speed / TRACK_STEP))) % count]
        turns = np.abs(np.remainder(np.diff(ahead) + math.pi, 2 * math.pi) - math.pi)
        curvature = np.convolve(turns, np.ones(3) / 3, mode="valid").max() / TRACK_STEP
        return math.sqrt(GRIP / max(float(curvature), 1e-3))

    def _picture(self, palette: Palette) -> UInt8[np.ndarray, " height width 3"]:
        import pygame

        side = IMAGE_SIZE * SUPERSAMPLE
        zoom = PIXELS_PER_UNIT * SUPERSAMPLE
        hull = self._env.car.hull
        angle = -hull.angle
        rotation = zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        # Drawn upside down as CarRacing does, because its car draws itself with y pointing up.
        origin = np.array([CAR_COLUMN, IMAGE_SIZE - CAR_ROW]) * SUPERSAMPLE
        shift = origin - rotation @ np.asarray(hull.position)
        surface = pygame.Surface((side, side))
        surface.fill(palette.ground)
        corners = self._polygons.corners @ rotation.T + shift
        low, high = corners.min(axis=1), corners.max(axis=1)
        visible = np.flatnonzero(np.all((high >= 0) & (low <= side), axis=1))
        colours = self._polygons.colours(palette)
        for index in visible:
            pygame.draw.polygon(surface, colours[self._polygons.kinds[index]], corners[index])
        self._env.car.draw(surface, zoom, pygame.math.Vector2(*shift), angle, False)
        small = pygame.transform.smoothscale(surface, (IMAGE_SIZE, IMAGE_SIZE))
        return np.ascontiguousarray(pygame.surfarray.array3d(small).transpose(1, 0, 2)[::-1])


@dataclass(frozen=True)
class _Scenery:
    corners: Float[np.ndarray, " polygon 4 2"]
    kinds: list[int]

    @staticmethod
    def colours(palette: Palette) -> list[Rgb]:
        road = [tuple(channel + palette.stripe * third for channel in palette.road) for third in range(3)]
        return [palette.grass, *road, *palette.kerb]  # type: ignore[list-item]


_GRASS, _ROAD, _KERB = 0, 1, 4


def _scenery(env: Any) -> _Scenery:
    """All polygons of the world in drawing order: grass squares, road tiles, kerbs."""
    square = GRASS_CELL * np.array([[1, 0], [0, 0], [0, 1], [1, 1]])
    cells = [(x, y) for x in range(-20, 20, 2) for y in range(-20, 20, 2)]
    corners = [square + GRASS_CELL * np.array(cell) for cell in cells]
    kinds = [_GRASS] * len(cells)
    tiles = 0
    for polygon, colour in env.road_poly:
        corners.append(np.asarray(polygon))
        if isinstance(colour, tuple):
            kinds.append(_KERB + (colour != (255, 255, 255)))
        else:
            kinds.append(_ROAD + tiles % STRIPE_PERIOD)
            tiles += 1
    return _Scenery(np.stack(corners).astype(np.float64), kinds)


def _sharpest_turn(headings: Float[np.ndarray, " point"]) -> float:
    turns = np.diff(np.unwrap(np.concatenate([headings, headings[:TURN_WINDOW]])))
    window = np.ones(TURN_WINDOW) / TURN_WINDOW
    return float(np.abs(np.convolve(turns, window, mode="valid")).max())


def _quiet_car_racing() -> Any:
    """CarRacing that neither draws on every physics step nor ends: this module films it instead."""
    try:
        from gymnasium.envs.box2d.car_racing import CarRacing
    except ImportError as error:
        raise ImportError(
            "rendering the driving world needs gymnasium: pip install 'fewstep[data]'"
        ) from error

    class QuietCarRacing(CarRacing):
        def _render(self, mode: str) -> None:
            return None

    return QuietCarRacing()
