"""How far a stream that runs otherwise is from the same stream run plainly."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep.modalities.video.codec import STRIDE
from fewstep.modalities.video.noise import chunk_noise
from fewstep.modalities.video.pipeline import VideoModel

WHITE = 255  # the largest level of a colour


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Distance from the plain stream.

    Args:
        velocity_error: of a first chunk, at each time of the grid for the same noise: the norm of the
            difference over the norm, mean.
        first_psnr: of the frames of the first chunk, in dB; infinite where they are the same.
        psnr: of all frames, each stream having gone its own way.
        levels: largest difference of any colour, of 255.
    """

    velocity_error: float
    first_psnr: float
    psnr: float
    levels: int


def fidelity(
    plain: VideoModel,
    other: VideoModel,
    features: Float[Tensor, " text feature"],
    *,
    chunks: int,
    seed: int = 0,
) -> Fidelity:
    """Of ``other`` against ``plain``, over so many chunks under one prompt."""
    return Original(plain, features, chunks=chunks, seed=seed).fidelity(other)


class Original:
    """What a plain stream does, once, for all that are compared with it."""

    def __init__(
        self, plain: VideoModel, features: Float[Tensor, " text feature"], *, chunks: int, seed: int = 0
    ) -> None:
        self._features, self._chunks, self._seed = features, chunks, seed
        self._times = plain.step_grids[plain.default_steps]
        self._first = plain.codec.pixel_frames(plain.cache_config.chunk)
        self._velocities = [_velocity(plain, features, time, seed) for time in self._times]
        self._frames = _frames(plain, features, chunks, seed)

    def fidelity(self, other: VideoModel) -> Fidelity:
        """Of another stream of the same seed and prompt."""
        errors = []
        for time, expected in zip(self._times, self._velocities, strict=True):
            found = _velocity(other, self._features, time, self._seed)
            errors.append(float((found - expected).norm() / expected.norm()))
        frames, first = _frames(other, self._features, self._chunks, self._seed), self._first
        return Fidelity(
            velocity_error=float(np.mean(errors)),
            first_psnr=psnr(frames[:first], self._frames[:first]),
            psnr=psnr(frames, self._frames),
            levels=int(np.abs(frames.astype(int) - self._frames.astype(int)).max()),
        )


def psnr(
    frames: UInt8[np.ndarray, " frame height width 3"], expected: UInt8[np.ndarray, " frame height width 3"]
) -> float:
    """Peak signal-to-noise ratio in dB, of all frames together; infinite where they are the same."""
    error = np.mean((frames.astype(float) - expected) ** 2)
    return math.inf if error == 0.0 else float(10 * np.log10(WHITE**2 / error))


@torch.inference_mode()
def _velocity(model: VideoModel, features: Tensor, time: float, seed: int) -> Tensor:
    rollout = model.rollout(model.default_steps)
    shape = (1, model.cache_config.chunk, rollout.network.config.channels)
    x_t = chunk_noise(seed, 0, 0, (*shape, model.height // STRIDE, model.width // STRIDE)).to(model.device)
    t = rollout.network.modulations(x_t.new_full(x_t.shape[:2], time))
    text = rollout.network.text_keys_values(features.to(model.device)[None])
    network = rollout.passes or rollout.network
    return network.forward_chunk(x_t, t, text, past=None, position=0)[0].double()


def _frames(
    model: VideoModel, features: Tensor, chunks: int, seed: int
) -> UInt8[np.ndarray, " frame height width 3"]:
    stream = model.stream(features, seed=seed)
    return np.concatenate([stream.step().frames for _ in range(chunks)])
