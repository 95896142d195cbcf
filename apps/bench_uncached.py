"""The student with and without its cache, stage by stage (part of `bench stream`)."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fewstep.apps.bench_acceleration import CHUNKS_IN_A_ROW, SETTLE_CHUNKS
from fewstep.apps.records import Setting

if TYPE_CHECKING:
    from fewstep.modalities.video.pipeline import VideoModel

DEFINITIONS = """\
speedup_vs_uncached: seconds per chunk of the same student recomputing its whole window at every step, over
  those with the cache; medians of chunks made in turn, four at a time; includes: the stages counted.
"""
SEED = 0
STREAM, NETWORK = "denoise+cache+decode+jpeg", "denoise+cache"

Add = Callable[..., None]
Stages = Sequence[dict[str, float]]
"""Seconds per stage of each chunk."""


def measure(model: "VideoModel", features: Any, *, steps: int, rounds: int, add: Add) -> None:
    """Both in turn: whatever else the machine does weighs on both."""
    stream = warm_stream(model, features, steps)
    uncached = Uncached(model, stream, features, steps)
    with_cache, without = [], []
    for _ in range(rounds):
        with_cache += [timed_chunk(stream) for _ in range(CHUNKS_IN_A_ROW)]
        without += [uncached.timed_chunk() for _ in range(CHUNKS_IN_A_ROW)]
    add_speedup(with_cache, without, add, steps=steps, rounds=rounds)


def add_speedup(with_cache: Stages, without: Stages, add: Add, **settings: Setting) -> None:
    """The records of the whole chunk and of the network alone."""
    for includes, stages in (
        (STREAM, ("denoise", "cache", "decode", "encode")),
        (NETWORK, ("denoise", "cache")),
    ):
        before, after = (_median(chunks, stages) for chunks in (without, with_cache))
        add("speedup_vs_uncached", before / after, "x", **settings, includes=includes)


def _median(chunks: Stages, stages: Sequence[str]) -> float:
    return statistics.median(sum(seconds.get(stage, 0.0) for stage in stages) for seconds in chunks)


def warm_stream(model: "VideoModel", features: Any, steps: int) -> Any:
    """A stream whose window is full and whose kernels are warm."""
    config = model.cache_config
    stream = model.stream(features, seed=SEED, steps=steps)
    for _ in range(-(-config.window // config.chunk) + SETTLE_CHUNKS):
        timed_chunk(stream)
    return stream


def timed_chunk(stream: Any) -> dict[str, float]:
    """Seconds per stage of the stream's next chunk, JPEG of all its frames included."""
    from fewstep.streaming.encoding import encode_jpeg

    started = time.perf_counter()
    chunk = stream.step()
    made = time.perf_counter()
    for frame in chunk.frames:
        encode_jpeg(frame)
    ended = time.perf_counter()
    seconds = dict(chunk.seconds)
    # What the stages leave over, such as copying the sink, goes to the cache: the sum is the wall clock.
    seconds["cache"] += made - started - sum(seconds.values())
    return {**seconds, "encode": ended - made}


class Uncached:
    """The student without a cache, from the point a stream has reached and with as many frames in view."""

    def __init__(self, model: "VideoModel", stream: Any, features: Any, steps: int) -> None:
        import torch

        from fewstep.modalities.video.rollout import ChunkRollout

        config = model.cache_config
        self._rollout = ChunkRollout(model.student, model.step_grids[steps])
        self._features = features[None].to(model.device)
        past = [stream.step().latents for _ in range(config.window // config.chunk - 1)]
        self._context = torch.cat(past, dim=1)
        self._codec, self._chunk = model.codec, config.chunk
        self._memory = model.codec.memory(1, *self._context.shape[-2:])
        self._generator = torch.Generator().manual_seed(SEED)

    def timed_chunk(self) -> dict[str, float]:
        """Seconds per stage of the next chunk."""
        import torch

        from fewstep.modalities.video.pipeline import to_bytes
        from fewstep.modalities.video.uncached import denoise_uncached
        from fewstep.streaming.encoding import encode_jpeg

        shape = (1, self._chunk, *self._context.shape[2:])
        started = time.perf_counter()
        latents = denoise_uncached(
            self._rollout,
            self._context,
            self._features,
            lambda step: torch.randn(shape, generator=self._generator).to(self._context.device),
        )
        denoised = time.perf_counter()
        with torch.inference_mode():
            pixels, self._memory = self._codec.decode_chunk(latents, self._memory)
            frames = to_bytes(pixels)[0]
        decoded = time.perf_counter()
        for frame in frames:
            encode_jpeg(frame)
        ended = time.perf_counter()
        self._context = torch.cat([self._context, latents], dim=1)[:, self._chunk :]
        return {"denoise": denoised - started, "decode": decoded - denoised, "encode": ended - decoded}
