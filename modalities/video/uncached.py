"""The student without its cache: the whole window through the network at every step."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.modalities.video.masks import chunk_causal
from fewstep.modalities.video.rollout import PATH, ChunkRollout


@torch.inference_mode()
def denoise_uncached(
    rollout: ChunkRollout,
    context: Float[Tensor, " batch past channel height width"],
    features: Float[Tensor, " batch text feature"],
    noise: Callable[[int], Float[Tensor, " batch frame channel height width"]],
) -> Float[Tensor, " batch frame channel height width"]:
    """One chunk after ``context``, the finished latents before it, in whole chunks.

    Each step runs context (at the rollout's context time) and chunk together under the chunk-causal mask. As
    long as ``context`` is the stream's whole past, the chunk is that of ``rollout.denoise`` over a cache.
    """
    x_t = noise(0)
    chunk, past = x_t.shape[1], context.shape[1]
    mask = chunk_causal(past + chunk, chunk=chunk).to(x_t.device)
    x0 = x_t
    for step, time in enumerate(rollout.times):
        if step:
            x_t = PATH.add_noise(x0, noise(step), x0.new_full((), time))
        t = torch.full((len(x_t), past + chunk), time, dtype=torch.float32, device=x_t.device)
        t[:, :past] = rollout.context_time
        velocity = rollout.network(torch.cat([context, x_t], dim=1), t, features, frame_mask=mask)[:, past:]
        x0 = PATH.to_x0(velocity, x_t, x_t.new_full((), time), "velocity")
    return x0
