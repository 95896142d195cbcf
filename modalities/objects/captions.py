"""Captions of the world of objects: attributes, a grammar, and a part of both that training never sees."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from random import Random
from string import Formatter
from typing import Literal

Phrasing = Literal["train", "heldout"]

CATEGORIES = (
    "chair",
    "table",
    "sofa",
    "lamp",
    "mug",
    "teapot",
    "bottle",
    "vase",
    "bowl",
    "car",
    "plane",
    "boat",
    "duck",
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")
MATERIALS = ("matte", "glossy", "metal")
VIEWS = ("front", "side", "above", "three-quarter")
LIGHTS = ("left", "right", "above")
TONES = ("neutral", "warm", "cool")
BACKGROUNDS = ("white", "grey", "beige", "blue", "green", "pink", "dark")

# Pairs that no training image shows: one or two of each category, every colour once or twice.
HELDOUT_PAIRS = frozenset(
    {
        ("chair", "purple"),
        ("chair", "orange"),
        ("table", "pink"),
        ("sofa", "green"),
        ("lamp", "blue"),
        ("mug", "yellow"),
        ("teapot", "red"),
        ("bottle", "white"),
        ("vase", "orange"),
        ("bowl", "black"),
        ("car", "brown"),
        ("plane", "green"),
        ("boat", "purple"),
        ("duck", "pink"),
    }
)


@dataclass(frozen=True, kw_only=True, order=True)
class Attributes:
    """What is in a picture, how it is lit and from where it is seen."""

    category: str
    colour: str
    material: str = "matte"
    view: str = "three-quarter"
    light: str = "left"
    tone: str = "neutral"
    background: str = "white"

    def __post_init__(self) -> None:
        for name, accepted in (
            ("category", CATEGORIES),
            ("colour", COLOURS),
            ("material", MATERIALS),
            ("view", VIEWS),
            ("light", LIGHTS),
            ("tone", TONES),
            ("background", BACKGROUNDS),
        ):
            if getattr(self, name) not in accepted:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(accepted)}"
                )

    def as_dict(self) -> dict[str, str]:
        """The attributes as they are stored beside a picture."""
        return asdict(self)


def pairs(*, heldout: bool) -> list[tuple[str, str]]:
    """Category and colour of training pictures, or the pairs that training never shows."""
    return [
        (category, colour)
        for category in CATEGORIES
        for colour in COLOURS
        if ((category, colour) in HELDOUT_PAIRS) == heldout
    ]


_WORDS: dict[Phrasing, dict[str, dict[str, tuple[str, ...]]]] = {
    "train": {
        "noun": {
            **{category: (category,) for category in CATEGORIES},
            "sofa": ("sofa", "couch"),
            "mug": ("mug", "cup"),
            "plane": ("plane", "aeroplane"),
            "boat": ("boat", "sailing boat"),
            "duck": ("duck", "rubber duck"),
        },
        "colour": {colour: (colour,) for colour in COLOURS},
        "material": {
            "matte": ("matte",),
            "glossy": ("glossy", "shiny"),
            "metal": ("metal", "metallic"),
        },
        "view": {
            "front": ("seen from the front", "front view"),
            "side": ("seen from the side", "side view"),
            "above": ("seen from above", "from above"),
            "three-quarter": ("seen at an angle", "three-quarter view"),
        },
        "light": {
            "left": ("light from the left", "lit from the left"),
            "right": ("light from the right", "lit from the right"),
            "above": ("light from above", "lit from above"),
        },
        "tone": {"neutral": ("neutral light",), "warm": ("warm light",), "cool": ("cool light",)},
        "background": {
            "white": ("on a white background",),
            "grey": ("on a grey background",),
            "beige": ("on a beige background",),
            "blue": ("on a light blue background",),
            "green": ("on a light green background",),
            "pink": ("on a light pink background",),
            "dark": ("on a dark background",),
        },
    },
    "heldout": {
        "noun": {
            "chair": ("seat",),
            "table": ("desk",),
            "sofa": ("settee",),
            "lamp": ("table lamp",),
            "mug": ("coffee mug",),
            "teapot": ("tea kettle",),
            "bottle": ("flask",),
            "vase": ("flower vase",),
            "bowl": ("soup bowl",),
            "car": ("automobile",),
            "plane": ("airplane",),
            "boat": ("sailboat",),
            "duck": ("toy duck",),
        },
        "colour": {
            "red": ("scarlet",),
            "orange": ("tangerine",),
            "yellow": ("lemon yellow",),
            "green": ("emerald",),
            "blue": ("royal blue",),
            "purple": ("violet",),
            "pink": ("rose",),
            "brown": ("chocolate brown",),
            "white": ("snow white",),
            "black": ("jet black",),
        },
        "material": {"matte": ("dull",), "glossy": ("polished",), "metal": ("steel",)},
        "view": {
            "front": ("facing the camera",),
            "side": ("in profile",),
            "above": ("looking down on it",),
            "three-quarter": ("turned a little",),
        },
        "light": {
            "left": ("a lamp on the left",),
            "right": ("a lamp on the right",),
            "above": ("a lamp overhead",),
        },
        "tone": {"neutral": ("white light",), "warm": ("evening light",), "cool": ("bluish light",)},
        "background": {
            background: (f"in front of a {colour} backdrop",)
            for background, colour in zip(
                BACKGROUNDS,
                ("white", "grey", "beige", "pale blue", "pale green", "pale pink", "dark"),
                strict=True,
            )
        },
    },
}

_SHORT: dict[Phrasing, tuple[str, ...]] = {
    "train": (
        "a {colour} {noun}",
        "{colour} {noun}",
        "the {colour} {noun}",
        "a photo of a {colour} {noun}",
        "a picture of a {colour} {noun}",
        "an image of a {colour} {noun}",
    ),
    "heldout": ("this {noun} is {colour}", "one single {colour} {noun}", "a {noun} in {colour}"),
}
_ONE_MORE: dict[Phrasing, tuple[str, ...]] = {
    "train": (
        "a {material} {colour} {noun}",
        "a {colour} {noun}, {view}",
        "a {colour} {noun} {background}",
        "a {colour} {noun}, {light}",
        "a {colour} {noun}, {tone}",
    ),
    "heldout": ("this {noun} is {colour} and {material}", "{view}, a {noun} in {colour}"),
}
_LONG: dict[Phrasing, tuple[str, ...]] = {
    "train": (
        "a {material} {colour} {noun} {background}",
        "a {material} {colour} {noun}, {view}",
        "a {material} {colour} {noun}, {light}, {tone}",
        "a photo of a {colour} {noun}, {view}, {tone}",
    ),
    "heldout": (
        "{background}: a {noun} in {colour}, {view}",
        "{tone}, {light}, one {material} {colour} {noun}",
    ),
}


def canonical_caption(attributes: Attributes) -> str:
    """The one caption that interfaces show: "a blue mug"; a training phrasing."""
    return _filled("a {colour} {noun}", attributes, Random(0), "train", canonical=True)


def full_caption(attributes: Attributes) -> str:
    """Every attribute in words of the training grammar, one fixed phrasing."""
    template = "a {material} {colour} {noun}, {view}, {light}, {tone}, {background}"
    return _filled(template, attributes, Random(0), "train", canonical=True)


def train_captions(attributes: Attributes, random: Random) -> list[str]:
    """Six captions of training phrasings, of which the first is the canonical one.

    Three name colour and category only, since those are what people type; two name one attribute more, one
    names two or three more. So few distinct captions occur that their text features can be kept.
    """
    return [canonical_caption(attributes), *_drawn(attributes, random, "train", (2, 2, 1))]


def heldout_captions(attributes: Attributes, random: Random) -> list[str]:
    """Three captions, one of each length, of phrasings and synonyms that training never uses."""
    return _drawn(attributes, random, "heldout", (1, 1, 1))


def drawn_prompt(
    attributes: Attributes, random: Random, phrasing: Phrasing, *, length: int
) -> tuple[str, frozenset[str]]:
    """One caption and the names of the attributes that it mentions.

    Args:
        length: 0 names category and colour only, 1 one attribute more, 2 two or more.
    """
    template = random.choice((_SHORT, _ONE_MORE, _LONG)[length][phrasing])
    fields = {field for _, field, _, _ in Formatter().parse(template) if field}
    named = {"category" if field == "noun" else field for field in fields}
    return _filled(template, attributes, random, phrasing), frozenset(named)


def templates(phrasing: Phrasing) -> set[str]:
    """Every sentence template of one side of the grammar."""
    return {*_SHORT[phrasing], *_ONE_MORE[phrasing], *_LONG[phrasing]}


def phrases(phrasing: Phrasing) -> set[str]:
    """Every word or phrase that one side of the grammar fills its templates with."""
    return {
        phrase for values in _WORDS[phrasing].values() for choices in values.values() for phrase in choices
    }


def _drawn(
    attributes: Attributes, random: Random, phrasing: Phrasing, counts: tuple[int, int, int]
) -> list[str]:
    captions = []
    for group, count in zip((_SHORT, _ONE_MORE, _LONG), counts, strict=True):
        for template in random.sample(group[phrasing], count):
            captions.append(_filled(template, attributes, random, phrasing))
    return captions


def _filled(
    template: str, attributes: Attributes, random: Random, phrasing: Phrasing, *, canonical: bool = False
) -> str:
    values = attributes.as_dict()
    values["noun"] = values.pop("category")
    words = {
        name: choices[values[name]][0] if canonical else random.choice(choices[values[name]])
        for name, choices in _WORDS[phrasing].items()
    }
    return _with_article(template.format(**words))


def _with_article(text: str) -> str:
    """ "a orange mug" becomes "an orange mug"."""
    words = text.split(" ")
    for place, (word, following) in enumerate(pairwise(words)):
        if word == "a" and following[0] in "aeiou":
            words[place] = "an"
    return " ".join(words)
