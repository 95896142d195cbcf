"""What 3D tests share: small rendered objects, small models, a trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule

from fewstep.apps.cli import main
from fewstep.modalities.shape3d.model_folder import save_network
from fewstep.modalities.shape3d.networks.latent_vae import LatentEncoder
from fewstep.modalities.shape3d.networks.structure_vae import StructureEncoder
from fewstep.modalities.shape3d.stages import LatentStage, StructureStage
from tests.modalities.shape3d.nano_stages import (
    CARD,
    LATENT,
    PICTURES,
    STRUCTURE,
    R,
    latent_networks,
    roughened,
    structure_networks,
)
from tests.trainers import fitted

RESOLUTION = 8


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six objects to train on, two to validate with: 8 voxels per axis, two views of 16 pixels."""
    root = tmp_path_factory.mktemp("shapes")
    sizes = ("--size", "16", "--resolution", str(RESOLUTION), "--views", "2", "--workers", "1")
    for split, count in (("train", 6), ("val", 2)):
        arguments = ["render", str(root), "--world", "shapes", "--split", split, "--count", str(count)]
        assert main([*arguments, *sizes]) == 0
    return root


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A small random text model of CLIP's class, with its tokenizer."""
    from tests.modalities.shape3d import nano_clip

    (tmp_path / "clip").mkdir()
    return nano_clip.save(tmp_path / "clip")


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Path]:
    def fit(
        module: LightningModule,
        data: LightningDataModule,
        steps: int,
        *callbacks: Callback,
        name: str = "run",
        **settings: Any,
    ) -> Path:
        return fitted(tmp_path / name, module, data, steps, callbacks, **settings)

    return fit


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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
