"""Captions of the driving world: a small grammar with a held-out part that training never sees."""

from dataclasses import asdict, dataclass
from itertools import product
from random import Random
from typing import Literal

Split = Literal["train", "heldout"]

PALETTES = ("meadow", "desert", "snow", "night")
MANOEUVRES = ("left", "centre", "right", "weave")
SPEEDS = ("slow", "fast")


@dataclass(frozen=True, kw_only=True, order=True)
class Attributes:
    """What a caption says: where the car is, what it does on the road, how fast."""

    palette: str = "meadow"
    manoeuvre: str = "centre"
    speed: str = "slow"

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("palette", self.palette, PALETTES),
            ("manoeuvre", self.manoeuvre, MANOEUVRES),
            ("speed", self.speed, SPEEDS),
        ):
            if value not in accepted:
                raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(accepted)}")

    def as_dict(self) -> dict[str, str]:
        """The attributes as they are stored in a caption file."""
        return asdict(self)


_PHRASES: dict[Split, dict[str, dict[str, tuple[str, ...]]]] = {
    "train": {
        "palette": {
            "meadow": (
                "through a green meadow",
                "across green grassland",
                "over fresh grass",
                "between green fields",
                "through summer meadows",
                "in a lush green landscape",
                "on a road in the meadow",
                "through bright green countryside",
                "past grassy fields by day",
                "in the green grass",
            ),
            "desert": (
                "through the desert",
                "across yellow sand",
                "over sandy ground",
                "between sand dunes",
                "through a dry desert",
                "in a hot sandy landscape",
                "on a desert road",
                "through brown dusty land",
                "past dunes of sand",
                "in the dry sand",
            ),
            "snow": (
                "through the snow",
                "across white snow",
                "over snowy ground",
                "between snow fields",
                "through a white winter land",
                "in a snowy landscape",
                "on a winter road",
                "through fresh white snow",
                "past snow-covered fields",
                "in cold winter snow",
            ),
            "night": (
                "at night",
                "through the dark night",
                "in the dark",
                "under a night sky",
                "on a dark road at night",
                "in a dark blue night",
                "late at night",
                "by night",
                "through darkness",
                "in the middle of the night",
            ),
        },
        "manoeuvre": {
            "left": (
                "keeping left",
                "staying on the left side of the road",
                "driving on the left",
                "holding the left lane",
                "hugging the left edge",
                "steering to the left side",
                "moving over to the left",
                "following the left border",
                "pulling to the left",
                "close to the left edge of the road",
            ),
            "centre": (
                "keeping to the centre",
                "staying in the middle of the road",
                "driving in the middle",
                "holding the centre line",
                "going straight along the road",
                "steering down the middle",
                "following the middle of the road",
                "well centred on the road",
                "in the centre of the road",
                "between both edges of the road",
            ),
            "right": (
                "keeping right",
                "staying on the right side of the road",
                "driving on the right",
                "holding the right lane",
                "hugging the right edge",
                "steering to the right side",
                "moving over to the right",
                "following the right border",
                "pulling to the right",
                "close to the right edge of the road",
            ),
            "weave": (
                "weaving from side to side",
                "swerving left and right",
                "zigzagging along the road",
                "winding in snake lines",
                "weaving across the road",
                "swinging between both edges",
                "swerving to and fro",
                "slaloming along the road",
                "going back and forth across the road",
                "wobbling from edge to edge",
            ),
        },
        "speed": {
            "slow": (
                "slowly",
                "at low speed",
                "at a slow pace",
                "gently",
                "at a crawl",
                "without any hurry",
                "quite slowly",
                "at walking pace",
                "in slow motion",
                "calmly and slowly",
            ),
            "fast": (
                "fast",
                "at high speed",
                "at a fast pace",
                "quickly",
                "at full speed",
                "in a great hurry",
                "very fast",
                "at racing speed",
                "with the throttle open",
                "rapidly",
            ),
        },
    },
    "heldout": {
        "palette": {
            "meadow": (
                "through lush green pastures",
                "over a grassy plain",
                "surrounded by green lawns",
                "in springtime countryside",
            ),
            "desert": (
                "through the sahara",
                "over a sandy plain",
                "surrounded by dunes",
                "in an arid wasteland",
            ),
            "snow": (
                "through an icy white plain",
                "over a frozen field",
                "surrounded by snowdrifts",
                "in a wintry landscape",
            ),
            "night": (
                "after dark",
                "during the night",
                "surrounded by darkness",
                "in a black moonless night",
            ),
        },
        "manoeuvre": {
            "left": (
                "sticking to the left",
                "along the left-hand side",
                "near the left kerb",
                "drifting to the left edge",
            ),
            "centre": (
                "sticking to the middle",
                "along the centre line",
                "straight down the middle",
                "away from both edges",
            ),
            "right": (
                "sticking to the right",
                "along the right-hand side",
                "near the right kerb",
                "drifting to the right edge",
            ),
            "weave": (
                "meandering between the edges",
                "snaking along the road",
                "veering this way and that",
                "swaying to either side",
            ),
        },
        "speed": {
            "slow": ("unhurriedly", "at a snail's pace", "with low velocity", "leisurely"),
            "fast": ("speedily", "at top speed", "with high velocity", "as fast as it can"),
        },
    },
}

_TEMPLATES: dict[Split, tuple[str, ...]] = {
    "train": (
        "a car {speed} {manoeuvre} {palette}",
        "{palette}, a car {manoeuvre} {speed}",
        "driving {speed} {palette}, {manoeuvre}",
        "{manoeuvre}, {speed}, {palette}",
        "a red car {palette}, {manoeuvre} {speed}",
        "{speed} {palette}, {manoeuvre}",
        "a drive {palette}: {manoeuvre}, {speed}",
        "{manoeuvre} {palette}, {speed}",
    ),
    "heldout": (
        "the car travels {palette} {speed}, {manoeuvre}",
        "{speed}, the car is {manoeuvre}, {palette}",
        "view from above: {manoeuvre} {palette}, {speed}",
    ),
}

_CANONICAL = {
    "meadow": "through a green meadow",
    "desert": "through the desert",
    "snow": "through the snow",
    "night": "at night",
    "left": "keeping left",
    "centre": "keeping to the centre",
    "right": "keeping right",
    "weave": "weaving from side to side",
    "slow": "slowly",
    "fast": "fast",
}


def all_attributes() -> list[Attributes]:
    """Every combination of palette, manoeuvre and speed, in a fixed order."""
    return [
        Attributes(palette=palette, manoeuvre=manoeuvre, speed=speed)
        for palette, manoeuvre, speed in product(PALETTES, MANOEUVRES, SPEEDS)
    ]


def canonical_caption(attributes: Attributes) -> str:
    """The one caption that interfaces show for a combination; a training phrasing."""
    return "driving {speed} {palette}, {manoeuvre}".format(
        **{name: _CANONICAL[value] for name, value in attributes.as_dict().items()}
    )


def draw_captions(attributes: Attributes, count: int, random: Random, *, split: Split = "train") -> list[str]:
    """`count` different random captions of `attributes` from the phrases and templates of one split."""
    possible = len(_TEMPLATES[split])
    for name, value in attributes.as_dict().items():
        possible *= len(_PHRASES[split][name][value])
    if not 1 <= count <= possible:
        raise ValueError(f"count={count} captions cannot be drawn; use 1 to {possible} for split={split!r}")
    captions: dict[str, None] = {}
    while len(captions) < count:
        words = {
            name: random.choice(_PHRASES[split][name][value]) for name, value in attributes.as_dict().items()
        }
        captions[random.choice(_TEMPLATES[split]).format(**words)] = None
    return list(captions)


def phrases(split: Split) -> set[str]:
    """Every phrase of a split, whatever attribute it describes."""
    return {
        phrase for values in _PHRASES[split].values() for choices in values.values() for phrase in choices
    }


def templates(split: Split) -> tuple[str, ...]:
    """The sentence templates of a split."""
    return _TEMPLATES[split]
