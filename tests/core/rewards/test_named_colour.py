"""The share of pixels in a named colour."""

import pytest
import torch
from torch import Tensor

from fewstep.core.rewards.contract import Reward
from fewstep.core.rewards.named_colour import COLOURS, NamedColourReward

REWARD = NamedColourReward()


def painted(*names: str) -> Tensor:
    """One image, [1, 1, 3, 8, 8 * names], of equal stripes."""
    stripes = [torch.tensor(COLOURS[name])[:, None, None].expand(3, 8, 8) for name in names]
    return torch.cat(stripes, dim=2)[None, None]


def test_the_score_is_the_share_of_pixels_near_the_colour() -> None:
    picture = painted("red", "red", "green", "blue")
    distances = [
        (torch.tensor(COLOURS[name]) - torch.tensor(COLOURS["red"])).norm() for name in ("green", "blue")
    ]
    expected = (2 + sum(1 / (1 + (distance / 0.2) ** 2) for distance in distances)) / 4
    torch.testing.assert_close(REWARD.score(picture, ["a red mug"]), torch.as_tensor(expected)[None])


def test_a_picture_all_in_the_colour_scores_1_and_more_of_it_scores_higher() -> None:
    pictures = [painted("blue"), painted("blue", "blue", "white"), painted("blue", "white"), painted("white")]
    scores = [REWARD.score(picture, ["a Blue chair"]).item() for picture in pictures]
    assert scores[0] == pytest.approx(1.0)
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.05


def test_several_colours_share_the_picture() -> None:
    picture = painted("red", "blue")
    assert REWARD.score(picture, ["a red mug on a blue table"]).item() == pytest.approx(1.0)
    assert REWARD.score(picture, ["a red mug"]).item() < 0.6


def test_only_whole_words_are_colours() -> None:
    reward = NamedColourReward(unnamed=-1.0)
    assert reward.score(painted("red"), ["a bored reddish mug"]).item() == -1
    assert reward.score(painted("red"), ["a mug (red)"]).item() == pytest.approx(1.0)


def test_following_its_gradient_paints_the_picture() -> None:
    picture = torch.rand(2, 3, 3, 8, 8)
    captions = ["a green tree", "an orange bird"]
    start = REWARD.score(picture, captions)
    everywhere = picture.clone().requires_grad_()
    (grad,) = torch.autograd.grad(REWARD.score(everywhere, captions).sum(), everywhere)
    assert (grad.abs().amax(2) > 0).all()
    for _ in range(150):
        leaf = picture.clone().requires_grad_()
        (grad,) = torch.autograd.grad(REWARD.score(leaf, captions).sum(), leaf)
        picture = picture + 0.02 * grad * grad[0, :, 0].numel()
    assert (REWARD.score(picture, captions) > start + 0.3).all()
    assert (picture[0].mean((0, 2, 3)) - torch.tensor(COLOURS["green"])).abs().max() < 0.2


def test_samples_are_scored_one_by_one_in_float32() -> None:
    pictures = torch.rand(2, 2, 3, 8, 8)
    captions = ["a red mug", "a black lamp"]
    alone = [REWARD.score(pictures[i : i + 1], captions[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(REWARD.score(pictures, captions), torch.cat(alone))
    assert REWARD.score(pictures.bfloat16(), captions).dtype == torch.float32


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="'a mug' names none of black"):
        REWARD.score(painted("red"), ["a mug"])
    with pytest.raises(ValueError, match="no captions"):
        REWARD.score(painted("red"), None)
    with pytest.raises(ValueError, match="not \\[0, 1\\]"):
        REWARD.score(2 * painted("red") - 1, ["a red mug"])
    with pytest.raises(ValueError, match="softness"):
        NamedColourReward(softness=0.0)
    with pytest.raises(ValueError, match=r"colours\['Red'\]"):
        NamedColourReward(colours={"Red": (1.0, 0.0, 0.0)})


def test_it_is_a_differentiable_reward() -> None:
    assert isinstance(REWARD, Reward)
    assert REWARD.name == "named_colour"
    assert REWARD.differentiable
