"""Random rotations are rotations, uniform ones."""

import pytest
import torch

from fewstep.modalities.protein.rotations import random_rotations, rotated_at_random


def test_they_are_proper_and_uniform() -> None:
    turned = random_rotations(20_000)
    torch.testing.assert_close(turned @ turned.mT, torch.eye(3).expand_as(turned), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(torch.linalg.det(turned), torch.ones(20_000), atol=1e-5, rtol=0.0)
    # the image of any vector is uniform on the sphere, and the trace of Haar measure has mean 0, variance 1
    image = turned @ torch.tensor([0.0, 0.0, 1.0])
    assert float(image.mean(0).abs().max()) < 0.02
    torch.testing.assert_close(image.T @ image / 20_000, torch.eye(3) / 3, atol=0.01, rtol=0.0)
    trace = turned.diagonal(dim1=1, dim2=2).sum(1)
    assert (float(trace.mean()), float(trace.var())) == pytest.approx((0.0, 1.0), abs=0.04)


def test_each_chain_turns_by_itself_and_keeps_its_distances() -> None:
    x = torch.randn(1, 9, 3).expand(2, -1, -1)
    first, second = rotated_at_random(x)
    assert float((first - second).abs().max()) > 0.1
    torch.testing.assert_close(torch.cdist(first, first), torch.cdist(x[0], x[0]), atol=1e-4, rtol=0.0)
