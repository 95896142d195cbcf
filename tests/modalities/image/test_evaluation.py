"""Scores of pictures: right ones pass, wrong ones are counted wrong, and collapse shows."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from fewstep.modalities.image.classifier import (
    HEADS,
    AttributeClassifier,
    ClassifierConfig,
    labels_of,
    load_classifier,
    recognise,
)
from fewstep.modalities.image.evaluation import Measured, Reference, draw_prompts, obedience
from fewstep.modalities.image.files import load_pictures
from fewstep.modalities.image.metrics import NONE, object_colour, pairwise_distance
from fewstep.modalities.objects.captions import COLOURS, HELDOUT_PAIRS, Attributes, phrases
from fewstep.modalities.objects.scene import draw_scene, render

MUG = Attributes(category="mug", colour="blue")


def measured(colours: list[str], categories: list[str], **details: str) -> Measured:
    found = [MUG.as_dict() | {"category": category} | details for category in categories]
    return Measured(
        colours=colours, attributes=found, features=np.zeros((len(colours), 4)), high_frequency_energy=1.0
    )


@pytest.mark.parametrize("colour", COLOURS)
def test_a_rendered_object_has_the_colour_it_was_given(colour: str) -> None:
    scenes = [
        draw_scene(
            Attributes(category="vase", colour=colour, background=background), np.random.default_rng(n)
        )
        for n, background in enumerate(("grey", "beige"))
    ]
    assert object_colour(np.stack([render(scene) for scene in scenes])) == [colour] * 2


def test_a_picture_of_backdrop_alone_has_no_object_of_any_colour() -> None:
    assert object_colour(np.full((1, 64, 64, 3), 200, np.uint8)) == [NONE]


def test_wrong_colours_categories_and_details_are_counted_wrong() -> None:
    wanted, named = [MUG] * 4, [frozenset({"category", "colour", "view"})] * 4
    right = obedience(measured(["blue"] * 4, ["mug"] * 4), wanted, named)
    assert right == {
        "colour_accuracy": 100.0,
        "category_accuracy": 100.0,
        "detail_accuracy": 100.0,
        "view_accuracy": 100.0,
    }
    wrong = obedience(
        measured(["blue", "red", NONE, "blue"], ["mug", "bowl", "mug", "mug"], view="side", light="right"),
        wanted,
        named,
    )
    assert (wrong["colour_accuracy"], wrong["category_accuracy"]) == (50.0, 75.0)
    assert (wrong["detail_accuracy"], wrong["view_accuracy"]) == (0.0, 0.0)
    assert "light_accuracy" not in wrong  # no prompt named it


def test_collapse_to_one_picture_shows() -> None:
    varied = np.random.default_rng(0).integers(0, 255, (2, 4, 64, 64, 3)).astype(np.uint8)
    collapsed = np.repeat(varied[:, :1], 4, axis=1)
    assert pairwise_distance(list(collapsed)) == 0.0
    assert pairwise_distance(list(varied)) > 50
    two = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (10, 40)])
    assert pairwise_distance([two, two[:1]]) == pytest.approx(30.0)
    with pytest.raises(ValueError, match="no two pictures"):
        pairwise_distance([two[:1]])


def test_prompts_keep_to_their_phrasing_and_pairs_and_say_what_they_name() -> None:
    for heldout in (False, True):
        for prompt in draw_prompts(60, phrasing="train", heldout_pairs=heldout, seed=1):
            pair = prompt.attributes.category, prompt.attributes.colour
            assert (pair in HELDOUT_PAIRS) == heldout
            assert {"category", "colour"} <= prompt.named
            assert prompt.attributes.colour in prompt.text
            assert ("background" in prompt.text) == ("background" in prompt.named)
    other = draw_prompts(60, phrasing="heldout", heldout_pairs=False, seed=1)
    known = phrases("train") - phrases("heldout")
    assert not any(prompt.text in known for prompt in other)
    assert not any(prompt.attributes.colour == "blue" and "royal blue" not in prompt.text for prompt in other)
    assert draw_prompts(9, phrasing="train", heldout_pairs=False, seed=1)[3].seed == (
        draw_prompts(60, phrasing="train", heldout_pairs=False, seed=1)[3].seed
    )


@pytest.fixture(scope="module")
def reference(folder: Path, tiny_image: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    root = tiny_image.write_pictures(tmp_path_factory.mktemp("real"), {"val": 60, "heldout": 30})
    pictures = {
        name: load_pictures(root / split) for name, split in (("train", "val"), ("heldout", "heldout"))
    }
    return Reference.of(pictures, load_classifier(folder / "classifier"), weights="w", source="a test")


def test_a_reference_survives_its_file_and_knows_its_classifier(reference: Reference, tmp_path: Path) -> None:
    reference.save(tmp_path / "reference.json")
    loaded = Reference.load(tmp_path / "reference.json", weights="w")
    assert (loaded.samples, loaded.source) == ({"train": 20, "heldout": 10}, "a test")
    for name, moments in reference.moments.items():
        np.testing.assert_allclose(loaded.moments[name].covariance, moments.covariance, rtol=1e-4, atol=1e-6)
        assert loaded.floor[name] == pytest.approx(reference.floor[name], rel=1e-4, abs=1e-6)
    with pytest.raises(ValueError, match="is of another classifier"):
        Reference.load(tmp_path / "reference.json", weights="other")


def test_other_pictures_are_further_from_the_reference_than_real_ones(
    reference: Reference, folder: Path
) -> None:
    from fewstep.modalities.image.evaluation import FRECHET, appearance

    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3)).astype(np.uint8)
    scores = appearance(
        Measured.of(noise, load_classifier(folder / "classifier")), reference.moments["train"]
    )
    assert scores[FRECHET] > 2 * reference.floor["train"][FRECHET]
    assert scores["high_frequency_energy"] > 50


def test_the_classifier_gives_every_attribute_of_each_picture_on_its_own() -> None:
    classifier = AttributeClassifier(ClassifierConfig(width=2, features=4)).eval()
    pictures = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    found, features = recognise(classifier, pictures)
    assert all(one[name] in values for one in found for name, values in HEADS.items())
    assert found[1] == recognise(classifier, pictures[1:2])[0][0]
    assert features.shape == (3, 4)
    with pytest.raises(ValueError, match="32x32: the classifier was trained on 64x64"):
        classifier(torch.zeros(1, 3, 32, 32))


def test_pictures_without_attributes_are_refused() -> None:
    assert labels_of(MUG.as_dict()).tolist()[:2] == [4, 4]
    with pytest.raises(ValueError, match="fewstep render --world objects"):
        labels_of({"category": "cat"})
