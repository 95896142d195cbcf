"""The image transformer is the video transformer on a clip of one frame."""

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fewstep.modalities.image.distillation import with_two_times
from fewstep.modalities.image.network import ImageTransformer
from fewstep.modalities.video.transformer import VideoTransformer


@pytest.fixture
def network(tiny_image: ModuleType) -> ImageTransformer:
    return tiny_image.randomised(ImageTransformer(tiny_image.SIZES)).double()


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    x_t, condition = torch.randn(batch, 4, 8, 8), torch.randn(batch, 4, 8)
    return x_t.double(), torch.rand(batch).double(), condition.double()


def test_a_picture_is_a_clip_of_one_frame(network: ImageTransformer, tiny_image: ModuleType) -> None:
    video = VideoTransformer(tiny_image.SIZES).double()
    video.load_state_dict(network.state_dict())
    x_t, t, condition = inputs()
    torch.testing.assert_close(network(x_t, t, condition), video(x_t[:, None], t, condition)[:, 0])


def test_each_picture_of_a_batch_is_on_its_own(network: ImageTransformer) -> None:
    x_t, t, condition = inputs()
    rows = [network(x_t[[n]], t[[n]], condition[[n]]) for n in range(3)]
    torch.testing.assert_close(network(x_t, t, condition), torch.cat(rows))


def test_features_are_tokens_of_the_picture(network: ImageTransformer) -> None:
    assert network.features(*inputs(2)).shape == (2, 16, 16)  # 4 x 4 patches of an 8 x 8 latent, dim 16


def test_a_student_of_two_times_starts_as_its_teacher_and_hears_the_second_time_once_trained(
    network: ImageTransformer, tiny_image: ModuleType
) -> None:
    x_t, t, condition = inputs()
    student = with_two_times(network.float()).double()
    network.double()
    assert student.config == replace(network.config, two_times=True)
    torch.testing.assert_close(student(x_t, t, condition, t / 2), network(x_t, t, condition))
    tiny_image.randomised(student)
    assert not torch.allclose(student(x_t, t, condition, t / 2), student(x_t, t, condition, t))
