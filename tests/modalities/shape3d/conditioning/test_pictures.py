import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fewstep.modalities.shape3d.conditioning.pictures import (
    centred_on_black,
    cut_out,
    ordinary,
    picture_values,
    rembg_matting,
    without_solid_background,
)

RED, WHITE = (200, 30, 20), (250, 250, 245)


def ring(mode: str = "RGBA") -> Image.Image:
    """A red frame of 20 x 12 pixels away from the middle, with a hole that shows the background."""
    transparent = (255, 255, 255, 0) if mode == "RGBA" else WHITE
    picture = Image.new(mode, (64, 48), transparent)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((4, 30, 23, 41), fill=(*RED, 255) if mode == "RGBA" else RED)
    draw.rectangle((10, 34, 15, 37), fill=transparent)
    return picture


def test_the_object_is_centred_with_a_margin_on_black() -> None:
    pixels = np.asarray(centred_on_black(ring(), size=110))
    assert pixels.shape == (110, 110, 3)
    rows, columns = (pixels[:, :, 0] > 100).nonzero()
    # its longer edge of 20 pixels lies in a frame of 22 (a margin of 1.2, of a distance of 19)
    assert columns.max() - columns.min() + 1 == pytest.approx(110 * 20 / 22, abs=2)
    assert rows.max() - rows.min() + 1 == pytest.approx(110 * 12 / 22, abs=2)
    # the frame is placed to a pixel of the picture, which is 5 of these
    assert (rows.max() + rows.min()) / 2 == pytest.approx(54.5, abs=5)
    assert not pixels[:10].any()


def test_what_is_transparent_becomes_black_whatever_its_colour() -> None:
    pixels = np.asarray(centred_on_black(ring(), size=110))
    assert not pixels[54, 50].any()  # within the hole, white below its transparency


def test_a_background_of_one_colour_is_cut_away_from_the_border_only() -> None:
    cut = np.asarray(without_solid_background(ring("RGB")))
    expected = np.zeros((48, 64), dtype=bool)
    expected[30:42, 4:24] = True  # with the hole, which the background does not reach
    assert np.array_equal(cut[:, :, 3] == 255, expected)
    assert np.array_equal(cut[:, :, :3], np.asarray(ring("RGB")))


def test_a_background_is_followed_around_corners() -> None:
    picture = Image.new("RGB", (9, 9), WHITE)
    draw = ImageDraw.Draw(picture)
    draw.line([(1, 1), (7, 1), (7, 7), (3, 7), (3, 3), (5, 3)], fill=RED)  # a spiral
    alpha = np.asarray(without_solid_background(picture))[:, :, 3]
    assert int((alpha > 0).sum()) == int((np.asarray(picture)[:, :, 1] == RED[1]).sum())


def test_another_matting_is_asked_only_where_nothing_is_transparent() -> None:
    asked = []

    def matting(picture: Image.Image) -> Image.Image:
        asked.append(picture.size)
        return ring()

    centred_on_black(ring(), matting=matting)
    assert asked == []
    opaque = Image.new("RGBA", (2048, 1024), (1, 2, 3, 255))
    centred_on_black(opaque, matting=matting)
    assert asked == [(1024, 512)]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("RGB", (8, 8), RED), "of one colour"),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "no opaque pixel"),
        (Image.effect_noise((32, 32), 120).convert("RGB"), "no background of one colour"),
    ],
)
def test_pictures_without_an_object_are_errors(picture: Image.Image, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        centred_on_black(picture)


def test_without_rembg_its_matting_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(ImportError, match=r"pip install 'fewstep\[cut-out\]'"):
        rembg_matting()


def test_values_are_in_zero_to_one_with_channels_first() -> None:
    values = picture_values(Image.new("RGB", (3, 2), (255, 0, 51)))
    assert values.shape == (3, 2, 3)
    torch.testing.assert_close(values[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))


def test_a_picture_is_cut_out_once() -> None:
    opaque = Image.new("RGBA", (8, 8), (9, 9, 9, 255))
    asked: list[str] = []

    def matting(picture: Image.Image) -> Image.Image:
        asked.append(picture.mode)
        return Image.new("RGBA", picture.size, (1, 2, 3, 100))

    cut = cut_out(opaque, matting)
    assert asked == ["RGB"]  # nothing of it was transparent
    assert cut_out(cut, matting) is not None
    assert asked == ["RGB"]


def test_pictures_are_upright_as_their_camera_was_held() -> None:
    upright = ring("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    file = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    turned = Image.open(file)
    assert turned.size == (48, 64)
    assert np.array_equal(np.asarray(ordinary(turned)), np.asarray(upright))
    found, true = (centred_on_black(picture, size=40) for picture in (turned, upright))
    assert np.array_equal(np.asarray(found), np.asarray(true))


@pytest.mark.parametrize("scale", [1, 257], ids=["8 bits in 16", "16 bits"])
def test_grey_pictures_of_16_bits_keep_their_shades(scale: int) -> None:
    grey = np.asarray(ring("RGB").convert("L"))
    found = ordinary(Image.fromarray(grey.astype(np.uint16) * scale)).convert("RGB")
    assert np.array_equal(np.asarray(found)[:, :, 0], grey)
