"""Rendered scenes: what decides them, and whether a picture shows what its attributes say."""

from dataclasses import replace

import numpy as np
import pytest

from fewstep.modalities.objects.captions import COLOURS, HELDOUT_PAIRS, Attributes
from fewstep.modalities.objects.raycast import trace
from fewstep.modalities.objects.scene import Scene, draw_attributes, draw_scene, numbered_scene, render
from fewstep.modalities.objects.shapes import CATEGORIES
from fewstep.modalities.objects.surfaces import COLOURS_SRGB, developed, linear

SOFA = Attributes(category="sofa", colour="blue", view="front", background="grey")


def scene(attributes: Attributes, seed: int = 0) -> Scene:
    return draw_scene(attributes, np.random.default_rng(seed))


def picture(attributes: Attributes, seed: int = 0, size: int = 24) -> np.ndarray:
    return render(scene(attributes, seed), size=size)


def test_a_picture_follows_from_seed_split_and_number():
    one, again = (render(numbered_scene(5, seed=1, split="train"), size=16) for _ in range(2))
    assert np.array_equal(one, again)
    for number, seed, split in ((6, 1, "train"), (5, 2, "train"), (5, 1, "val")):
        assert not np.array_equal(one, render(numbered_scene(number, seed=seed, split=split), size=16))


def test_heldout_pairs_are_in_their_split_only():
    for split in ("train", "val", "heldout"):
        drawn = [numbered_scene(number, split=split).attributes for number in range(60)]
        shown = {(one.category, one.colour) in HELDOUT_PAIRS for one in drawn}
        assert shown == {split == "heldout"}


def test_random_attributes_reach_every_category_and_colour():
    rng = np.random.default_rng(0)
    drawn = [draw_attributes(rng) for _ in range(400)]
    assert {one.category for one in drawn} == set(CATEGORIES)
    assert {one.colour for one in drawn} == set(COLOURS)


@pytest.mark.parametrize("size", [16, 40])
def test_pictures_are_8_bit_of_the_size_asked_for_and_show_something(size: int):
    pixels = picture(SOFA, size=size)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (size, size, 3)
    assert pixels.std() > 10


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_object_is_whole_in_the_picture_and_fills_it(category: str):
    for view in ("front", "above"):
        attributes = Attributes(category=category, colour="blue", background="white", view=view)
        shown = scene(attributes, seed=1)
        # The same object in the colour of the backdrop, and not: what differs is the object.
        red = render(replace(shown, attributes=replace(attributes, colour="red")), size=24).astype(int)
        rows, columns = np.nonzero(np.abs(red - render(shown, size=24)).max(-1) > 24)
        assert len(rows) > 20
        extent = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 0.35 * 24 <= extent <= 0.95 * 24
        for places in (rows, columns):
            assert places.min() >= 0.01 * 24 or category in ("boat", "plane")


@pytest.mark.parametrize("colour", COLOURS)
def test_the_objects_colour_is_the_nearest_of_the_named_ones(colour: str):
    pixels = picture(replace(SOFA, colour=colour), size=32).astype(float)
    middle = np.median(pixels[14:24, 10:22].reshape(-1, 3), axis=0)
    distances = {
        name: np.abs(_chroma(np.array(rgb)) - _chroma(middle)).sum() for name, rgb in COLOURS_SRGB.items()
    }
    assert min(distances, key=lambda name: distances[name]) == colour


def _chroma(rgb: np.ndarray) -> np.ndarray:
    """Hue and saturation weigh more than brightness, as in naming."""
    total = rgb.sum() + 60
    return np.array([*(rgb / total * 3), rgb.sum() / 765])


def test_light_from_the_left_brightens_the_left_of_a_round_object():
    vase = Attributes(category="vase", colour="white", view="front", background="grey")

    def bias(light: str) -> float:
        shown = picture(replace(vase, light=light), size=32).astype(float).mean(-1)[16:22]
        return shown[:, 11:15].mean() - shown[:, 17:21].mean()

    assert bias("left") > 15
    assert bias("right") < -15


def test_warm_light_is_redder_than_cool_light():
    warm, cool = (
        picture(replace(SOFA, colour="white", tone=tone)).astype(float) for tone in ("warm", "cool")
    )
    assert (warm[..., 0] - warm[..., 2]).mean() > (cool[..., 0] - cool[..., 2]).mean() + 20


def test_glossy_and_metal_surfaces_have_highlights_that_a_matte_one_lacks():
    contrast = {}
    for material in ("matte", "glossy", "metal"):
        shown = picture(replace(SOFA, category="vase", material=material), size=32)
        contrast[material] = shown[16:24, 12:20].std(axis=(0, 1)).mean()  # all of it vase
    assert contrast["glossy"] > contrast["matte"] + 5
    assert contrast["metal"] > contrast["matte"] + 5


def test_the_floor_is_darker_under_the_object():
    bowl = replace(SOFA, category="bowl", background="white", light="above", colour="white")
    pixels = picture(bowl).astype(float).mean(-1)
    column = pixels[10:, 12]
    assert column.min() < 0.75 * column[-1]


def test_albedo_is_the_named_colour_whatever_the_light():
    for tone in ("warm", "cool"):
        shown = scene(replace(SOFA, category="duck", colour="green", tone=tone))
        rays = np.array([[0, 0, 0], [1, 1, 1], [-0.3, -0.2, -0.3]], np.float32)
        rays /= np.linalg.norm(rays, axis=0)
        lengths = trace(shown.shape, np.array([[0], [-3], [1.0]], np.float32), rays)
        hit = np.isfinite(lengths)
        assert hit.any()
        points = (np.array([[0], [-3], [1.0]]) + rays[:, hit] * lengths[hit]).T
        albedo = shown.albedo(points)
        known = [linear(COLOURS_SRGB["green"]), linear((248, 130, 20)), linear((30, 30, 32))]
        assert all(min(np.abs(one - other).max() for other in known) < 1e-6 for one in albedo)


def test_development_is_the_srgb_curve_that_rolls_off():
    for value in (10, 90, 200):
        grey = linear((value, value, value))
        assert developed(grey[None])[0] * 255 == pytest.approx([value] * 3, abs=0.01)
    bright = developed(np.full((1, 3), 9.0, np.float32))
    assert bright.max() <= 1


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="split='test' is unknown; use one of train, val, heldout"):
        numbered_scene(0, split="test")
    with pytest.raises(ValueError, match="size=4 is too small"):
        render(scene(SOFA), size=4)
