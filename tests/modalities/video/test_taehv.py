"""TAEHV: no seams between chunks, and the frames that its own code shows."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.modalities.video.taehv import TAEHV, Grow, MemoryBlock, Pool, TAEHVConfig


@pytest.fixture(scope="module")
def taehv() -> TAEHV:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = TAEHVConfig(channels=4, widths=(16, 12, 8, 8), encoder_width=8)
        network = TAEHV(config).double().eval()
        with torch.no_grad():  # grey pictures with a contrast, where random weights only give black ones
            last = network.decoder[-1]
            assert isinstance(last, torch.nn.Conv2d)
            assert last.bias is not None
            last.weight.mul_(30.0)
            last.bias.fill_(0.5)
    return network


def latents(frames: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(batch, frames, 4, 3, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("sizes", [[1, 2, 3], [3, 3], [1] * 6])
def test_a_stream_of_chunks_is_the_whole_clip(taehv: TAEHV, sizes: list[int]) -> None:
    z = latents(6)
    memory, pixels = taehv.memory(2, 3, 4), []
    with torch.no_grad():
        for part in z.split(sizes, dim=1):
            out, memory = taehv.decode_chunk(part, memory)
            pixels.append(out)
        whole = taehv.decode(z)
    assert whole.shape == (2, 21, 3, 24, 32)
    assert whole.std() > 0.01
    torch.testing.assert_close(torch.cat(pixels, dim=1), whole, atol=1e-12, rtol=0.0)  # float64


def frame_by_frame(layers: torch.nn.Sequential, frames: list[Tensor]) -> list[Tensor]:
    """The definition, literally: layer by layer over a list of frames, each block with its memory."""
    for layer in layers:
        if isinstance(layer, MemoryBlock):
            past, out = torch.zeros_like(frames[0]), []
            for x in frames:
                out.append(F.relu(layer.conv(torch.cat([x, past], 1)) + x))
                past = x
            frames = out
        elif isinstance(layer, Grow):
            frames = [part for x in frames for part in layer.conv(x).chunk(layer.frames, 1)]
        elif isinstance(layer, Pool):
            groups = [frames[i : i + layer.frames] for i in range(0, len(frames), layer.frames)]
            frames = [layer.conv(torch.cat(group, 1)) for group in groups]
        else:
            frames = [layer(x) for x in frames]
    return frames


def test_decoding_is_the_definition_without_the_first_three_frames(taehv: TAEHV) -> None:
    z = latents(3)
    with torch.no_grad():
        expected = torch.stack(frame_by_frame(taehv.decoder, list(z.unbind(1))), 1)[:, 3:]
        found = taehv.decode(z)
    torch.testing.assert_close(found, expected.clamp(0, 1) * 2 - 1, atol=1e-12, rtol=0.0)


def test_encoding_is_the_definition_with_the_last_frame_repeated(taehv: TAEHV) -> None:
    pixels = torch.rand(1, 5, 3, 16, 24, dtype=torch.float64) * 2 - 1
    padded = [*(pixels * 0.5 + 0.5).unbind(1), *[pixels[:, -1] * 0.5 + 0.5] * 3]
    with torch.no_grad():
        expected = torch.stack(frame_by_frame(taehv.encoder, padded), 1)
        found = taehv.encode(pixels)
    assert found.shape == (1, 2, 4, 2, 3)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0.0)


def test_impossible_sizes_are_named(taehv: TAEHV) -> None:
    with pytest.raises(ValueError, match="must be 4, 3 and 3 numbers"):
        TAEHVConfig(widths=(8, 8))
    with pytest.raises(ValueError, match="8 must divide height and width"):
        taehv.encode(torch.zeros(1, 1, 3, 12, 8))
