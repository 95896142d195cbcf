"""The autoencoder: no seam between chunks, latents as the transformer wants them."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.modalities.video.codec import CodecConfig, VideoCodec

MakeCodec = Callable[..., VideoCodec]

FRAMES = 6

examples = settings(deadline=None, derandomize=True, max_examples=15)


def latents(frames: int = FRAMES, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(batch, frames, 4, 2, 3, generator=generator, dtype=torch.float64)


@examples
@given(cuts=st.sets(st.integers(1, FRAMES - 1)), depth=st.integers(1, 2))
def test_streaming_decodes_the_very_frames_of_the_whole_clip(
    make_codec: MakeCodec, cuts: set[int], depth: int
) -> None:
    codec = make_codec(depth=depth)
    whole = latents()
    with torch.no_grad():
        memory, parts = codec.memory(2, 2, 3), []
        for start, end in pairwise([0, *sorted(cuts), FRAMES]):
            pixels, memory = codec.decode_chunk(whole[:, start:end], memory)
            parts.append(pixels)
        assert torch.equal(torch.cat(parts, 1), codec.decode(whole))


def test_a_chunk_that_forgets_its_past_has_a_seam(make_codec: MakeCodec) -> None:
    codec = make_codec()
    whole = latents()
    with torch.no_grad():
        expected = codec.decode(whole)[:, 6:]
        forgetful = codec.decode_chunk(whole[:, 3:], codec.memory(2, 2, 3))[0]
    assert (forgetful[:, :2] - expected[:, :2]).abs().max() > 1e-2


def test_a_frame_of_pixels_never_depends_on_later_latents(make_codec: MakeCodec) -> None:
    codec = make_codec()
    whole, other = latents(), latents()
    other[:, 4:] += 1.0
    with torch.no_grad():
        change = (codec.decode(whole) - codec.decode(other)).abs().amax(dim=(0, 2, 3, 4))
    assert (change[:8] == 0.0).all()
    assert (change[8:] > 0.0).all()


def test_decoding_a_chunk_leaves_the_memory_it_was_given_alone(make_codec: MakeCodec) -> None:
    codec = make_codec()
    memory = codec.memory(2, 2, 3)
    with torch.no_grad():
        first = codec.decode_chunk(latents(2), memory)[0]
        again = codec.decode_chunk(latents(2), memory)[0]
    assert torch.equal(first, again)
    assert all(not bool(state.any()) for state in memory)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_shapes_go_there_and_back(make_codec: MakeCodec, group: int) -> None:
    codec = make_codec(frames_per_latent=group, dtype=torch.float32)
    pixels = torch.rand(2, 3 * group, 3, 16, 24) * 2 - 1
    encoded = codec.encode(pixels)
    assert encoded.shape == (2, 3, 4, 2, 3)
    assert codec.decode(encoded).shape == pixels.shape


def test_latent_frames_are_encoded_apart_from_each_other(make_codec: MakeCodec) -> None:
    codec = make_codec()
    pixels = torch.rand(1, 8, 3, 16, 16, dtype=torch.float64)
    parts = torch.cat([codec.encode(part) for part in pixels.split(2, dim=1)], dim=1)
    torch.testing.assert_close(codec.encode(pixels), parts, atol=1e-12, rtol=0.0)


def test_latents_have_zero_mean_and_unit_variance_while_training(make_codec: MakeCodec) -> None:
    codec = make_codec().train()
    encoded = codec.encode(torch.rand(4, 8, 3, 16, 16, dtype=torch.float64))
    mean, variance = encoded.mean(dim=(0, 1, 3, 4)), encoded.var(dim=(0, 1, 3, 4), unbiased=False)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-10, rtol=0.0)
    # batch norm adds 1e-5 to the variance before it divides
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-2, rtol=0.0)


@pytest.mark.parametrize("shape", [(1, 3, 3, 16, 16), (1, 2, 3, 12, 16), (1, 2, 3, 16, 20)])
def test_pixels_that_do_not_divide_are_named(make_codec: MakeCodec, shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"frames must be a multiple of 2, height and width of 8; crop or pad"
    ):
        make_codec().encode(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("name", ["channels", "frames_per_latent", "width", "depth"])
def test_impossible_sizes_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        CodecConfig(**{name: 0})
