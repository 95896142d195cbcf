"""Wan's autoencoder: diffusers' numbers, and no seams between chunks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.modalities.video.wan_vae import WanVAE, WanVAEConfig

SIZES: dict[str, Any] = {
    "width": 4,
    "channels": 4,
    "blocks": 1,
    "mean": (0.1, -0.2, 0.3, 0.0),
    "std": (2.0, 1.0, 0.5, 1.5),
}


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = WanVAE(WanVAEConfig(**SIZES)).double().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def latents(frames: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(batch, frames, 4, 3, 4, generator=generator, dtype=torch.float64)


def chunked(vae: WanVAE, z: Tensor, sizes: list[int]) -> Tensor:
    memory, pixels = vae.memory(len(z), 3, 4), []
    for part in z.split(sizes, dim=1):
        out, memory = vae.decode_chunk(part, memory)
        pixels.append(out)
    return torch.cat(pixels, dim=1)


@pytest.mark.parametrize("sizes", [[1, 2, 3], [3, 3], [1] * 6, [4, 2]])
def test_a_stream_of_chunks_is_the_whole_clip(vae: WanVAE, sizes: list[int]) -> None:
    z = latents(6)
    with torch.no_grad():
        whole, parts = vae.decode(z), chunked(vae, z, sizes)
    assert whole.shape == (1, vae.pixel_frames(6), 3, 24, 32)
    torch.testing.assert_close(
        parts, whole, atol=1e-12, rtol=0.0
    )  # float64, the same products in other groups


def test_the_first_latent_frame_gives_one_pixel_frame_and_every_other_four(vae: WanVAE) -> None:
    with torch.no_grad():
        frames = [vae.decode_chunk(latents(1), vae.memory(1, 3, 4))]
        frames.append(vae.decode_chunk(latents(3), frames[0][1]))
    assert [out.shape[1] for out, _ in frames] == [1, 12]


def test_a_past_of_zeros_is_not_the_beginning(vae: WanVAE) -> None:
    """The trap: starting like any other chunk, and dropping three frames, is another video."""
    z = latents(2)
    with torch.no_grad():
        memory = vae.decode_chunk(latents(1), vae.memory(1, 3, 4))[1]
        zeros = memory._replace(tensors=tuple(torch.zeros_like(kept) for kept in memory.tensors))
        wrong = vae.decode_chunk(z, zeros)[0][:, 3:]
        right = vae.decode(z)
    assert wrong.shape == right.shape
    assert (wrong - right).abs().max() > 1e-3


def test_decoding_leaves_the_memory_it_was_given_as_it_was(vae: WanVAE) -> None:
    with torch.no_grad():
        memory = vae.decode_chunk(latents(2), vae.memory(1, 3, 4))[1]
        before = [kept.clone() for kept in memory.tensors]
        first = vae.decode_chunk(latents(3), memory)[0]
        again = vae.decode_chunk(latents(3), memory)[0]
    torch.testing.assert_close(list(memory.tensors), before, atol=0.0, rtol=0.0)
    torch.testing.assert_close(first, again, atol=0.0, rtol=0.0)


def test_no_frame_sees_a_later_one(vae: WanVAE) -> None:
    z = latents(4)
    other = z.clone()
    other[:, 3] += 1.0
    with torch.no_grad():
        a, b = vae.decode(z), vae.decode(other)
    torch.testing.assert_close(a[:, : vae.pixel_frames(3)], b[:, : vae.pixel_frames(3)], atol=0.0, rtol=0.0)
    assert (a - b).abs().max() > 1e-3


def test_sizes_that_do_not_fit_are_named(vae: WanVAE) -> None:
    with pytest.raises(ValueError, match="1 more than a multiple of 4"):
        vae.encode(torch.zeros(1, 4, 3, 24, 32))
    with pytest.raises(ValueError, match="multiples of 8"):
        vae.encode(torch.zeros(1, 5, 3, 20, 32))
    with pytest.raises(ValueError, match="one entry for each of the 4 channels"):
        WanVAEConfig(**{**SIZES, "mean": (0.0,)})
