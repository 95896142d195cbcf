"""The structure autoencoder on nano networks: it learns, its export loads, and objects stay upright."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.core.checkpoints import read_card
from fewstep.modalities.shape3d.model_folder import load_as
from fewstep.modalities.shape3d.networks.latent_vae import MeshDecoder
from fewstep.modalities.shape3d.networks.structure_vae import StructureDecoder, StructureEncoder
from fewstep.modalities.shape3d.structure_vae_training import StructureVAETraining
from tests.modalities.shape3d.nano_stages import QUIET, R, data, logged, structure_networks

pytestmark = QUIET
Fit = Callable[..., Path]


def test_the_structure_autoencoder_learns_and_its_export_loads(shapes_root: Path, tmp_path: Path, fit: Fit):
    module = StructureVAETraining(*structure_networks(), learning_rate=1e-2, turned=False)
    folder = fit(module, data(shapes_root, tmp_path, "occupancy", batch_size=6), 40)
    losses = logged(folder, "loss/dice")
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    encoder = load_as(StructureEncoder, folder / "model" / "encoder")
    decoder = load_as(StructureDecoder, folder / "model" / "decoder")
    torch.testing.assert_close(encoder.state_dict(), module.encoder.state_dict())
    torch.testing.assert_close(decoder.state_dict(), module.decoder.state_dict())
    assert 0 < read_card(folder / "model" / "encoder").metrics["val/iou"] <= 1
    with pytest.raises(ValueError, match="holds a StructureEncoder; a MeshDecoder is needed"):
        load_as(MeshDecoder, folder / "model" / "encoder")


def test_turning_objects_keeps_what_stands_above_what(shapes_root: Path, tmp_path: Path):
    module = StructureVAETraining(*structure_networks())
    occupancy = (torch.rand(4, 1, R, R, R) < 0.2).float()
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        turned = module._turned(occupancy)
        torch.testing.assert_close(turned.sum((2, 3)), occupancy.sum((2, 3)))
        seen.add(tuple(turned[0].flatten().tolist()))
    assert len(seen) > 4
