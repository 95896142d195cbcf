"""The autoregressive rollout: the same code generates the live stream and the samples that training
scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.paths import LinearPath
from fewstep.core.rollouts import Call
from fewstep.modalities.video.acceleration import CacheFrom
from fewstep.modalities.video.blocks import KeysValues, Past
from fewstep.modalities.video.cache import StreamCache, Succession
from fewstep.modalities.video.transformer import Modulations, VideoTransformer

ChunkNoise = Callable[[int], Float[Tensor, " batch frame channel height width"]]
"""Standard Gaussian noise for denoising step ``k`` of a chunk; step 0 is where the chunk starts."""

PATH = LinearPath()


@dataclass(frozen=True, eq=False)
class Finished:
    """A chunk that is not in the cache yet, and the text it obeyed."""

    x0: Float[Tensor, " batch frame channel height width"]
    text: list[KeysValues]


@runtime_checkable
class Passes(Protocol):
    """What a rollout asks of a network that no longer changes."""

    def forward_chunk(
        self,
        x_t: Float[Tensor, " batch frame channel height width"],
        t: Tensor | Modulations,
        text: list[KeysValues],
        *,
        past: list[Past] | None,
        position: int,
        keep: bool = True,
    ) -> tuple[Tensor, list[KeysValues]]: ...

    def chunk_keys_values(
        self,
        x_t: Float[Tensor, " batch frame channel height width"],
        t: Tensor | Modulations,
        text: list[KeysValues],
        *,
        past: list[Past] | None,
        position: int,
    ) -> list[KeysValues]: ...


Entry = tuple[list[KeysValues], int, Succession | None]
"""What ``StreamCache.commit`` takes: keys and values, of how many frames, and the pass they come from."""


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
            generation without gradients, as is all that follows.
        merged: a finished chunk passes into the cache together with the next one's first step.
        cache_from: ``last_step`` keeps the keys and values of the last denoising step, whose input still
            holds noise, instead of another pass over the clean chunk.
        passes: through which the network is called, where not straight.
    """

    network: VideoTransformer
    times: tuple[float, ...]
    context_time: float = 0.0
    frozen: bool = False
    merged: bool = True
    cache_from: CacheFrom = "clean"
    passes: Passes | None = None
    _modulations: dict[tuple, Modulations] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _pair_of_texts: list = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (
            not self.times
            or self.times[0] != 1.0
            or any(a <= b for a, b in zip(self.times, self.times[1:], strict=False))
        ):
            raise ValueError(f"times={self.times} must start at 1.0 and descend")
        if self.times[-1] <= 0.0:
            raise ValueError(f"times={self.times} must end above 0: the last step predicts the clean chunk")
        if not self.frozen and (self.passes is not None or self.cache_from != "clean"):
            raise ValueError("passes and cache_from are for generation; set frozen=True as well")

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
        x_t = self._input(cache, text, noise, exit_step)
        if gradient:
            # weights that autocast has cast without a graph would be used again, and get no gradient
            torch.clear_autocast_cache()
        with torch.set_grad_enabled(gradient and torch.is_grad_enabled()):
            x0 = self._predict(cache.past(), cache.position, text, x_t, self.times[exit_step])[0]
        return x0, x_t

    @torch.no_grad()
    def _input(self, cache: StreamCache, text: list[KeysValues], noise: ChunkNoise, step: int) -> Tensor:
        """Of a step, after those before it."""
        x_t = noise(0)
        for earlier in range(step):
            x0 = self._predict(cache.past(), cache.position, text, x_t, self.times[earlier])[0]
            x_t = PATH.add_noise(x0, noise(earlier + 1), x0.new_full((), self.times[earlier + 1]))
        return x_t

    @torch.no_grad()
    def commit(
        self,
        cache: StreamCache,
        text: list[KeysValues],
        x0: Float[Tensor, " batch frame channel height width"],
    ) -> None:
        """Write the keys and values of a finished chunk into the cache."""
        t = self._time(self.context_time, x0)
        network = self.passes or self.network
        fresh = network.chunk_keys_values(x0, t, text, past=cache.past(), position=cache.position)
        cache.commit(fresh, x0.shape[1])

    @torch.no_grad()
    def denoise_after(
        self, cache: StreamCache, last: Finished | None, text: list[KeysValues], noise: ChunkNoise
    ) -> tuple[Float[Tensor, " batch frame channel height width"], Entry | None]:
        """``commit`` of the chunk before and ``denoise`` of the next one, with the first step of this and the
        pass of that in one where the cache allows it: the same arithmetic over twice the batch.

        Returns the clean chunk, and what is now to be committed: for ``last``, where it is not already, or
        for this chunk itself if its keys and values are those of its last step.
        """
        if self.cache_from == "last_step":
            if last is not None:
                self.commit(cache, last.text, last.x0)
            step = len(self.times) - 1
            x_t = self._input(cache, text, noise, step)
            x0, fresh = self._predict(cache.past(), cache.position, text, x_t, self.times[step])
            return x0, (fresh, x0.shape[1], None)
        frames = None if last is None else last.x0.shape[1]
        merges = self.frozen and self.merged and self.passes is None
        succession = cache.succession(frames) if merges and frames is not None else None
        if last is None or succession is None or last.text[0].keys.shape != text[0].keys.shape:
            if last is not None:
                self.commit(cache, last.text, last.x0)
            return self.denoise(cache, text, noise), None

        x_t = noise(0)
        order = slice(None, None, 1 if succession.finished == 0 else -1)
        pair = (last.x0, x_t)[order]
        times = (self.context_time, self.times[0])[order]
        texts = (last.text, text)[order]
        velocity, fresh = self.network.forward_successive(
            torch.cat(pair),
            self._times(times, x_t),
            self._texts(*texts),
            past=succession.layers,
            positions=succession.positions,
        )
        x0 = PATH.to_x0(velocity, x_t, x_t.new_full((), self.times[0]), "velocity")
        for step, time in enumerate(self.times[1:], 1):
            x_t = PATH.add_noise(x0, noise(step), x0.new_full((), time))
            x0 = self._predict(
                succession.past, succession.positions[1 - succession.finished], text, x_t, time
            )[0]
        return x0, (fresh, last.x0.shape[1], succession)

    def unfinished(self, x0: Tensor, text: list[KeysValues]) -> Finished | None:
        """The ``last`` of the next ``denoise_after``, once what this one returned was committed."""
        return None if self.cache_from == "last_step" else Finished(x0, text)

    def _times(self, times: tuple[float, ...], like: Tensor) -> Modulations:
        """Of as many batches like ``like``, one after the other."""
        key = (times, *like.shape[:2])
        if key not in self._modulations:
            parts = [
                self.network.modulations(like.new_full(like.shape[:2], t, dtype=torch.float32)) for t in times
            ]
            self._modulations[key] = reduce(Modulations.then, parts)
        return self._modulations[key]

    def _texts(self, first: list[KeysValues], second: list[KeysValues]) -> list[KeysValues]:
        """Both prompts in one batch; remembered, as they change much less often than chunks come."""
        known = self._pair_of_texts
        if not known or known[0] is not first or known[1] is not second:
            layers = zip(first, second, strict=True)
            known[:] = first, second, [one.beside(other) for one, other in layers]
        return known[2]

    def _predict(
        self, past: list[Past] | None, position: int, text: list[KeysValues], x_t: Tensor, time: float
    ) -> tuple[Tensor, list[KeysValues]]:
        """The clean chunk, and the keys and values of the noised one where the cache takes those."""
        t = self._time(time, x_t)
        network = self.passes or self.network
        velocity, fresh = network.forward_chunk(
            x_t, t, text, past=past, position=position, keep=self.cache_from == "last_step"
        )
        return PATH.to_x0(velocity, x_t, x_t.new_full((), time), "velocity"), fresh

    def _time(self, time: float, x_t: Tensor) -> Tensor | Modulations:
        if self.frozen:
            return self._times((time,), x_t)
        return x_t.new_full(x_t.shape[:2], time, dtype=torch.float32)


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
