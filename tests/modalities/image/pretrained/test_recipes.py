"""The recipes for released teachers, as they are, over tiny folders of the same classes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from fewstep.apps.train import packaged_recipes, run
from fewstep.core.training.run_folder import read_metrics
from fewstep.modalities.image.pretrained import load_teacher

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
    pytest.mark.filterwarnings("ignore:Precision bf16-mixed is not supported by the model summary"),
    # Lightning 2.6 calls what jsonargparse 4.49 deprecates
    pytest.mark.filterwarnings(r"ignore:\s*By default only one JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*.*was deprecated in v4\.49\.0"),
]

RECIPES = {"sd15_dmd2_lora": "sd15", "pixart_tdm_lora": "pixart_alpha"}
SIZE = 32
UPDATES = 2
CAPTIONS = ["a blue mug", "two red chairs"]
MIDDLE_WIDTH = 16  # channels of the middle block of the tiny UNet


def test_every_recipe_is_tested_here() -> None:
    names = {name for name in packaged_recipes() if name.startswith("image/pretrained/")}
    assert names == {f"image/pretrained/{name}" for name in RECIPES}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures with captions beside them for training, two for validation."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        folder = tmp_path / "pictures" / split
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (SIZE + 8, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(CAPTIONS[number % 2] + "\n")
    return tmp_path / "pictures"


@pytest.fixture
def train(folder_of: Callable[[str], Path], pictures: Path, tmp_path: Path) -> Callable[..., Path]:
    """`fewstep train fit` of a recipe for as many updates, over what is tiny; the folder of the run."""

    def train(recipe: str, *more: str, updates: int = UPDATES, teacher: Path | None = None) -> Path:
        roles, folder = "--model.init_args.roles.init_args.", tmp_path / "run"
        small: dict[str, Any] = {
            "--trainer.default_root_dir": folder,
            "--trainer.accelerator": "cpu",
            "--trainer.max_steps": updates,
            "--trainer.log_every_n_steps": 1,
            roles + "teacher": teacher or folder_of(RECIPES[recipe]),
            roles + "height": SIZE,
            roles + "width": SIZE,
            roles + "lora.rank": 2,
            roles + "lora.alpha": 4.0,
            "--model.init_args.critic_updates": 1,
            "--model.init_args.accumulate_batches": 1,
            "--data.init_args.root": pictures,
            "--data.init_args.size": SIZE,
            "--data.init_args.batch_size": 2,
        }
        if "dmd2" in recipe:
            head = "--model.init_args.objective.init_args.discriminator.init_args.dim"
            small[head] = MIDDLE_WIDTH
        arguments = [f"{name}={value}" for name, value in small.items()]
        assert run(["fit", "--config", f"image/pretrained/{recipe}", *arguments, *more]) == 0
        return folder

    return train


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_adapters_and_its_student_loads_again(
    recipe: str, train: Callable[..., Path], folder_of: Callable[[str], Path]
) -> None:
    folder = train(recipe)
    rows = read_metrics(folder)
    assert [row["step"] for row in rows if "loss/student" in row] == list(range(1, UPDATES + 1))
    source = folder_of(RECIPES[recipe])
    before, after = load_teacher(source), load_teacher(source, network=folder / "model")
    condition = after.encode_prompt(CAPTIONS)
    x, t = torch.randn(2, *after.latent_shape(SIZE, SIZE)), torch.tensor([0.9, 0.4])
    assert not torch.allclose(after(x, t, condition), before(x, t, condition))

    moved = {
        name
        for (name, old), new in zip(
            before.network.state_dict().items(), after.network.state_dict().values(), strict=True
        )
        if not torch.allclose(old.bfloat16().float(), new, rtol=0, atol=0)
    }
    adapter = load_file(folder / "model" / "adapter" / "adapter_model.safetensors")
    adapted = {name.removeprefix("base_model.model.").split(".lora_")[0] + ".weight" for name in adapter}
    assert moved
    assert moved <= adapted
    assert not any("time" in name or "conv" in name for name in adapted)
    assert all(weight.dtype == torch.float32 for weight in adapter.values())
    record = json.loads((folder / "model" / "student.json").read_text())
    recipe_says = yaml.safe_load(packaged_recipes()[f"image/pretrained/{recipe}"].read_text())
    roles = recipe_says["model"]["init_args"]["roles"]["init_args"]
    assert record["step_grids"] == {str(steps): times for steps, times in roles["step_grids"].items()}
    assert record["guidance"]["scale"] == roles["guidance_scale"]
    saved = torch.load(folder / "last.ckpt")["state_dict"]
    assert not any(name.startswith("roles.") and "lora_" not in name for name in saved)


def test_a_resumed_recipe_continues_bit_for_bit(train: Callable[..., Path], tmp_path: Path) -> None:
    whole = train("sd15_dmd2_lora", updates=3).rename(tmp_path / "whole")
    train("sd15_dmd2_lora", updates=1)
    parts = train("sd15_dmd2_lora", updates=3)
    file = "model/unet/diffusion_pytorch_model.safetensors"
    expected, found = load_file(whole / file), load_file(parts / file)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_another_class_of_teacher_needs_only_its_name_and_layers(
    train: Callable[..., Path], folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    for name in ("sana", "qwen_image"):  # linear attention; guidance on the network's own prediction
        layers = "--model.init_args.roles.init_args.lora.layers=attn.*[.]to_"
        folder = train("pixart_tdm_lora", layers, teacher=folder_of(name))
        assert load_teacher(folder_of(name), network=folder / "model").network
        shutil.rmtree(folder)
