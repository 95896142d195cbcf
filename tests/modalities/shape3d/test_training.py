"""Every stage of the 3D recipes on nano networks: it runs, it learns, and its export loads."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn

from fewstep.core.checkpoints import read_card
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.mdt import MDT
from fewstep.core.training.distiller import Distiller
from fewstep.core.training.export import ExportStudent
from fewstep.core.training.randomness import SeedEveryBatch
from fewstep.core.training.run_folder import JsonLines, SaveLast, last_checkpoint, read_metrics
from fewstep.modalities.shape3d.data.corners import cell_corners, corner_numbers
from fewstep.modalities.shape3d.data.module import ShapeDataModule
from fewstep.modalities.shape3d.data.shapes import Part, Shapes
from fewstep.modalities.shape3d.data.voxels import BAND, CELLS_PER_VOXEL
from fewstep.modalities.shape3d.denoisers import VoxelCondition
from fewstep.modalities.shape3d.distillation import ShapeRoles
from fewstep.modalities.shape3d.encoding import voxel_tensor
from fewstep.modalities.shape3d.flow_training import ShapeFlowTraining
from fewstep.modalities.shape3d.latent_vae_training import CELLS_PER_UNIT, LatentVAETraining
from fewstep.modalities.shape3d.model_folder import load_as, save_network
from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoder, ImageEncoderConfig
from fewstep.modalities.shape3d.networks.latent_flow import LatentFlow, LatentFlowConfig
from fewstep.modalities.shape3d.networks.latent_vae import (
    LatentEncoder,
    LatentEncoderConfig,
    MeshDecoder,
    MeshDecoderConfig,
)
from fewstep.modalities.shape3d.networks.structure_flow import StructureFlow, StructureFlowConfig
from fewstep.modalities.shape3d.networks.structure_vae import (
    StructureDecoder,
    StructureDecoderConfig,
    StructureEncoder,
    StructureEncoderConfig,
)
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor
from fewstep.modalities.shape3d.stages import LatentStage, StructureStage
from fewstep.modalities.shape3d.structure_vae_training import StructureVAETraining

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),  # the teacher and the image encoder are
]

Fit = Callable[..., Path]
R = 8
STRUCTURE = StructureFlowConfig(
    resolution=4,
    in_channels=2,
    model_channels=32,
    cond_channels=16,
    out_channels=2,
    num_blocks=1,
    num_heads=2,
    patch_size=1,
)
PICTURES = ImageEncoderConfig(image_size=16, patch_size=8, channels=16, num_blocks=1, num_heads=2)
LATENT = LatentFlowConfig(
    resolution=R,
    in_channels=2,
    model_channels=32,
    cond_channels=16,
    out_channels=2,
    num_blocks=1,
    num_heads=2,
    patch_size=2,
    num_io_res_blocks=2,
    io_block_channels=(16,),
)
CARD: dict[str, Any] = {"training": {}, "metrics": {}}


def data(root: Path, cache: Path, *parts: Part, batch_size: int = 3, **encoders: Any) -> ShapeDataModule:
    return ShapeDataModule(
        str(root), list(parts), batch_size=batch_size, val_batches=1, cache=str(cache), **encoders
    )


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    def fit(
        module: LightningModule,
        data: LightningDataModule,
        steps: int,
        *callbacks: Callback,
        name: str = "run",
        **settings: Any,
    ) -> Path:
        folder = tmp_path / name
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            default_root_dir=folder,
            logger=JsonLines(folder),
            log_every_n_steps=1,
            check_val_every_n_epoch=None,
            val_check_interval=steps,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=list(callbacks),
            **settings,
        )
        trainer.fit(module, datamodule=data, ckpt_path=last_checkpoint(folder), weights_only=True)
        assert trainer.global_step == steps
        return folder

    return fit


def logged(folder: Path, name: str) -> list[float]:
    return [row[name] for row in read_metrics(folder) if name in row]


def structure_networks() -> tuple[StructureEncoderConfig, StructureDecoderConfig]:
    blocks: dict[str, Any] = {"latent_channels": 2, "num_res_blocks": 1, "num_res_blocks_middle": 1}
    return (
        StructureEncoderConfig(in_channels=1, channels=(4, 8), **blocks),
        StructureDecoderConfig(out_channels=1, channels=(8, 4), **blocks),
    )


def latent_networks() -> tuple[LatentEncoderConfig, MeshDecoderConfig]:
    sizes: dict[str, Any] = {"resolution": R, "latent_channels": 2, "num_blocks": 1, "num_heads": 4}
    return (
        LatentEncoderConfig(in_channels=18, model_channels=32, **sizes),
        MeshDecoderConfig(model_channels=256, **sizes),
    )


def roughened(network: nn.Module) -> None:
    """Random numbers on all weights: fresh networks have zeros in their last layers and so give zeros."""
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random encoders of both autoencoders, and an image encoder as a trained structure stage keeps it."""
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    structure, latent = StructureEncoder(structure_networks()[0]), LatentEncoder(latent_networks()[0])
    for network in (structure, latent):
        roughened(network)
    save_network(folder / "structure", structure, **CARD)
    save_network(folder / "latent", latent, **CARD)
    StructureStage(STRUCTURE, PICTURES).save(folder / "stage", **CARD)
    return folder


def structure_data(root: Path, cache: Path, encoders: Path, **options: Any) -> ShapeDataModule:
    encoder = str(encoders / "structure")
    return data(root, cache, "structure_latents", "pictures", structure_encoder=encoder, **options)


def latent_data(root: Path, cache: Path, encoders: Path, **options: Any) -> ShapeDataModule:
    return data(root, cache, "latents", "pictures", latent_encoder=str(encoders / "latent"), **options)


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


def test_the_latent_autoencoder_learns_and_its_export_loads(shapes_root: Path, tmp_path: Path, fit: Fit):
    module = LatentVAETraining(*latent_networks(), learning_rate=5e-3)
    folder = fit(module, data(shapes_root, tmp_path, "voxels", "corners", batch_size=2), 12)
    losses = logged(folder, "loss/distance")
    assert np.mean(losses[-3:]) < 0.9 * losses[0]
    loaded = load_as(LatentEncoder, folder / "model" / "encoder")
    torch.testing.assert_close(loaded.state_dict(), module.encoder.state_dict())
    assert isinstance(load_as(MeshDecoder, folder / "model" / "decoder"), MeshDecoder)
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


def roles(stage: str, folder: Path, **options: Any) -> ShapeRoles:
    loaded = StructureStage(str(folder)) if stage == "structure" else LatentStage(str(folder), resolution=R)
    return ShapeRoles(loaded, {1: [1.0], 2: [1.0, 0.5]}, **options)


@pytest.fixture(scope="module")
def teachers(encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of both stages with random weights, so that guidance and derivatives are not zero."""
    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(1)
    structure = StructureStage(STRUCTURE, PICTURES)
    latent = LatentStage(LATENT, str(encoders / "stage"), resolution=R)
    latent.normalization = ([0.0, 0.0], [1.0, 1.0])
    for name, stage in (("structure", structure), ("latent", latent)):
        roughened(stage.flow)
        stage.save(folder / name, **CARD)
    return {name: folder / name for name in ("structure", "latent")}


@pytest.mark.parametrize("stage", ["structure", "latent"])
@pytest.mark.parametrize("derivative", ["difference", "jvp"])
def test_mdt_trains_the_student_and_its_export_is_a_stage(
    stage: str,
    derivative: Any,
    shapes_root: Path,
    tmp_path: Path,
    encoders: Path,
    teachers: dict[str, Path],
    fit: Fit,
):
    given = {"structure": structure_data, "latent": latent_data}[stage](shapes_root, tmp_path, encoders)
    distiller = Distiller(
        roles(stage, teachers[stage], guidance_scale=2.0),
        MDT(derivative=derivative),
        student_lr=1e-3,
        betas=(0.9, 0.99),
    )
    before = {name: value.clone() for name, value in distiller.roles.student.state_dict().items()}
    folder = fit(distiller, given, 2, ExportStudent(), limit_val_batches=0)
    after = distiller.roles.student.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    kind = {"structure": StructureFlow, "latent": LatentFlow}[stage]
    assert isinstance(load_as(kind, folder / "model" / "flow"), kind)
    assert read_card(folder / "model" / "flow").step_grids == {"1": [1.0], "2": [1.0, 0.5]}
    continued = roles(stage, teachers[stage], student=str(folder / "model"))
    torch.testing.assert_close(
        continued.student.state_dict(), load_as(kind, folder / "model" / "flow").state_dict()
    )


@pytest.mark.parametrize("stage", ["structure", "latent"])
def test_distribution_matching_trains_student_and_critic_of_either_stage(
    stage: str, shapes_root: Path, tmp_path: Path, encoders: Path, teachers: dict[str, Path], fit: Fit
):
    given = {"structure": structure_data, "latent": latent_data}[stage](shapes_root, tmp_path, encoders)
    distiller = Distiller(
        roles(stage, teachers[stage], guidance_scale=2.0),
        DMD(),
        student_lr=1e-3,
        critic_lr=1e-3,
        critic_updates=1,
    )
    networks = {"student": distiller.roles.student, "critic": distiller.roles.critic}
    before = {
        role: [p.detach().clone() for p in network.parameters()]
        for role, network in networks.items()
        if isinstance(network, nn.Module)
    }
    fit(distiller, given, 2, limit_val_batches=0)
    for role, network in networks.items():
        assert isinstance(network, nn.Module)
        moved = [not torch.equal(a, b) for a, b in zip(before[role], network.parameters(), strict=True)]
        assert any(moved), role


def test_guidance_of_voxels_is_that_of_pictures_alone_within_its_interval(teachers: dict[str, Path]):
    stage = LatentStage(str(teachers["latent"]), resolution=R)
    coords = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4], [1, 5, 5, 5]], dtype=torch.int32)
    voxels = SparseTensor.of(torch.zeros(3, 2), coords, batch_size=2, resolution=R)
    condition = VoxelCondition(voxels=voxels, picture=torch.randn(2, *stage.image_encoder.token_shape))
    x_t, t = torch.randn(3, 2), torch.tensor([0.4, 0.4, 0.8])
    plain = stage.denoiser(stage.flow)
    with torch.no_grad():
        shown, blank = plain(x_t, t, condition), plain(x_t, t, condition.without_picture())
        guided = stage.guided(stage.flow, 3.0, (0.5, 1.0))(x_t, t, condition)
    torch.testing.assert_close(guided[:2], shown[:2])
    torch.testing.assert_close(guided[2], blank[2] + 3 * (shown[2] - blank[2]))
    assert not torch.allclose(shown[2], blank[2])
