"""The packaged recipes of proteins: every name in them exists, and the students fit their teacher."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from fewstep.apps.train import packaged_recipes
from fewstep.apps.train_cli import TrainCLI
from fewstep.core.checkpoints import read_card
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.sid import SiD
from fewstep.core.objectives.tdm import TDM
from fewstep.core.training.distiller import Distiller
from fewstep.modalities.protein.data.module import ProteinDataModule
from fewstep.modalities.protein.distillation import ProteinRoles
from fewstep.modalities.protein.flow_training import ProteinFlowTraining
from fewstep.modalities.protein.model_folder import save_transformer
from fewstep.modalities.protein.networks.transformer import ProteinTransformer, ProteinTransformerConfig
from fewstep.modalities.protein.times import student_grid

pytestmark = [
    # Lightning 2.6 calls what jsonargparse 4.49 deprecates
    pytest.mark.filterwarnings(r"ignore:\s*By default only one JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*.*was deprecated in v4\.49\.0"),
]

Recipe = tuple[Any, Any, Trainer]
STUDENTS = {"sid": SiD, "dmd": DMD, "dmd_8": DMD, "tdm": TDM}
RELEASED = "checkpoints/proteina_v1.2_DFS_200M_notri.ckpt"  # here a model folder in its place


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Recipe]:
    """Everything a recipe names, over a tiny network in the place of the trained one."""
    monkeypatch.chdir(tmp_path)
    sizes = ProteinTransformerConfig(
        token_dim=8, pair_dim=4, cond_dim=4, num_blocks=1, num_heads=2, registers=1,
        time_dim=4, index_dim=4, fold_dim=4, fold_classes=(3, 0, 0),
    )  # fmt: skip
    for folder in ("runs/protein/teacher_long/model", RELEASED):
        save_transformer(Path(folder), ProteinTransformer(sizes), training={}, metrics={}, licence=folder)

    def instantiate(name: str) -> Recipe:
        monkeypatch.setattr(sys, "argv", ["fewstep"])
        path = packaged_recipes()[f"protein/{name}"]
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
            args=["--config", str(path), "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"],
        )
        return cli.model, cli.datamodule, cli.trainer

    return instantiate


def test_every_recipe_of_proteins_is_tested_here() -> None:
    names = {name for name in packaged_recipes() if name.startswith("protein/")}
    chains = {f"protein/chains/{name}" for name in ("teacher", "teacher_long", *STUDENTS)}
    assert names == chains | {"protein/proteina/sid"}


def test_the_teacher_knows_the_datas_classes_and_fits_in_the_package(
    recipe: Callable[[str], Recipe],
) -> None:
    model, data, trainer = recipe("chains/teacher")
    assert isinstance(model, ProteinFlowTraining)
    assert isinstance(data, ProteinDataModule)
    assert data.root is None
    assert model.transformer.config.fold_classes == (3, 0, 0)
    assert sum(parameter.numel() for parameter in model.transformer.parameters()) < 3e6
    assert trainer.default_root_dir == "runs/protein/teacher"


def test_the_second_part_goes_on_from_the_first_with_all_lengths(recipe: Callable[[str], Recipe]) -> None:
    first, _, trainer = recipe("chains/teacher")
    folder = Path(trainer.default_root_dir) / "model"
    save_transformer(folder, first.transformer, training={}, metrics={})
    model, data, trainer = recipe("chains/teacher_long")
    assert trainer.default_root_dir == "runs/protein/teacher_long"
    assert data.limits == (40, 128)
    told = first.transformer.state_dict()
    assert all(torch.equal(value, told[name]) for name, value in model.transformer.state_dict().items())


@pytest.mark.parametrize("name", STUDENTS)
def test_students_start_as_the_teacher_on_the_grids_of_the_paper(
    name: str, recipe: Callable[[str], Recipe]
) -> None:
    model, data, _ = recipe(f"chains/{name}")
    assert isinstance(model, Distiller)
    assert isinstance(model.objective, STUDENTS[name])
    assert isinstance(model.roles, ProteinRoles)
    assert isinstance(data, ProteinDataModule)
    assert data.limits == (40, 128)
    if name != "tdm":
        assert {steps: rollout.times for steps, rollout in model.roles.rollouts.items()} == {
            steps: student_grid(steps) for steps in (8, 16)
        }


def test_a_released_teacher_passes_its_licence_on(recipe: Callable[[str], Recipe], tmp_path: Path) -> None:
    model, data, _ = recipe("proteina/sid")
    assert isinstance(model.objective, SiD)
    assert data.limits == (50, 256)
    assert model.accumulate_batches * data.batch_size == 1024  # on each of four devices
    assert list(model.roles.rollouts) == [16]
    model.roles.save_student(tmp_path / "student", training={}, metrics={})
    assert read_card(tmp_path / "student").licence == RELEASED
