"""Distillation of both stages on nano networks: students and critics train, and exports load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fewstep.core.checkpoints import read_card
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.mdt import MDT
from fewstep.core.training.distiller import Distiller
from fewstep.core.training.export import ExportStudent
from fewstep.modalities.shape3d.denoisers import VoxelCondition
from fewstep.modalities.shape3d.distillation import ShapeRoles
from fewstep.modalities.shape3d.model_folder import load_as
from fewstep.modalities.shape3d.networks.latent_flow import LatentFlow
from fewstep.modalities.shape3d.networks.structure_flow import StructureFlow
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor
from fewstep.modalities.shape3d.stages import LatentStage, StructureStage
from tests.modalities.shape3d.nano_stages import QUIET, R, latent_data, structure_data

pytestmark = QUIET
Fit = Callable[..., Path]
DATA = {"structure": structure_data, "latent": latent_data}


def roles(stage: str, folder: Path, **options: Any) -> ShapeRoles:
    loaded = StructureStage(str(folder)) if stage == "structure" else LatentStage(str(folder), resolution=R)
    return ShapeRoles(loaded, {1: [1.0], 2: [1.0, 0.5]}, **options)


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
    given = DATA[stage](shapes_root, tmp_path, encoders)
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
    assert read_card(folder / "model" / "flow").step_grids == {"1": [1.0], "2": [1.0, 0.5]}
    exported = load_as(kind, folder / "model" / "flow").state_dict()
    averaged = distiller.ema.averaged_state()
    torch.testing.assert_close({name: exported[name] for name in averaged}, averaged, atol=0.0, rtol=0.0)
    continued = roles(stage, teachers[stage], student=str(folder / "model"))
    torch.testing.assert_close(continued.student.state_dict(), exported)


@pytest.mark.parametrize("stage", ["structure", "latent"])
def test_distribution_matching_trains_student_and_critic_of_either_stage(
    stage: str, shapes_root: Path, tmp_path: Path, encoders: Path, teachers: dict[str, Path], fit: Fit
):
    given = DATA[stage](shapes_root, tmp_path, encoders)
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
