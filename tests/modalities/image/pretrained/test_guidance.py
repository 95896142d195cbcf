"""Guidance that keeps the length of the velocity."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.denoisers import Guided
from fewstep.core.paths import LinearPath, Prediction
from fewstep.modalities.image.pretrained.guidance import NormKeepingGuidance

W = 3.0
SHAPE = (2, 3, 4, 6)


class Pull(nn.Module):
    """Its velocity is the condition times x_t, elementwise."""

    prediction: Prediction = "velocity"
    path = LinearPath()

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def predict(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        self.asked.append(condition)
        return condition * x_t

    def forward(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        return x_t - t[:, None, None, None] * self.predict(x_t, t, condition)


@pytest.fixture
def x_t() -> Tensor:
    return torch.randn(SHAPE)


@pytest.fixture
def conditions() -> tuple[Tensor, Tensor]:
    return torch.randn(SHAPE), torch.randn(SHAPE)


def test_every_token_keeps_the_length_of_the_conditional_velocity(
    x_t: Tensor, conditions: tuple[Tensor, Tensor]
) -> None:
    condition, null = conditions
    t = torch.tensor([0.8, 0.5])
    guided = NormKeepingGuidance(Pull(), guidance_scale=W, null_condition=null)(x_t, t, condition)
    velocity = (x_t - guided) / t[:, None, None, None]
    plain = null * x_t + W * (condition - null) * x_t
    for row in range(0, SHAPE[2], 2):
        for column in range(0, SHAPE[3], 2):
            place = (slice(None), slice(None), slice(row, row + 2), slice(column, column + 2))
            got, want = velocity[place].flatten(1), (condition * x_t)[place].flatten(1)
            torch.testing.assert_close(got.norm(dim=1), want.norm(dim=1))
            cosine = torch.cosine_similarity(got, plain[place].flatten(1))
            torch.testing.assert_close(cosine, torch.ones(2))


def test_a_weight_of_one_never_asks_for_the_null_branch(
    x_t: Tensor, conditions: tuple[Tensor, Tensor]
) -> None:
    condition, null = conditions
    denoiser, t = Pull(), torch.tensor([0.8, 0.5])
    guided = NormKeepingGuidance(denoiser, guidance_scale=1.0, null_condition=null)(x_t, t, condition)
    assert denoiser.asked == [condition]
    torch.testing.assert_close(guided, denoiser(x_t, t, condition), rtol=0, atol=0)


def test_outside_the_interval_the_weight_is_one(x_t: Tensor, conditions: tuple[Tensor, Tensor]) -> None:
    condition, null = conditions
    t = torch.tensor([0.8, 0.5])
    make: Callable[..., NormKeepingGuidance] = lambda **given: NormKeepingGuidance(  # noqa: E731
        Pull(), guidance_scale=W, null_condition=null, **given
    )
    inside, everywhere = make(interval=(0.6, 1.0))(x_t, t, condition), make()(x_t, t, condition)
    torch.testing.assert_close(inside[0], everywhere[0])
    torch.testing.assert_close(inside[1], Pull()(x_t, t, condition)[1])
    assert (everywhere[1] - inside[1]).abs().max() > 0.1


def test_an_empty_interval_is_refused() -> None:
    with pytest.raises(ValueError, match=r"interval=\(0.5, 0.5\) is empty"):
        NormKeepingGuidance(Pull(), guidance_scale=W, null_condition=None, interval=(0.5, 0.5))


def test_only_qwen_image_is_guided_so(name: str, teacher: Any) -> None:
    kind = NormKeepingGuidance if name == "qwen_image" else Guided
    assert type(teacher.guided(W)) is kind


def test_plain_guidance_is_not_what_qwen_images_pipeline_does(teacher_of: Callable[[str], Any]) -> None:
    teacher = teacher_of("qwen_image")
    x_t = torch.randn(2, *teacher.latent_shape(8, 8))
    t, condition = torch.tensor([0.9, 0.5]), teacher.encode_prompt(["a mug", "a chair"])
    plain = Guided(teacher, guidance_scale=W, null_condition=teacher.null_condition)
    assert (plain(x_t, t, condition) - teacher.guided(W)(x_t, t, condition)).abs().max() > 0.01
