"""Gaussians and their files, read back by numpy alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.modalities.shape3d.gaussians import PROPERTIES, Gaussians, quaternion_product, write_gaussians
from fewstep.modalities.shape3d.networks.latent_vae import GaussianDecoder, GaussianDecoderConfig
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor

HALF = np.sqrt(0.5)


def some(count: int = 5) -> Gaussians:
    rng = np.random.default_rng(0)
    rotations = rng.normal(size=(count, 4))
    return Gaussians(
        centres=rng.uniform(-0.5, 0.5, (count, 3)).astype(np.float32),
        scales=rng.uniform(0.001, 0.1, (count, 3)).astype(np.float32),
        rotations=(rotations / np.linalg.norm(rotations, axis=1, keepdims=True)).astype(np.float32),
        opacities=rng.uniform(0.1, 0.9, count).astype(np.float32),
        harmonics=rng.normal(size=(count, 3)).astype(np.float32),
    )


def read(path: Path) -> dict[str, np.ndarray]:
    head, body = path.read_bytes().split(b"end_header\n", 1)
    lines = head.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    names = [line.split()[-1] for line in lines if line.startswith("property float ")]
    rows = np.frombuffer(body, "<f4").reshape(int(lines[2].split()[-1]), len(names))
    return dict(zip(names, rows.T, strict=True))


def matrices(quaternions: np.ndarray) -> np.ndarray:
    """Written out in another way than the product: the rotated unit vectors, from sandwich products."""
    conjugate = quaternions * [1, -1, -1, -1]
    columns = [
        quaternion_product(quaternion_product(quaternions, np.eye(4)[axis]), conjugate) for axis in (1, 2, 3)
    ]
    return np.stack(columns, axis=-1)[:, 1:]


def test_a_file_says_what_viewers_expect(tmp_path: Path) -> None:
    gaussians = some()
    write_gaussians(tmp_path / "a.ply", gaussians)
    found = read(tmp_path / "a.ply")
    assert tuple(found) == PROPERTIES
    np.testing.assert_allclose(1 / (1 + np.exp(-found["opacity"])), gaussians.opacities, rtol=1e-5)
    for axis in range(3):
        np.testing.assert_allclose(np.exp(found[f"scale_{axis}"]), gaussians.scales[:, axis], rtol=1e-5)
        np.testing.assert_allclose(found[f"f_dc_{axis}"], gaussians.harmonics[:, axis])
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def test_positions_and_ellipsoids_turn_together(tmp_path: Path) -> None:
    gaussians = some()
    write_gaussians(tmp_path / "a.ply", gaussians)
    found = read(tmp_path / "a.ply")
    turn = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])  # up was z and is -y
    places = np.stack([found[name] for name in "xyz"], axis=1)
    np.testing.assert_allclose(places, gaussians.centres @ turn.T, atol=1e-6)
    turned = matrices(np.stack([found[f"rot_{part}"] for part in range(4)], axis=1))
    np.testing.assert_allclose(turned, turn @ matrices(gaussians.rotations), atol=1e-5)


def test_a_product_of_quarter_turns_is_a_half_turn_and_order_matters() -> None:
    about_x, about_y = np.array([HALF, HALF, 0, 0]), np.array([HALF, 0, HALF, 0])
    np.testing.assert_allclose(quaternion_product(about_x, about_x), [0, 1, 0, 0], atol=1e-12)
    one, other = quaternion_product(about_x, about_y), quaternion_product(about_y, about_x)
    np.testing.assert_allclose(one, [0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(other, [0.5, 0.5, 0.5, -0.5])


def test_what_the_decoder_of_gaussians_says_becomes_gaussians() -> None:
    config = GaussianDecoderConfig(
        resolution=8, model_channels=32, latent_channels=8, num_blocks=1, num_heads=2, num_gaussians=4
    )
    decoder = GaussianDecoder(config)
    coords = torch.tensor([[0, 1, 2, 3], [0, 4, 5, 6], [1, 0, 0, 7]], dtype=torch.int32)
    latents = SparseTensor.of(torch.randn(3, 8), coords, batch_size=2, resolution=8)
    first, second = (Gaussians.of(sample) for sample in decoder.gaussians(decoder(latents)))
    assert (len(first.centres), len(second.centres)) == (8, 4)
    np.testing.assert_allclose(first.opacities, config.opacity_bias, rtol=1e-4)
    assert np.abs(second.centres - (np.array([0.5, 0.5, 7.5]) / 8 - 0.5)).max() < 0.75 / 8
    np.testing.assert_allclose(np.linalg.norm(first.rotations, axis=1), 1, atol=1e-5)


def test_a_coefficient_of_zero_is_grey() -> None:
    grey = replace(some(2), harmonics=np.array([[0, 0, 0], [1.7724539, 100, -100]], np.float32))
    np.testing.assert_allclose(grey.colours, [[0.5, 0.5, 0.5], [1, 1, 0]], atol=1e-6)


def test_full_and_no_opacity_stay_finite(tmp_path: Path) -> None:
    gaussians = replace(some(2), opacities=np.array([0, 1], np.float32))
    write_gaussians(tmp_path / "a.ply", gaussians)
    assert np.isfinite(read(tmp_path / "a.ply")["opacity"]).all()


def test_what_are_no_gaussians_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give them from 0 to 1, not as logits"):
        replace(some(2), opacities=np.array([-2.0, 3.0], np.float32))
    with pytest.raises(ValueError, match="must be positive"):
        replace(some(1), scales=np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match=r"a\.splat must end in \.ply"):
        write_gaussians(tmp_path / "a.splat", some())
    with pytest.raises(ValueError, match="no Gaussians"):
        write_gaussians(tmp_path / "a.ply", some(0))
    assert list(tmp_path.iterdir()) == []
