"""Autoencoders: the scale of latents, and pixels back from them."""

from types import ModuleType
from typing import Any

import pytest
import torch

from fewstep.modalities.image.pretrained.codec import LatentCodec, latent_channels, pixels_per_latent

HEIGHT, WIDTH = 16, 8


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1


def test_latents_have_the_shape_the_teacher_says(teacher: Any, pixels: torch.Tensor) -> None:
    assert teacher.encode(pixels).shape == (2, *teacher.latent_shape(HEIGHT, WIDTH))


@torch.no_grad()
def test_latents_are_scaled_as_the_pipelines_scale(name: str, teacher: Any, pixels: torch.Tensor) -> None:
    vae = teacher.codec.vae
    match name:
        case "qwen_image":
            z = vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0]
            statistics = zip(vae.config.latents_mean, vae.config.latents_std, strict=True)
            expected = torch.stack(
                [(z[:, channel] - mean) / std for channel, (mean, std) in enumerate(statistics)], 1
            )
        case "sana":
            expected = vae.encode(pixels).latent * 0.41407
        case _:
            shift = {"sd3": 0.0609, "flux": 0.1159}.get(name, 0.0)
            scale = {"sd3": 1.5305, "flux": 0.3611, "sdxl": 0.13025}.get(name, 0.18215)
            expected = (vae.encode(pixels).latent_dist.mode() - shift) * scale
    torch.testing.assert_close(teacher.encode(pixels), expected)


@torch.no_grad()
def test_statistics_per_channel_take_the_place_of_the_shift(
    tiny_pipelines: ModuleType, pixels: torch.Tensor
) -> None:
    """As in StableDiffusionXLPipeline: latents * std / scaling_factor + mean."""
    mean, std, scale = torch.tensor([0.1, -0.2, 0.3, 0.4]), torch.tensor([1.0, 2.0, 3.0, 4.0]), 0.5
    vae = tiny_pipelines.kl(latents_mean=mean.tolist(), latents_std=std.tolist(), scaling_factor=scale)
    latents = torch.randn(2, 4, 8, 4)
    z = latents * std[:, None, None] / scale + mean[:, None, None]
    codec = LatentCodec(vae)
    torch.testing.assert_close(codec.decode(latents), vae.decode(z).sample.clamp(-1, 1))
    z = vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(codec.encode(pixels), (z - mean[:, None, None]) * scale / std[:, None, None])


def test_gradients_pass_through_a_frozen_codec(teacher: Any, pixels: torch.Tensor) -> None:
    x = pixels.requires_grad_()
    latents = teacher.encode(x)
    images = teacher.decode(latents)
    images.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in teacher.codec.vae.parameters())


def test_images_do_not_leave_their_range(teacher: Any) -> None:
    images = teacher.decode(100 * torch.randn(1, *teacher.latent_shape(HEIGHT, WIDTH)))
    assert images.abs().max() == 1


@pytest.mark.parametrize(
    ("config", "pixels", "channels"),
    [
        (
            {
                "_class_name": "AutoencoderKL",
                "block_out_channels": [128, 256, 512, 512],
                "latent_channels": 16,
            },
            8,
            16,
        ),
        (
            {"_class_name": "AutoencoderDC", "encoder_block_out_channels": [1] * 6, "latent_channels": 32},
            32,
            32,
        ),
        (
            {
                "_class_name": "AutoencoderKLQwenImage",
                "temperal_downsample": [False, True, True],
                "z_dim": 16,
            },
            8,
            16,
        ),
    ],
)
def test_the_released_sizes_are_read(config: dict[str, Any], pixels: int, channels: int) -> None:
    assert (pixels_per_latent(config), latent_channels(config)) == (pixels, channels)


def test_another_autoencoder_is_refused() -> None:
    with pytest.raises(ValueError, match="autoencoder AutoencoderTiny is not supported; supported are"):
        pixels_per_latent({"_class_name": "AutoencoderTiny"})
