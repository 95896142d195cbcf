"""The grammar of captions and what it keeps from training."""

import itertools
import math
from random import Random

import pytest

from fewstep.modalities.objects import captions as captions_module
from fewstep.modalities.objects.captions import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    HELDOUT_PAIRS,
    LIGHTS,
    MATERIALS,
    TONES,
    VIEWS,
    Attributes,
    canonical_caption,
    full_caption,
    heldout_captions,
    pairs,
    phrases,
    templates,
    train_captions,
)

MUG = Attributes(category="mug", colour="blue", material="glossy", view="above", tone="warm")


def drawn(random: Random) -> Attributes:
    return Attributes(
        category=random.choice(CATEGORIES),
        colour=random.choice(COLOURS),
        material=random.choice(MATERIALS),
        view=random.choice(VIEWS),
        light=random.choice(LIGHTS),
        tone=random.choice(TONES),
        background=random.choice(BACKGROUNDS),
    )


def test_the_canonical_caption_is_what_people_type():
    assert canonical_caption(MUG) == "a blue mug"
    assert canonical_caption(Attributes(category="chair", colour="orange")) == "an orange chair"


def test_the_full_caption_tells_every_attribute():
    assert full_caption(MUG) == (
        "a glossy blue mug, seen from above, light from the left, warm light, on a white background"
    )
    differing = {full_caption(drawn(Random(seed))) for seed in range(200)}
    assert len(differing) == len({drawn(Random(seed)) for seed in range(200)})


def test_half_of_the_training_captions_name_colour_and_category_only():
    captions = train_captions(MUG, Random(0))
    assert len(captions) == 6
    assert captions[0] == "a blue mug"
    extras = ("glossy", "shiny", "above", "left", "warm", "white")
    short = [text for text in captions if not any(word in text for word in extras)]
    assert len(short) == 3
    assert all("blue" in text and ("mug" in text or "cup" in text) for text in captions)


def test_training_and_heldout_share_no_template_phrase_or_caption():
    assert not templates("train") & templates("heldout")
    shared_words = phrases("train") & phrases("heldout")
    assert shared_words == set()
    train, heldout = set(), set()
    for seed in range(300):
        attributes = drawn(Random(seed))
        train.update(train_captions(attributes, Random(seed)))
        heldout.update(heldout_captions(attributes, Random(seed)))
    assert not train & heldout


def test_every_attribute_value_is_heard_in_training():
    texts = " | ".join(
        text for seed in range(500) for text in train_captions(drawn(Random(seed)), Random(seed))
    )
    for phrase in phrases("train"):
        assert phrase in texts


def test_distinct_training_captions_are_few_enough_to_keep_their_features():
    choices = {
        name: sum(map(len, values.values())) for name, values in captions_module._WORDS["train"].items()
    }
    possible = 0
    for template in templates("train"):
        named = [name for name in choices if f"{{{name}}}" in template]
        possible += math.prod(choices[name] for name in named)
    assert possible < 45_000


def test_captions_follow_from_attributes_and_the_random_state():
    assert train_captions(MUG, Random(3)) == train_captions(MUG, Random(3))
    assert train_captions(MUG, Random(3)) != train_captions(MUG, Random(4))


def test_no_caption_says_a_before_a_vowel():
    for seed in range(200):
        attributes = drawn(Random(seed))
        for text in (*train_captions(attributes, Random(seed)), *heldout_captions(attributes, Random(seed))):
            for one, two in itertools.pairwise(text.split()):
                assert not (one == "a" and two[0] in "aeiou")
                assert not (one == "an" and two[0] not in "aeiou")


def test_heldout_pairs_keep_every_category_and_colour_in_training():
    train, heldout = pairs(heldout=False), pairs(heldout=True)
    assert set(heldout) == HELDOUT_PAIRS
    assert not set(train) & set(heldout)
    assert len(train) + len(heldout) == len(CATEGORIES) * len(COLOURS)
    assert {category for category, _ in train} == {category for category, _ in heldout} == set(CATEGORIES)
    assert {colour for _, colour in train} == {colour for _, colour in heldout} == set(COLOURS)


@pytest.mark.parametrize("name", ["category", "colour", "material", "view", "light", "tone", "background"])
def test_an_unknown_value_is_refused_with_the_accepted_ones(name: str):
    with pytest.raises(ValueError, match=f"{name}='plaid' is unknown; use one of "):
        Attributes(**{"category": "mug", "colour": "blue", name: "plaid"})
