"""The image autoencoder: shapes, normalised latents, and each picture on its own."""

from pathlib import Path

import pytest
import torch

from fewstep.modalities.image.codec import ImageCodec, ImageCodecConfig
from fewstep.modalities.image.model_folder import load_codec, load_transformer, save_codec


@pytest.fixture
def codec() -> ImageCodec:
    return ImageCodec(ImageCodecConfig(channels=4, width=8, depth=1))


def test_eight_pixels_are_one_of_the_latent_and_back(codec: ImageCodec) -> None:
    latents = codec.encode(torch.randn(2, 3, 32, 48))
    assert latents.shape == (2, 4, 4, 6)
    assert codec.decode(latents).shape == (2, 3, 32, 48)


def test_latents_have_zero_mean_and_unit_variance_in_training(codec: ImageCodec) -> None:
    latents = codec.train().encode(3 + 2 * torch.randn(8, 3, 32, 32))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.var((0, 2, 3), correction=0), torch.ones(4), atol=1e-3, rtol=0)


def test_a_trained_codec_does_not_look_at_the_rest_of_the_batch(codec: ImageCodec) -> None:
    codec.train().encode(torch.randn(8, 3, 32, 32))
    codec.eval()
    pixels = torch.randn(3, 3, 32, 32)
    rows = torch.cat([codec.decode(codec.encode(row[None])) for row in pixels])
    torch.testing.assert_close(codec.decode(codec.encode(pixels)), rows, atol=1e-5, rtol=1e-5)


def test_sizes_that_are_not_multiples_of_eight_are_refused(codec: ImageCodec) -> None:
    with pytest.raises(ValueError, match="30x32: both must be multiples of 8"):
        codec.encode(torch.randn(1, 3, 30, 32))
    with pytest.raises(ValueError, match="width=0"):
        ImageCodecConfig(width=0)


def test_a_saved_codec_comes_back_with_its_statistics(codec: ImageCodec, tmp_path: Path) -> None:
    codec.train().encode(torch.randn(8, 3, 32, 32))
    save_codec(tmp_path / "codec", codec, training={}, metrics={})
    loaded = load_codec(tmp_path / "codec")
    torch.testing.assert_close(loaded.state_dict(), codec.state_dict(), atol=0.0, rtol=0.0)
    assert not loaded.training
    with pytest.raises(ValueError, match="holds a ImageCodec; an ImageTransformer is needed"):
        load_transformer(tmp_path / "codec")
