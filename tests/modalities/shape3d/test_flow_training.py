"""The flows of both stages on nano networks: they learn with their image encoder, and resume."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fewstep.core.training.randomness import SeedEveryBatch
from fewstep.core.training.run_folder import SaveLast
from fewstep.modalities.shape3d.flow_training import ShapeFlowTraining
from fewstep.modalities.shape3d.model_folder import load_as
from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoder
from fewstep.modalities.shape3d.stages import LatentStage, StructureStage
from tests.modalities.shape3d.nano_stages import (
    LATENT,
    PICTURES,
    QUIET,
    STRUCTURE,
    R,
    latent_data,
    logged,
    structure_data,
)

pytestmark = QUIET
Fit = Callable[..., Path]


def test_the_structure_flow_learns_with_its_image_encoder(
    shapes_root: Path, tmp_path: Path, encoders: Path, fit: Fit
):
    stage = StructureStage(STRUCTURE, PICTURES)
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    module = ShapeFlowTraining(stage, learning_rate=1e-2, ema_decay=0.5)
    folder = fit(module, structure_data(shapes_root, tmp_path, encoders, batch_size=6), 60)
    losses = logged(folder, "loss/velocity")
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])
    after = stage.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"flow", "image_encoder"}
    again = StructureStage(str(folder / "model"))
    averaged = {name: value for name, value in again.state_dict().items() if name in module.ema.names}
    torch.testing.assert_close(averaged, module.ema.averaged_state(), atol=0.0, rtol=0.0)


def test_the_latent_flow_learns_with_an_image_encoder_that_began_as_the_first_stage_s(
    shapes_root: Path, tmp_path: Path, encoders: Path, fit: Fit
):
    stage = LatentStage(LATENT, str(encoders / "stage"), resolution=R)
    first = load_as(ImageEncoder, encoders / "stage" / "image_encoder")
    torch.testing.assert_close(stage.image_encoder.state_dict(), first.state_dict(), atol=0.0, rtol=0.0)
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    module = ShapeFlowTraining(stage, learning_rate=1e-2, ema_decay=0.5)
    cached = latent_data(shapes_root, tmp_path, encoders, batch_size=6)
    folder = fit(module, cached, 40)
    losses = logged(folder, "loss/velocity")
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])
    after = stage.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"flow", "image_encoder"}
    again = LatentStage(str(folder / "model"), resolution=R)
    assert not any(parameter.requires_grad for parameter in again.image_encoder.parameters())
    assert again.normalization is not None
    latents = cached.load("train").latents["latents"]
    torch.testing.assert_close(torch.tensor(again.normalization[0]), latents.mean)
    torch.testing.assert_close(torch.tensor(again.normalization[1]), latents.std)


def test_a_resumed_flow_ends_where_an_uninterrupted_one_does(
    shapes_root: Path, tmp_path: Path, encoders: Path, fit: Fit
):
    def trained(steps: int, name: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = ShapeFlowTraining(StructureStage(STRUCTURE, PICTURES))
        # without the schedule, which depends on where a run is to end
        module.configure_optimizers = lambda: torch.optim.AdamW(module.stage.parameters())
        given = structure_data(shapes_root, tmp_path, encoders)
        fit(module, given, steps, SaveLast(), SeedEveryBatch(), name=name)
        return module.state_dict()

    whole = trained(4, "whole")
    trained(2, "halves")
    torch.testing.assert_close(trained(4, "halves"), whole, atol=0.0, rtol=0.0)


def test_pictures_that_are_dropped_are_zeros_for_their_objects_alone(
    shapes_root: Path, tmp_path: Path, encoders: Path
):
    stage = StructureStage(str(encoders / "stage"))
    module = structure_data(shapes_root, tmp_path, encoders)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    shown = stage.data(batch).condition
    dropped = stage.data(batch, torch.tensor([False, True, False])).condition
    assert isinstance(shown, torch.Tensor)
    assert isinstance(dropped, torch.Tensor)
    assert not dropped[1].any()
    assert torch.equal(dropped[[0, 2]], shown[[0, 2]])
    assert shown[1].any()
