"""The autoregressive rollout: the same code generates the live stream and the samples that training
scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.paths import LinearPath
from fewstep.core.rollouts import Call
from fewstep.modalities.video.blocks import KeysValues
from fewstep.modalities.video.cache import StreamCache
from fewstep.modalities.video.transformer import Modulations, VideoTransformer

ChunkNoise = Callable[[int], Float[Tensor, " batch frame channel height width"]]
"""Standard Gaussian noise for denoising step ``k`` of a chunk; step 0 is where the chunk starts."""

PATH = LinearPath()


@dataclass(frozen=True)
class ChunkRollout:
    """Few-step generation of one chunk over a cache (Self-Forcing, arXiv 2506.08009).

    Each step predicts the clean chunk from its noised state and the cache, and re-noises it with fresh
    noise to the next time. The finished chunk then passes once more, clean, to leave its keys and values
    in the cache.

    Args:
        network: the causal student.
        times: descending times of the denoising steps, the first 1.
        context_time: time at which the finished chunk enters the cache; 0 is clean.
        frozen: the weights will not change, so that what they make of the times is computed once. For
            generation without gradients.
    """

    network: VideoTransformer
    times: tuple[float, ...]
    context_time: float = 0.0
    frozen: bool = False
    _modulations: dict[tuple, Modulations] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if (
            not self.times
            or self.times[0] != 1.0
            or any(a <= b for a, b in zip(self.times, self.times[1:], strict=False))
        ):
            raise ValueError(f"times={self.times} must start at 1.0 and descend")
        if self.times[-1] <= 0.0:
            raise ValueError(f"times={self.times} must end above 0: the last step predicts the clean chunk")

    def denoise(
        self,
        cache: StreamCache,
        text: list[KeysValues],
        noise: ChunkNoise,
        *,
        exit_step: int | None = None,
        gradient: bool = False,
    ) -> Float[Tensor, " batch frame channel height width"]:
        """The clean chunk after step ``exit_step`` (default: the last one).

        With ``gradient``, only that step is differentiated: earlier steps and the cache are constants.
        """
        return self.denoise_and_input(cache, text, noise, exit_step=exit_step, gradient=gradient)[0]

    def denoise_and_input(
        self,
        cache: StreamCache,
        text: list[KeysValues],
        noise: ChunkNoise,
        *,
        exit_step: int | None = None,
        gradient: bool = False,
    ) -> tuple[
        Float[Tensor, " batch frame channel height width"], Float[Tensor, " batch frame channel height width"]
    ]:
        """``denoise``, and what the network was given in that step."""
        exit_step = len(self.times) - 1 if exit_step is None else exit_step
        if not 0 <= exit_step < len(self.times):
            raise ValueError(f"exit_step={exit_step} is not one of the {len(self.times)} steps; count from 0")
        x_t = noise(0)
        with torch.no_grad():
            for step in range(exit_step):
                x0 = self._predict(cache, text, x_t, self.times[step])
                x_t = PATH.add_noise(x0, noise(step + 1), x0.new_tensor(self.times[step + 1]))
        with torch.set_grad_enabled(gradient and torch.is_grad_enabled()):
            return self._predict(cache, text, x_t, self.times[exit_step]), x_t

    @torch.no_grad()
    def commit(
        self,
        cache: StreamCache,
        text: list[KeysValues],
        x0: Float[Tensor, " batch frame channel height width"],
    ) -> None:
        """Write the keys and values of a finished chunk into the cache."""
        t = self._time(self.context_time, x0)
        fresh = self.network.chunk_keys_values(x0, t, text, past=cache.past(), position=cache.position)
        cache.commit(fresh, x0.shape[1])

    def _predict(self, cache: StreamCache, text: list[KeysValues], x_t: Tensor, time: float) -> Tensor:
        t = self._time(time, x_t)
        velocity = self.network.forward_chunk(x_t, t, text, past=cache.past(), position=cache.position)[0]
        return PATH.to_x0(velocity, x_t, x_t.new_tensor(time), "velocity")

    def _time(self, time: float, x_t: Tensor) -> Tensor | Modulations:
        t = x_t.new_full(x_t.shape[:2], time, dtype=torch.float32)
        if not self.frozen:
            return t
        key = (time, *t.shape)
        if key not in self._modulations:
            self._modulations[key] = self.network.modulations(t)
        return self._modulations[key]


def roll_out(
    rollout: ChunkRollout,
    cache: StreamCache,
    text: Sequence[list[KeysValues]],
    noise: Callable[[int, int], Tensor],
    *,
    exit_step: int | None = None,
    gradient_from: int | None = None,
) -> Float[Tensor, " batch frame channel height width"]:
    """Generate one chunk per entry of ``text`` and concatenate them along frames.

    Args:
        text: the prompt's cross-attention keys and values, chunk by chunk.
        noise: ``noise(chunk, step)``.
        exit_step: the step whose prediction is taken, the same for all chunks.
        gradient_from: index of the first chunk that receives gradient; None for none.
    """
    return roll_out_and_call(rollout, cache, text, noise, exit_step=exit_step, gradient_from=gradient_from)[0]


def roll_out_and_call(
    rollout: ChunkRollout,
    cache: StreamCache,
    text: Sequence[list[KeysValues]],
    noise: Callable[[int, int], Tensor],
    *,
    exit_step: int | None = None,
    gradient_from: int | None = None,
) -> tuple[Float[Tensor, " batch frame channel height width"], Call]:
    """``roll_out``, and what the network was given in the step whose predictions are taken."""
    chunks, inputs = [], []
    for index, chunk_text in enumerate(text):
        gradient = gradient_from is not None and index >= gradient_from
        x0, given = rollout.denoise_and_input(
            cache,
            chunk_text,
            lambda step, index=index: noise(index, step),
            exit_step=exit_step,
            gradient=gradient,
        )
        rollout.commit(cache, chunk_text, x0.detach())
        chunks.append(x0)
        inputs.append(given)
    step = len(rollout.times) - 1 if exit_step is None else exit_step
    x_t = torch.cat(inputs, dim=1)
    t, t_next = (x_t.new_full((len(x_t),), time) for time in (*rollout.times, 0.0)[step : step + 2])
    return torch.cat(chunks, dim=1), Call(x_t=x_t, t=t, t_next=t_next)
