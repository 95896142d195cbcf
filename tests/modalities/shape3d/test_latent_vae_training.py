"""The latent autoencoder on nano networks: it learns, exports, goes on, and its surface is pulled."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.core.checkpoints import read_card
from fewstep.core.training.run_folder import read_metrics
from fewstep.modalities.shape3d.data.corners import cell_corners, corner_numbers
from fewstep.modalities.shape3d.data.shapes import Shapes
from fewstep.modalities.shape3d.data.voxels import BAND, CELLS_PER_VOXEL
from fewstep.modalities.shape3d.encoding import voxel_tensor
from fewstep.modalities.shape3d.latent_vae_training import CELLS_PER_UNIT, LatentVAETraining
from fewstep.modalities.shape3d.model_folder import load_as, save_network
from fewstep.modalities.shape3d.networks.latent_vae import LatentEncoder, MeshDecoder
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor
from tests.modalities.shape3d.nano_stages import CARD, QUIET, R, data, latent_networks, logged

pytestmark = QUIET
Fit = Callable[..., Path]


def test_the_latent_autoencoder_learns_and_its_export_loads(shapes_root: Path, tmp_path: Path, fit: Fit):
    module = LatentVAETraining(*latent_networks(), learning_rate=5e-3)
    folder = fit(module, data(shapes_root, tmp_path, "voxels", "corners", batch_size=2), 12)
    losses = logged(folder, "loss/distance")
    assert np.mean(losses[-3:]) < 0.9 * losses[0]
    encoder = load_as(LatentEncoder, folder / "model" / "encoder")
    decoder = load_as(MeshDecoder, folder / "model" / "decoder")
    torch.testing.assert_close(encoder.state_dict(), module.encoder.state_dict())
    torch.testing.assert_close(decoder.state_dict(), module.decoder.state_dict())
    assert 0 <= read_card(folder / "model" / "decoder").metrics["val/wrong_sign"] <= 1


def test_a_training_of_the_latent_autoencoder_goes_on_from_a_finished_one_of_its_sizes(tmp_path: Path):
    encoder, decoder = latent_networks()
    first = LatentVAETraining(encoder, decoder)
    save_network(tmp_path / "encoder", first.encoder, **CARD)
    save_network(tmp_path / "decoder", first.decoder, **CARD)
    second = LatentVAETraining(encoder, decoder, start=tmp_path)
    torch.testing.assert_close(second.state_dict(), first.state_dict(), atol=0.0, rtol=0.0)
    with pytest.raises(ValueError, match=r"start=.*: its encoder is .*; give equal sizes"):
        LatentVAETraining(replace(encoder, num_blocks=2), decoder, start=tmp_path)


def test_another_decoder_learns_the_latents_of_an_encoder_that_stays_as_it_is(
    shapes_root: Path, tmp_path: Path, fit: Fit
):
    encoder, decoder = latent_networks()
    first = LatentVAETraining(encoder, decoder)
    save_network(tmp_path / "encoder", first.encoder, **CARD)
    narrow = replace(decoder, model_channels=decoder.model_channels // 4)
    module = LatentVAETraining(tmp_path / "encoder", narrow, learning_rate=5e-3)
    folder = fit(module, data(shapes_root, tmp_path, "voxels", "corners", batch_size=2), 30)
    losses = logged(folder, "loss/distance")
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert not any("loss/kl" in row for row in read_metrics(folder))
    kept, made = (read_card(path / "encoder").weights_sha256 for path in (tmp_path, folder / "model"))
    assert kept == made
    assert load_as(MeshDecoder, folder / "model" / "decoder").config == narrow


def test_a_trained_encoder_and_a_training_to_go_on_from_are_not_both_given(tmp_path: Path):
    encoder, decoder = latent_networks()
    save_network(tmp_path / "encoder", LatentEncoder(encoder), **CARD)
    with pytest.raises(ValueError, match=r"start=.* has an encoder of its own"):
        LatentVAETraining(tmp_path / "encoder", decoder, start=tmp_path)


def test_the_surface_is_pulled_to_the_true_one_at_the_end_of_the_training(
    shapes_root: Path, tmp_path: Path, fit: Fit
):
    module = LatentVAETraining(*latent_networks(), learning_rate=5e-3, surface_share=0.3)
    folder = fit(module, data(shapes_root, tmp_path, "voxels", "corners", batch_size=1), 10)
    assert [row["step"] for row in read_metrics(folder) if "loss/surface" in row] == [7, 8, 9]
    assert all(0 <= value <= BAND for value in logged(folder, "loss/surface"))


def test_vertices_of_a_perfect_decoder_lie_on_the_surface_and_pull_on_deformations(shapes_root: Path):
    module = LatentVAETraining(*latent_networks())
    batch = Shapes.of(shapes_root / "train", "voxels", "corners").__getitems__([(2, 0), (5, 0)])
    voxels = voxel_tensor(batch, R)
    places = voxels.voxels.finer.finer
    rows = cell_corners(places.coords, corner_numbers(batch["coords"], 2, R))
    feats = torch.zeros(len(places), 101)
    feats[:, :8] = batch["corner_distance"][rows] / CELLS_PER_UNIT + 1 / (CELLS_PER_VOXEL * R)
    exact, deviation = module._surface(batch, SparseTensor(feats.requires_grad_(), places))
    # a dual vertex is the mean of points on the surface, so that it lies off it by the surface's bend alone
    assert float(exact.detach()) < 0.1
    (pull,) = torch.autograd.grad(exact + deviation, feats)
    assert all(pull[:, part].abs().sum() > 0 for part in (slice(0, 8), slice(8, 32), slice(32, 44)))
    moved = feats.detach().clone()
    moved[:, :8] += 1 / CELLS_PER_UNIT
    off, _ = module._surface(batch, SparseTensor(moved, places))
    assert float(off) == pytest.approx(1, abs=0.25)
