"""Pictures of chains: the chain is there, a view is no mirror image, maps of distances have a gradient."""

import numpy as np
import torch

from fewstep.modalities.protein.pictures import _seen_flat, chain_picture, distance_maps, sheet


def test_a_chain_fills_its_picture_from_blue_to_red(real_chains: list[np.ndarray]) -> None:
    picture = chain_picture(real_chains[0], size=64)
    assert picture.shape == (3, 64, 64)
    assert 0.05 < float((picture.min(0).values < 0.9).float().mean()) < 0.6
    red, _, blue = picture
    assert bool(((red > 0.6) & (blue < 0.3)).any())
    assert bool(((blue > 0.5) & (red < 0.3)).any())


def test_a_view_turns_the_chain_and_does_not_mirror_it(real_chains: list[np.ndarray]) -> None:
    for chain in real_chains[:5]:
        seen, centred = _seen_flat(chain), chain - chain.mean(0)
        turn = np.linalg.lstsq(centred, seen, rcond=None)[0]
        assert np.linalg.det(turn) > 0.99


def test_a_sheet_is_filled_up_with_white() -> None:
    joined = sheet([torch.zeros(3, 4, 4)] * 3, columns=2)
    assert joined.shape == (3, 8, 8)
    assert (float(joined[:, :, :4].max()), float(joined[:, 4:, 4:].min())) == (0.0, 1.0)


def test_maps_show_distances_and_pull_on_coordinates() -> None:
    x = torch.tensor([[[0.0, 0, 0], [0.6, 0, 0], [9.0, 0, 0]]], requires_grad=True)
    maps = distance_maps(x)
    torch.testing.assert_close(maps[0, 0, 0, 0].detach(), torch.tensor([1.0, 0.8, 0.0]), atol=1e-3, rtol=0.0)
    maps[0, 0, 0, 0, 1].backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0, :, 0], torch.tensor([1 / 3, -1 / 3, 0.0]), atol=1e-3, rtol=0.0)
