"""The student without its cache."""

from pathlib import Path

import torch

from fewstep.modalities.video.noise import chunk_noise
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.rollout import ChunkRollout
from fewstep.modalities.video.uncached import denoise_uncached


def test_without_a_cache_the_student_makes_the_same_chunks_while_nothing_is_forgotten(
    tiny_model_folder: Path,
):
    model = VideoModel.load(tiny_model_folder, dtype=torch.float64)
    features = model.encode_prompt(model.default_prompt)
    stream = model.stream(features, seed=1, steps=2, sink_mode="none")
    rollout = ChunkRollout(model.student, model.step_grids[2])
    chunk, context = model.cache_config.chunk, torch.zeros(1, 0, 4, 12, 12)
    latents = context
    for index in range(model.cache_config.window // chunk):
        latents = stream.step().latents
        uncached = denoise_uncached(
            rollout,
            context,
            features[None],
            lambda step, index=index: chunk_noise(1, index, step, (1, chunk, 4, 12, 12)),
        )
        # Latents are float32; the network in float64 leaves only their rounding.
        torch.testing.assert_close(uncached, latents, atol=1e-5, rtol=1e-5)
        context = torch.cat([context, latents], dim=1)
    assert not torch.allclose(latents, stream.step().latents, atol=1e-2)
