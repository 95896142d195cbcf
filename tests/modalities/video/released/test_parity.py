"""At small size with random weights: the numbers of diffusers and transformers, in float32 to 1e-5."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.modalities.video.masks import chunk_causal
from fewstep.modalities.video.released.codec_file import load_wan_vae
from fewstep.modalities.video.released.transformer_file import load_transformer_file
from fewstep.modalities.video.umt5 import TOKENS, UMT5Text
from fewstep.modalities.video.wan_vae import LATENTS_MEAN, LATENTS_STD

TOLERANCE = 1e-5  # float32 through a few layers
# diffusers embeds times in float32, where the angles of t = 0.9 are off by 3e-5; we and Wan in float64
LATEST = 0.02


@pytest.fixture(scope="module")
def their_transformer(diffusers_folder: Path) -> Any:
    module = pytest.importorskip("diffusers.models.transformers.transformer_wan")
    return module.WanTransformer3DModel.from_pretrained(diffusers_folder / "transformer").eval()


@pytest.fixture(scope="module")
def their_vae(diffusers_folder: Path) -> Any:
    module = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")
    return module.AutoencoderKLWan.from_pretrained(diffusers_folder / "vae").eval()


class ChunkCausal:
    """diffusers' own attention, under a mask in self-attention."""

    def __init__(self, inner: Any, mask: Tensor) -> None:
        self.inner, self.mask = inner, mask

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        mask = self.mask if encoder_hidden_states is None else None
        return self.inner(attn, hidden_states, encoder_hidden_states, mask, rotary_emb)


def inputs(frames: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(frames)
    x_t = torch.randn(2, frames, 16, 4, 6, generator=generator)
    text = torch.randn(2, 5, 32, generator=generator)
    text[:, 3:] = 0.0
    return x_t, text


def test_full_attention(diffusers_folder: Path, their_transformer: Any) -> None:
    ours = load_transformer_file(diffusers_folder / "transformer")
    x_t, text = inputs(4)
    t = torch.tensor([0.25 * LATEST, LATEST])
    with torch.no_grad():
        expected = their_transformer(x_t.transpose(1, 2), 1000 * t, text, return_dict=False)[0]
        found = ours(x_t, t, text)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("window", [None, 4])
def test_block_causal_attention_with_a_time_for_each_frame(
    diffusers_folder: Path, their_transformer: Any, window: int | None
) -> None:
    ours = load_transformer_file(diffusers_folder / "transformer")
    frames, tokens = 6, 2 * 3
    x_t, text = inputs(frames)
    t = torch.linspace(0.0, LATEST, 2 * frames).view(2, frames)
    frame_mask = chunk_causal(frames, chunk=2, window=window)
    mask = frame_mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)[None, None]
    inner = their_transformer.blocks[0].attn1.processor
    try:
        for block in their_transformer.blocks:
            block.attn1.processor = ChunkCausal(inner, mask)
        with torch.no_grad():
            per_token = (1000 * t).repeat_interleave(tokens, 1)
            expected = their_transformer(x_t.transpose(1, 2), per_token, text, return_dict=False)[0]
    finally:
        for block in their_transformer.blocks:
            block.attn1.processor = inner
    with torch.no_grad():
        found = ours(x_t, t, text, frame_mask=frame_mask)
        full = ours(x_t, t, text)
    assert (full - found).abs().max() > 1e-3  # the mask matters
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=TOLERANCE, rtol=TOLERANCE)


def statistics() -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor(LATENTS_MEAN), torch.tensor(LATENTS_STD)
    return mean.view(-1, 1, 1), std.view(-1, 1, 1)


@pytest.mark.parametrize("sizes", [[5], [1, 2, 2], [3, 2]])
def test_streaming_decode(diffusers_folder: Path, their_vae: Any, sizes: list[int]) -> None:
    ours = load_wan_vae(diffusers_folder / "vae")
    z = torch.randn(1, 5, 16, 2, 3, generator=torch.Generator().manual_seed(5))
    mean, std = statistics()
    with torch.no_grad():
        expected = their_vae.decode((z * std + mean).transpose(1, 2), return_dict=False)[0].transpose(1, 2)
        memory, parts = ours.memory(1, 2, 3), []
        for part in z.split(sizes, dim=1):
            pixels, memory = ours.decode_chunk(part, memory)
            parts.append(pixels)
    assert expected.std() > 0.05
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_encode(diffusers_folder: Path, their_vae: Any) -> None:
    ours = load_wan_vae(diffusers_folder / "vae")
    pixels = torch.rand(1, 9, 3, 16, 24, generator=torch.Generator().manual_seed(9)) * 2 - 1
    mean, std = statistics()
    with torch.no_grad():
        expected = their_vae.encode(pixels.transpose(1, 2)).latent_dist.mode().transpose(1, 2)
        found = ours.encode(pixels)
    assert found.shape == (1, 3, 16, 2, 3)
    torch.testing.assert_close(found, (expected - mean) / std, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("layout", ["wan", "diffusers"])
def test_text_features_end_in_zeros_and_do_not_see_the_padding(
    layout: str, wan_folder: Path, diffusers_folder: Path, umt5: Any
) -> None:
    text = {
        "wan": UMT5Text(wan_folder / "models_t5_umt5-xxl-enc-bf16.pth", wan_folder / "google" / "umt5-xxl"),
        "diffusers": UMT5Text(diffusers_folder / "text_encoder", diffusers_folder / "tokenizer"),
    }[layout]
    found = text(["a  red fox", "bird"])
    ids = torch.zeros(2, TOKENS, dtype=torch.long)  # as Wan runs it: padded first, and masked
    ids[0, :4], ids[1, :2] = torch.tensor([3, 4, 5, 1]), torch.tensor([7, 1])
    mask = (ids != 0).long()
    with torch.no_grad():
        expected = umt5(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
    assert found.shape == (2, TOKENS, 32)
    assert found[0, 4:].abs().max() == 0.0
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
