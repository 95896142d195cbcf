"""Losses of the 3D autoencoders at points where their values are known."""

import pytest
import torch

from fewstep.modalities.shape3d.losses import (
    appearance_loss,
    consistency_loss,
    dice_loss,
    distance_at,
    distance_loss,
    grid_iou,
    kl_loss,
    sampled,
)

SURE = 40.0  # a logit whose sigmoid is 1 in float32


def test_dice_is_zero_for_the_target_and_follows_the_formula_elsewhere():
    target = (torch.rand(2, 1, 4, 4, 4) < 0.3).float()
    assert dice_loss((2 * target - 1) * SURE, target) == pytest.approx(0, abs=1e-6)
    logits = torch.randn(2, 1, 4, 4, 4)
    p = logits.sigmoid()
    expected = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    torch.testing.assert_close(dice_loss(logits, target), expected)
    # the whole batch is one sum: one full and one empty object are not the mean of two losses
    one, two = dice_loss(logits[:1], target[:1]), dice_loss(logits[1:], target[1:])
    assert dice_loss(logits, target) != pytest.approx(float((one + two) / 2), abs=1e-6)


def test_kl_is_that_of_two_gaussians():
    mean, std = torch.tensor([0.7]), torch.tensor([0.3])
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(kl_loss(mean, 2 * std.log()), expected.mean())


def test_draws_have_the_mean_and_spread_of_the_posterior():
    draws = sampled(torch.full((20_000,), 2.0), torch.full((20_000,), 2 * torch.tensor(0.5).log().item()))
    assert float(draws.mean()) == pytest.approx(2, abs=0.02)
    assert float(draws.std()) == pytest.approx(0.5, abs=0.02)


def test_iou_counts_voxels_of_each_object():
    one, two = torch.zeros(2, 1, 2, 2, 2, dtype=torch.bool), torch.zeros(2, 1, 2, 2, 2, dtype=torch.bool)
    one[0, 0, 0], two[0, 0, 0, 0] = True, True
    assert grid_iou(one, two).tolist() == [0.5, 1.0]


def rows() -> torch.Tensor:
    """Two cells that share four corners, 12 corners in all."""
    return torch.stack([torch.arange(8), torch.arange(4, 12)])


def test_distances_near_the_surface_count_double():
    target = torch.full((12,), 3.0)
    target[0] = 0.5
    assert distance_loss(target[rows()], target, rows()) == 0
    far, near = target[rows()].clone(), target[rows()].clone()
    far[0, 1] += 1
    near[0, 0] += 1
    assert distance_loss(near, target, rows()) == pytest.approx(2 * float(distance_loss(far, target, rows())))


def test_appearance_is_learned_where_the_surface_is():
    distance = torch.full((12,), 3.0)
    distance[:2] = 0.0
    colour, normal = torch.rand(12, 3), torch.nn.functional.normalize(torch.randn(12, 3), dim=1)
    exact = torch.logit(torch.cat([colour, (normal + 1) / 2], 1).clamp(1e-4, 1 - 1e-4))[rows()]
    for value in appearance_loss(exact, distance, colour, normal, rows()):
        assert float(value) == pytest.approx(0, abs=2e-4)
    far = exact.clone()
    far[:, 2:] = 0
    for value in appearance_loss(far, distance, colour, normal, rows()):
        # corners 4 to 11 and those with no surface near change nothing
        assert float(value) == pytest.approx(0, abs=2e-4)
    grey = torch.zeros_like(exact)
    value, _ = appearance_loss(grey, distance, colour, normal, rows())
    torch.testing.assert_close(value, (colour[:2] - 0.5).abs().mean())


def test_cells_that_meet_at_a_corner_are_pulled_together():
    agreed = torch.randn(12)[rows()]
    assert float(consistency_loss(agreed[..., None], rows())) == pytest.approx(0, abs=1e-12)
    apart = agreed.clone()
    apart[0, 4] += 2  # corner 4, which the second cell sees too: both are 1 from their mean
    assert float(consistency_loss(apart[..., None], rows())) == pytest.approx(2 / 16)
    alone = agreed.clone()
    alone[0, 0] += 2
    assert float(consistency_loss(alone[..., None], rows())) == pytest.approx(0, abs=1e-12)


def test_a_field_is_read_between_its_corners_along_the_right_axes():
    axis = torch.linspace(-0.5, 0.5, 9)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    field = x + 10 * y + 100 * z
    points = (torch.rand(20, 3) - 0.5).requires_grad_()
    found = distance_at(points, field)
    torch.testing.assert_close(found, points @ torch.tensor([1.0, 10.0, 100.0]), atol=1e-4, rtol=1e-5)
    (slope,) = torch.autograd.grad(found.sum(), points)
    torch.testing.assert_close(slope, torch.tensor([1.0, 10.0, 100.0]).expand(20, 3), atol=1e-3, rtol=1e-4)
