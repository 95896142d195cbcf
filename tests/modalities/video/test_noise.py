"""Noise of streams and pictures: every seed of 63 bits has its own, though torch looks at 32 of them."""

import pytest
import torch

from fewstep.modalities.video.noise import chunk_noise


@pytest.mark.parametrize("seed", [2**32, 2**33, 2**62])
def test_seeds_with_equal_low_bits_differ(seed: int) -> None:
    assert not torch.equal(chunk_noise(seed, 0, 0, (64,)), chunk_noise(0, 0, 0, (64,)))
    assert torch.equal(chunk_noise(seed, 0, 0, (64,)), chunk_noise(seed, 0, 0, (64,)))
