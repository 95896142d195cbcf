"""The caption grammar."""

import re
from random import Random

import pytest

from fewstep.modalities.video.captions import (
    MANOEUVRES,
    PALETTES,
    SPEEDS,
    Attributes,
    all_attributes,
    canonical_caption,
    draw_captions,
    phrases,
    templates,
)


def test_there_is_one_combination_for_each_palette_manoeuvre_and_speed():
    combinations = all_attributes()
    assert len(set(combinations)) == len(PALETTES) * len(MANOEUVRES) * len(SPEEDS) == 32


def test_heldout_phrases_and_templates_never_occur_in_training():
    assert not phrases("train") & phrases("heldout")
    assert not set(templates("train")) & set(templates("heldout"))


def test_no_heldout_phrase_is_part_of_a_training_caption():
    random = Random(0)
    captions = [text for a in all_attributes() for text in draw_captions(a, 50, random)]
    found = [phrase for phrase in phrases("heldout") if any(phrase in text for text in captions)]
    assert found == []


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_captions_are_short_complete_and_different(split):
    random = Random(0)
    for attributes in all_attributes():
        captions = draw_captions(attributes, 20, random, split=split)
        assert len(set(captions)) == 20
        for text in captions:
            assert "{" not in text
            assert len(re.findall(r"[a-z]+", text)) <= 22


@pytest.mark.parametrize(
    ("split", "attribute"),
    [(split, name) for split in ("train", "heldout") for name in ("palette", "manoeuvre", "speed")],
)
def test_captions_tell_every_value_of_an_attribute_apart(split, attribute):
    values = {"palette": PALETTES, "manoeuvre": MANOEUVRES, "speed": SPEEDS}[attribute]
    drawn = {
        value: set(draw_captions(Attributes(**{attribute: value}), 40, Random(0), split=split))
        for value in values
    }
    for value in values:
        others = set().union(*(drawn[other] for other in values if other != value))
        assert not drawn[value] & others


def test_left_captions_never_say_right_and_the_other_way_round():
    for side, other in (("left", "right"), ("right", "left")):
        for split in ("train", "heldout"):
            captions = draw_captions(Attributes(manoeuvre=side), 100, Random(1), split=split)
            assert all(re.search(rf"\b{side}\b", text) for text in captions)
            assert not any(re.search(rf"\b{other}\b", text) for text in captions)


def test_the_same_seed_draws_the_same_captions():
    attributes = Attributes(palette="night", manoeuvre="weave", speed="fast")
    assert draw_captions(attributes, 5, Random(3)) == draw_captions(attributes, 5, Random(3))


def test_canonical_captions_differ_between_combinations():
    assert len({canonical_caption(attributes) for attributes in all_attributes()}) == 32


def test_an_unknown_value_is_refused_with_the_accepted_ones():
    with pytest.raises(ValueError, match="palette='moon' is unknown; use one of meadow, desert, snow, night"):
        Attributes(palette="moon")


def test_more_captions_than_there_are_is_refused_not_an_endless_loop():
    with pytest.raises(ValueError, match="count=193 captions cannot be drawn; use 1 to 192"):
        draw_captions(Attributes(), 193, Random(0), split="heldout")
