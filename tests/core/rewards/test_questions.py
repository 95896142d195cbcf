"""Questions about captions, and where captions come from."""

import pytest
import torch

from fewstep.core.rewards.captions import captions_of, read_captions
from fewstep.core.rewards.questions import Asks, CaptionQuestion, Question

CAPTIONS = ["a red mug", "{caption} of {text}"]


@pytest.mark.parametrize("condition", [CAPTIONS, tuple(CAPTIONS), {"captions": CAPTIONS, "features": 1}])
def test_captions_are_read_from_a_list_or_a_mapping(condition: object) -> None:
    assert captions_of(condition, 2, read_captions) == CAPTIONS


def test_another_condition_is_read_by_a_function_of_its_own() -> None:
    assert captions_of(torch.tensor([1, 0]), 2, lambda index: [CAPTIONS[i] for i in index]) == CAPTIONS[::-1]  # pyright: ignore


@pytest.mark.parametrize("condition", [None, "a red mug", {"caption": CAPTIONS}, [1, 2], torch.zeros(2)])
def test_a_condition_without_captions_is_refused_with_the_remedy(condition: object) -> None:
    with pytest.raises(ValueError, match="pass captions="):
        read_captions(condition)


def test_captions_are_counted() -> None:
    with pytest.raises(ValueError, match="2 captions for 3 samples"):
        captions_of(CAPTIONS, 3, read_captions)


def test_each_sample_is_asked_about_its_own_caption_as_it_is_spelled() -> None:
    ask = CaptionQuestion(template="Is {caption} gone? {x}", good_answer="no")
    assert isinstance(ask, Asks)
    assert ask(CAPTIONS, 2) == [
        Question(text="Is a red mug gone? {x}", good_answer="no"),
        Question(text="Is {caption} of {text} gone? {x}", good_answer="no"),
    ]


def test_a_template_without_a_caption_asks_nothing_of_the_condition() -> None:
    assert CaptionQuestion(template="Is it sharp?")(None, 3) == [Question(text="Is it sharp?")] * 3
