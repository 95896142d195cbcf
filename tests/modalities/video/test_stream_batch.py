"""Streams generated together."""

import numpy as np
import pytest
import torch

from fewstep.modalities.video.generation import balanced_attributes, draw_scripts
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.stream_batch import StreamBatch


def test_each_stream_of_a_batch_is_the_stream_of_its_seed(tiny_model: VideoModel):
    scripts = draw_scripts(tiny_model, balanced_attributes(4), split="train", segments=2, seed=5)
    features = torch.stack([script.features for script in scripts])
    batch = StreamBatch(tiny_model, features[:, 0], seeds=[script.seed for script in scripts], steps=2)
    together = [batch.step() for _ in range(5)]
    batch.set_prompts(features[:, 1])
    together.append(batch.step())
    for number, script in enumerate(scripts):
        stream = tiny_model.stream(script.features[0], seed=script.seed, steps=2)
        alone = [stream.step().frames for _ in range(5)]
        stream.set_prompt(script.features[1])
        alone.append(stream.step().frames)
        difference = np.concatenate(alone).astype(int) - np.concatenate([part[number] for part in together])
        assert np.abs(difference).max() <= 1  # float32 sums of another order, then rounding to bytes


def test_a_batch_refuses_steps_and_prompts_that_do_not_fit(tiny_model: VideoModel):
    with pytest.raises(ValueError, match="steps=3: this model has 1, 2"):
        StreamBatch(tiny_model, torch.zeros(1, 4, 8), seeds=[1], steps=3)
    with pytest.raises(ValueError, match="2 prompts for 1 seeds"):
        StreamBatch(tiny_model, torch.zeros(2, 4, 8), seeds=[1], steps=2)
