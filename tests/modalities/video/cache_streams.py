"""Streams over a cache, and keys and values that no network computed."""

from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.modalities.video.blocks import KeysValues
from fewstep.modalities.video.cache import CacheConfig, StreamCache
from fewstep.modalities.video.rollout import ChunkRollout
from fewstep.modalities.video.transformer import VideoTransformer

HEIGHT, WIDTH, TOKENS = 2, 4, 2  # latent pixels, and tokens of a frame
EXACT: dict[str, Any] = {"atol": 1e-10, "rtol": 0.0}  # float64 through two layers; observed 1e-14

examples = settings(deadline=None, derandomize=True, max_examples=20)


def clip(frames: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, frames, 4, HEIGHT, WIDTH, generator=generator).to(dtype)


def time(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def prompt(network: VideoTransformer) -> tuple[Tensor, list[KeysValues]]:
    context = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(7)).to(network.dtype)
    return context, network.text_keys_values(context)


def new_cache(network: VideoTransformer, config: CacheConfig) -> StreamCache:
    return StreamCache(network, config, batch=1, height=HEIGHT, width=WIDTH)


def stream(
    network: VideoTransformer, config: CacheConfig, chunks: int, *, seed: int = 0
) -> tuple[list[Tensor], StreamCache]:
    """Velocities of noised chunks over the cache, each chunk then committed clean."""
    cache, text = new_cache(network, config), prompt(network)[1]
    rollout = ChunkRollout(network, (1.0,))
    velocities = []
    for index in range(chunks):
        noised, clean = clip(config.chunk, 1000 * seed + index), clip(config.chunk, 1000 * seed + 500 + index)
        velocities.append(
            network.forward_chunk(noised, time(0.7), text, past=cache.past(), position=cache.position)[0]
        )
        rollout.commit(cache, text, clean)
    return velocities, cache


def entries(network: VideoTransformer, frames: int, seed: int) -> list[KeysValues]:
    """Keys and values as a forward pass would leave them."""
    sizes, generator = network.config, torch.Generator().manual_seed(seed)
    shape = (2, 1, frames * TOKENS, sizes.num_heads, sizes.head_dim)
    return [
        KeysValues(*torch.randn(shape, generator=generator).to(network.dtype))
        for _ in range(sizes.num_layers)
    ]


def by_frame(fresh: list[KeysValues], frames: int) -> Tensor:
    """``[frame, layer, 2, batch, token, head, head_dim]``"""
    stacked = torch.stack([torch.stack(tuple(layer)) for layer in fresh])
    return stacked.unflatten(3, (frames, -1)).movedim(3, 0)


@st.composite
def configurations(draw: st.DrawFn, modes: tuple[str, ...]) -> CacheConfig:
    chunk, sink = draw(st.integers(1, 3)), draw(st.integers(0, 4))
    mode = draw(st.sampled_from(modes))
    least = chunk + (0 if mode == "none" else sink)
    return CacheConfig(
        window=least + draw(st.integers(0, 5)),
        chunk=chunk,
        sink=sink,
        sink_mode=mode,  # pyright: ignore[reportArgumentType]
        decay=draw(st.floats(0.0, 1.0)),
    )
