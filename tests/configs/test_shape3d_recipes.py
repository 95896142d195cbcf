"""The packaged recipes of 3D objects: every name in them exists, and the stages fit together."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from fewstep.apps.train import packaged_recipes
from fewstep.apps.train_cli import TrainCLI
from fewstep.core.objectives.mdt import MDT
from fewstep.core.training.distiller import Distiller
from fewstep.core.training.export import ExportStudent
from fewstep.modalities.shape3d.data.module import ShapeDataModule
from fewstep.modalities.shape3d.distillation import ShapeRoles
from fewstep.modalities.shape3d.flow_training import ShapeFlowTraining
from fewstep.modalities.shape3d.latent_vae_training import LatentVAETraining
from fewstep.modalities.shape3d.model_folder import save_network
from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoderConfig
from fewstep.modalities.shape3d.networks.latent_flow import LatentFlowConfig
from fewstep.modalities.shape3d.networks.structure_flow import StructureFlowConfig
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor
from fewstep.modalities.shape3d.stages import LatentStage, StructureStage
from fewstep.modalities.shape3d.structure_vae_training import StructureVAETraining

pytestmark = [
    # Lightning 2.6 calls what jsonargparse 4.49 deprecates
    pytest.mark.filterwarnings(r"ignore:\s*By default only one JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*.*was deprecated in v4\.49\.0"),
]

Recipe = tuple[Any, Any, Trainer]
STAGES = (
    "structure_vae",
    "latent_vae",
    "latent_vae_squeezed",
    "latent_decoder",
    "structure_flow",
    "latent_flow",
)
STUDENTS = ("structure_vm", "structure_vd", "latent_vm", "latent_vd")
MEGABYTES = 30  # of the whole preset in bfloat16


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Recipe]:
    """Everything a recipe names, over tiny networks in the place of trained ones."""
    monkeypatch.chdir(tmp_path)
    sizes: dict[str, Any] = {"model_channels": 16, "cond_channels": 16, "num_blocks": 1, "num_heads": 2}
    structure = StructureStage(
        StructureFlowConfig(resolution=4, **sizes), ImageEncoderConfig(channels=16, num_blocks=1, num_heads=2)
    )
    record: dict[str, Any] = {"training": {}, "metrics": {}}
    for run in ("structure_flow", "structure_vm"):
        structure.save(Path(f"runs/shapes/{run}/model"), **record)
    latent = LatentStage(
        LatentFlowConfig(resolution=16, io_block_channels=(8,), **sizes), "runs/shapes/structure_flow/model"
    )
    latent.normalization = ([0.0] * 8, [1.0] * 8)
    for run in ("latent_flow", "latent_vm"):
        latent.save(Path(f"runs/shapes/{run}/model"), **record)

    def instantiate(name: str) -> Recipe:
        before = {"latent_vae_squeezed": "latent_vae", "latent_decoder": "latent_vae_squeezed"}.get(name)
        if before is not None:
            first = instantiate(before)[0]
            save_network(Path(f"runs/shapes/{before}/model/encoder"), first.encoder, **record)
            save_network(Path(f"runs/shapes/{before}/model/decoder"), first.decoder, **record)
        monkeypatch.setattr(sys, "argv", ["fewstep"])
        path = packaged_recipes()[f"shape3d/shapes/{name}"]
        cli = TrainCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            save_config_callback=None,
            run=False,
            args=["--config", str(path), "--trainer.accelerator", "cpu"],
        )
        return cli.model, cli.datamodule, cli.trainer

    return instantiate


def test_every_recipe_of_3d_objects_is_tested_here() -> None:
    names = {name for name in packaged_recipes() if name.startswith("shape3d/")}
    assert names == {f"shape3d/shapes/{stage}" for stage in (*STAGES, *STUDENTS)}


@pytest.mark.parametrize("name", [*STAGES, *STUDENTS])
def test_recipes_instantiate_and_write_to_a_folder_of_their_name(
    recipe: Callable[[str], Recipe], name: str
) -> None:
    _, data, trainer = recipe(name)
    assert isinstance(data, ShapeDataModule)
    assert data.root == Path("data/shapes")
    assert trainer.default_root_dir == f"runs/shapes/{name}"


def test_flows_fit_their_autoencoders_and_the_preset_stays_small(recipe: Callable[[str], Recipe]) -> None:
    structure_vae, latent_vae = recipe("structure_vae")[0], recipe("latent_vae_squeezed")[0]
    structure, latent = recipe("structure_flow")[0], recipe("latent_flow")[0]
    assert isinstance(structure_vae, StructureVAETraining)
    assert isinstance(latent_vae, LatentVAETraining)
    assert isinstance(structure, ShapeFlowTraining)
    assert isinstance(latent, ShapeFlowTraining)
    flow, latent_flow = structure.stage.flow.config, latent.stage.flow.config
    assert isinstance(flow, StructureFlowConfig)
    assert isinstance(latent_flow, LatentFlowConfig)
    halvings = len(structure_vae.encoder.config.channels) - 1
    assert flow.resolution == latent_vae.resolution // 2**halvings
    assert flow.in_channels == structure_vae.encoder.config.latent_channels
    assert latent_flow.in_channels == latent_vae.encoder.config.latent_channels
    assert latent_flow.resolution == latent_vae.resolution
    assert flow.cond_channels == structure.stage.image_encoder.token_shape[1]
    decoder = recipe("latent_decoder")[0].decoder
    assert decoder.config.latent_channels == latent_vae.encoder.config.latent_channels
    parts = (structure_vae.decoder, decoder, structure.stage, latent.stage.flow)
    assert 2 * sum(p.numel() for part in parts for p in part.parameters()) < MEGABYTES * 1_000_000


@pytest.mark.parametrize("name", STUDENTS)
def test_students_start_where_the_run_before_ended_and_export_themselves(
    recipe: Callable[[str], Recipe], name: str
) -> None:
    model, data, trainer = recipe(name)
    assert isinstance(model, Distiller)
    assert isinstance(model.roles, ShapeRoles)
    assert isinstance(model.objective, MDT)
    assert (model.objective.lambda_vd == 0) == name.endswith("_vm")
    stage, part = (StructureStage, "structure_latents") if "structure" in name else (LatentStage, "latents")
    assert isinstance(model.roles.stage, stage)
    assert part in data.parts
    assert any(isinstance(callback, ExportStudent) for callback in trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
    assert sorted(model.roles.rollouts) == [1, 2]


def test_the_latent_flow_sees_every_voxel_and_not_only_the_mean_of_its_token(
    recipe: Callable[[str], Recipe],
) -> None:
    torch.manual_seed(0)
    flow = recipe("latent_flow")[0].stage.flow
    for parameter in flow.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    coords = torch.tensor([[0, 4, 4, 4], [0, 4, 4, 5]], dtype=torch.int32)  # of one token
    noise, moved = torch.randn(2, 12), torch.randn(12)
    tokens = torch.randn(1, 5, flow.config.cond_channels)
    with torch.no_grad():
        first, second = (
            flow(SparseTensor.of(feats, coords, batch_size=1, resolution=16), torch.ones(1), tokens).feats
            for feats in (noise, noise + torch.stack([moved, -moved]))
        )
    assert (second - first).abs().mean() > 0.1
