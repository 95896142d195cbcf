"""Several streams generated together, for measurements that need many of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep.modalities.video.cache import SinkMode, StreamCache
from fewstep.modalities.video.codec import STRIDE
from fewstep.modalities.video.noise import chunk_noise, sent
from fewstep.modalities.video.pipeline import VideoModel, to_bytes
from fewstep.modalities.video.rollout import Finished


class StreamBatch:
    """One stream per seed; each is, up to rounding, the ``VideoStream`` of that seed.

    Args:
        features: a prompt for each stream.
        steps: denoising steps per chunk, one of the model's.
        sink_mode: None for the model's own.
        decay: of the EMA sink; None for the model's own.
    """

    def __init__(
        self,
        model: VideoModel,
        features: Float[Tensor, " batch text feature"],
        *,
        seeds: Sequence[int],
        steps: int,
        sink_mode: SinkMode | None = None,
        decay: float | None = None,
    ) -> None:
        if steps not in model.step_grids:
            raise ValueError(f"steps={steps}: this model has {', '.join(map(str, model.steps_available))}")
        if len(features) != len(seeds):
            raise ValueError(f"features are of {len(features)} prompts for {len(seeds)} seeds; give one each")
        config = model.cache_config
        self._config = replace(
            config, sink_mode=sink_mode or config.sink_mode, decay=config.decay if decay is None else decay
        )
        self._rollout = model.rollout(steps)
        self._codec, self._device, self.seeds, self.index = model.codec, model.device, list(seeds), 0
        rows, columns = model.height // STRIDE, model.width // STRIDE
        self._shape = (self._config.chunk, model.student.config.channels, rows, columns)
        with torch.inference_mode():
            self._cache = StreamCache(
                model.student, self._config, batch=len(self.seeds), height=rows, width=columns
            )
            self._memory = model.codec.memory(len(self.seeds), rows, columns)
        self._last: Finished | None = None
        self.set_prompts(features)

    @torch.inference_mode()
    def set_prompts(self, features: Float[Tensor, " batch text feature"]) -> None:
        """Steer every stream from the next chunk on."""
        self._text = self._rollout.network.text_keys_values(features.to(self._device))

    @torch.inference_mode()
    def step(self) -> UInt8[np.ndarray, " batch frame height width 3"]:
        """The next chunk of every stream."""
        latents, entry = self._rollout.denoise_after(self._cache, self._last, self._text, self._noise)
        if entry is not None:
            self._cache.commit(*entry)
        pixels, self._memory = self._codec.decode_chunk(latents, self._memory)
        self._last = self._rollout.unfinished(latents, self._text)
        self.index += 1
        return to_bytes(pixels)

    def _noise(self, step: int) -> Float[Tensor, " batch frame channel h w"]:
        noise = [chunk_noise(seed, self.index, step, self._shape) for seed in self.seeds]
        return sent(torch.stack(noise), self._device)
