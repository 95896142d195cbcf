"""A few updates of whole distillations, from a diffusers folder to a student that diffusers loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from fewstep.core.discriminators import TokenHead
from fewstep.core.objectives.contract import Objective
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.dmd2 import DMD2
from fewstep.core.objectives.sid import SiD
from fewstep.core.schedules import step_grid
from fewstep.core.training.distiller import Distiller
from fewstep.modalities.image.pretrained import load_teacher
from fewstep.modalities.image.pretrained.distillation import PretrainedRoles

CAPTIONS = ["a blue mug", "two red chairs"]
HEIGHT, WIDTH = 16, 32
UPDATES = 4
MIDDLE_WIDTH = 16  # channels of the middle block of the tiny UNets

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


class WithBatches(Distiller):
    """A distiller with the same captions and pixels at every update."""

    def train_dataloader(self) -> DataLoader[Any]:
        pixels = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
        batches: Any = [{"captions": CAPTIONS, "pixels": pixels}] * UPDATES
        return DataLoader(batches, batch_size=None)


def make_roles(folder: Path, **settings: Any) -> PretrainedRoles:
    grids = {steps: list(step_grid(steps)) for steps in (1, 2)}
    return PretrainedRoles(str(folder), grids, 2.0, HEIGHT, WIDTH, **settings)


def snapshot(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("sd15", DMD),
        ("sdxl", lambda: DMD2(TokenHead(MIDDLE_WIDTH, hidden=8))),
        ("flux", SiD),  # which differentiates through teacher and critic
        ("qwen_image", DMD),
    ],
)
def test_a_few_updates_change_the_student_alone_and_it_is_saved(
    name: str, objective: Callable[[], Objective], folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    roles = make_roles(folder_of(name))
    distiller = WithBatches(roles, objective(), student_lr=1e-3, critic_lr=1e-3, critic_updates=1)
    teacher: Any = roles.teacher
    before = {"student": snapshot(roles.student), "teacher": snapshot(teacher), "vae": snapshot(vae(roles))}
    Trainer(
        accelerator="cpu",
        max_steps=UPDATES,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(distiller)
    assert int(distiller.student_steps) == UPDATES
    moved = [
        not torch.equal(old, new)
        for old, new in zip(before["student"], roles.student.parameters(), strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)  # the last block's text stream leads nowhere
    for frozen, module in (("teacher", teacher), ("vae", vae(roles))):
        for old, new in zip(before[frozen], module.parameters(), strict=True):
            assert torch.equal(old, new)

    roles.save_student(tmp_path / "student", training={"name": name}, metrics={})
    again = load_teacher(folder_of(name), network=tmp_path / "student")
    x, t = torch.randn(2, *roles.latent_shape), torch.tensor([1.0, 0.5])
    condition = again.encode_prompt(CAPTIONS)
    torch.testing.assert_close(again(x, t, condition), roles.network(x, t, condition), rtol=0, atol=0)
    record = json.loads((tmp_path / "student" / "student.json").read_text())
    assert record["step_grids"]["2"] == [1.0, 0.5]
    assert record["guidance"] == {"scale": 2.0, "baked": True}


def vae(roles: PretrainedRoles) -> Any:
    return roles.network.codec.vae


def test_samples_follow_from_their_generator_and_decode_to_images(folder_of: Callable[[str], Path]) -> None:
    roles = make_roles(folder_of("sd15"))

    def sample(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return roles.generate({"captions": CAPTIONS}, generator=generator, with_grad=True)

    first, again, other = sample(0), sample(0), sample(1)
    assert first.x.shape == (2, *roles.latent_shape)
    assert first.x.requires_grad
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)
    images = roles.decode(first.x.detach())
    assert images.shape == (2, 1, 3, HEIGHT, WIDTH)
    assert 0 <= images.min() < images.max() <= 1


def test_a_teacher_in_half_precision_has_a_student_in_full(folder_of: Callable[[str], Path]) -> None:
    roles = make_roles(folder_of("sd3"), teacher_dtype="bfloat16")
    teacher: Any = roles.teacher
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in roles.student.parameters()} == {torch.float32}
    sample = roles.generate({"captions": CAPTIONS}, generator=torch.Generator(), with_grad=False)
    assert sample.x.dtype == torch.float32
    with pytest.raises(ValueError, match="teacher_dtype='float8' must be one of float32, bfloat16, float16"):
        make_roles(folder_of("sd3"), teacher_dtype="float8")
