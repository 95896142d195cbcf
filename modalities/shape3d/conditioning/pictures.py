"""Pictures as image-conditioned flows were trained to see them: one object, centred, on black."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Num
from PIL import Image, ImageOps
from torch import Tensor

OPAQUE = 255
SOLID = 0.8 * OPAQUE  # alpha from which a pixel counts for the frame around the object
MARGIN = 1.2  # edge of the frame to that of the object
LARGEST_SIDE = 1024  # of a picture that goes to a matting network
BACKGROUND_TOLERANCE = 24  # by which a channel of the background may differ from its colour
BORDER_SHARE = 0.9  # of the border's pixels that must have the background's colour

Matting = Callable[[Image.Image], Image.Image]
"""From an RGB picture to the same as RGBA, transparent where the background is."""


def centred_on_black(picture: Image.Image, *, size: int = 518, matting: Matting | None = None) -> Image.Image:
    """The object of a picture in the middle of a square, on black, as TRELLIS prepares its input.

    Args:
        picture: with transparency where the background is; or of any kind, which ``matting`` makes so.
        size: of the square.
        matting: by default `without_solid_background`.

    Raises:
        ValueError: nothing of the picture is opaque, or its background cannot be told.
    """
    cut = cut_out(picture, matting or without_solid_background)
    alpha = np.asarray(cut)[:, :, 3]
    rows, columns = (alpha > SOLID).nonzero()
    if not len(rows):
        raise ValueError("picture has no opaque pixel; give one with an object in it")
    left, right, top, bottom = columns.min(), columns.max(), rows.min(), rows.max()
    half = int(max(right - left, bottom - top) * MARGIN) // 2
    if half == 0:
        raise ValueError("picture's object is a single pixel; give one with an object in it")
    x, y = (left + right) / 2, (top + bottom) / 2
    square = cut.crop((round(x - half), round(y - half), round(x + half), round(y + half)))
    square = square.resize((size, size), Image.Resampling.LANCZOS)
    values = np.asarray(square, dtype=np.float32) / OPAQUE
    premultiplied = values[:, :, :3] * values[:, :, 3:]
    return Image.fromarray((premultiplied * OPAQUE).astype(np.uint8))


def cut_out(picture: Image.Image, matting: Matting) -> Image.Image:
    """RGBA: the picture as it is where parts of it are transparent, else as matting leaves it."""
    picture = ordinary(picture)
    return picture.convert("RGBA") if has_transparency(picture) else matting(_reduced(picture))


def ordinary(picture: Image.Image) -> Image.Image:
    """Upright, whichever way its camera was held, and of at most 8 bits per channel.

    PIL cuts the 16 bits of grey pictures off at 255, which makes all of them white.
    """
    upright = ImageOps.exif_transpose(picture)
    if not upright.mode.startswith("I"):
        return upright
    grey = np.asarray(upright).astype(np.int64)
    return Image.fromarray(
        (grey >> 8 if grey.max(initial=0) > OPAQUE else grey).clip(0, OPAQUE).astype(np.uint8)
    )


def picture_values(picture: Image.Image) -> Float[Tensor, " 3 height width"]:
    """An RGB picture as numbers in 0 to 1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / OPAQUE).permute(2, 0, 1)


def without_solid_background(picture: Image.Image) -> Image.Image:
    """RGBA, transparent where the background's colour reaches from the border.

    Raises:
        ValueError: the border is not of one colour, or all of the picture is.
    """
    pixels = np.asarray(picture.convert("RGB"))
    colour = np.median(_border(pixels), axis=0)
    similar = np.asarray((np.abs(pixels - colour) <= BACKGROUND_TOLERANCE).all(2))
    if _border(similar).mean() < BORDER_SHARE:
        raise ValueError(
            "picture has no transparency and no background of one colour; cut the object out, or let "
            "rembg do it (--cut-out, in Python cut_out(picture, rembg_matting()))"
        )
    background = _reached_from_border(similar)
    if background.all():
        raise ValueError("picture is of one colour; give one with an object in it")
    alpha = np.where(background, 0, OPAQUE).astype(np.uint8)
    return Image.fromarray(np.dstack([pixels, alpha]), "RGBA")


def rembg_matting(model: str = "u2net") -> Matting:
    """Matting by a network of the package rembg, which fetches its weights at the first use.

    Raises:
        ImportError: rembg is not installed.
    """
    try:
        from rembg import new_session, remove  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError(
            "cutting objects out of their backgrounds needs rembg: pip install 'fewstep[cut-out]'; or give "
            "pictures with transparency"
        ) from error
    session = new_session(model)
    return lambda picture: remove(picture, session=session)


def has_transparency(picture: Image.Image) -> bool:
    """Whether any of it is not opaque."""
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return False
    return bool((np.asarray(picture.convert("RGBA"))[:, :, 3] != OPAQUE).any())


def _reduced(picture: Image.Image) -> Image.Image:
    scale = LARGEST_SIDE / max(picture.size)
    rgb = picture.convert("RGB")
    if scale >= 1:
        return rgb
    return rgb.resize((int(rgb.width * scale), int(rgb.height * scale)), Image.Resampling.LANCZOS)


def _border(
    values: Num[np.ndarray, " height width *channel"] | Bool[np.ndarray, " height width"],
) -> np.ndarray:
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])


def _reached_from_border(open_: Bool[np.ndarray, " height width"]) -> Bool[np.ndarray, " height width"]:
    reached = np.zeros_like(open_)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        reached[edge] = open_[edge]
    while True:
        further = _along_rows(_along_rows(reached, open_).T, open_.T).T
        if (further == reached).all():
            return reached
        reached = further


def _along_rows(
    reached: Bool[np.ndarray, " height width"], open_: Bool[np.ndarray, " height width"]
) -> Bool[np.ndarray, " height width"]:
    """All of every run of open pixels of a row that has been reached anywhere."""
    height, width = open_.shape
    runs = np.cumsum(~open_, axis=1) + (width + 1) * np.arange(height)[:, None]
    touched = np.bincount(runs[reached], minlength=height * (width + 1)) > 0
    return touched[runs] & open_
