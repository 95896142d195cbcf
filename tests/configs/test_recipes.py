"""The packaged recipes: every name in them exists, every value is accepted, and the stages fit together."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from fewstep.apps.train import packaged_recipes
from fewstep.apps.train_cli import TrainCLI
from fewstep.core.training.distiller import Distiller
from fewstep.core.training.export import ExportStudent
from fewstep.modalities.image.classifier import SIZE as CLASSIFIER_SIZE
from fewstep.modalities.image.classifier_training import AttributeDataModule, AttributeTraining
from fewstep.modalities.image.codec import ImageCodec, ImageCodecConfig
from fewstep.modalities.image.codec_training import ImageCodecTraining
from fewstep.modalities.image.data import ImageDataModule
from fewstep.modalities.image.distillation import ImageRoles
from fewstep.modalities.image.flow_training import ImageFlowTraining
from fewstep.modalities.image.model_folder import save_codec as save_image_codec
from fewstep.modalities.image.model_folder import save_transformer as save_image_transformer
from fewstep.modalities.image.network import ImageTransformer
from fewstep.modalities.video.codec import CodecConfig, VideoCodec
from fewstep.modalities.video.codec_training import CodecTraining
from fewstep.modalities.video.data import VideoDataModule
from fewstep.modalities.video.distillation import VideoRoles
from fewstep.modalities.video.flow_training import VideoFlowTraining
from fewstep.modalities.video.latents import LatentVideoData
from fewstep.modalities.video.model_folder import save_codec, save_transformer
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer

pytestmark = [
    # Lightning 2.6 calls what jsonargparse 4.49 deprecates
    pytest.mark.filterwarnings(r"ignore:\s*By default only one JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*.*was deprecated in v4\.49\.0"),
]

Recipe = tuple[Any, Any, Trainer]


@pytest.fixture
def instantiate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Recipe]:
    """Everything a recipe names, over tiny networks in the place of trained ones."""

    class Silence:
        def __call__(self, prompts: list[str]) -> Tensor:
            return torch.zeros(len(prompts), 4, 8)

    monkeypatch.setattr("fewstep.modalities.video.distillation.TextEncoder", Silence)
    monkeypatch.chdir(tmp_path)
    sizes: dict[str, Any] = {
        "dim": 24,
        "ffn_dim": 32,
        "num_layers": 1,
        "num_heads": 2,
        "freq_dim": 8,
        "text_dim": 8,
    }
    network = VideoTransformer(TransformerConfig(channels=12, **sizes))
    for stage in ("teacher", "causal"):
        save_transformer(Path(f"runs/driving/{stage}/model"), network, training={}, metrics={})
    codec = VideoCodec(CodecConfig(width=8, depth=1))
    save_codec(Path("runs/driving/codec/model"), codec, training={}, metrics={})

    def instantiate(name: str) -> Recipe:
        monkeypatch.setattr(sys, "argv", ["fewstep"])
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
            args=["--config", str(packaged_recipes()[name]), "--trainer.accelerator", "cpu"],
        )
        return cli.model, cli.datamodule, cli.trainer

    return instantiate


def test_every_recipe_is_tested_here() -> None:
    driving = ("causal", "codec", "student", "teacher")
    assert [name for name in sorted(packaged_recipes()) if name.startswith("video/")] == [
        f"video/driving/{stage}" for stage in driving
    ]


def test_the_codec_recipe_instantiates(instantiate: Callable[[str], Recipe]) -> None:
    model, data, trainer = instantiate("video/driving/codec")
    assert isinstance(model, CodecTraining)
    assert isinstance(data, VideoDataModule)
    assert data.clip_frames % model.codec.config.frames_per_latent == 0
    assert trainer.default_root_dir == "runs/driving/codec"


def test_teacher_and_causal_student_instantiate_and_see_clips_of_one_length(
    instantiate: Callable[[str], Recipe],
) -> None:
    teacher, teacher_data, _ = instantiate("video/driving/teacher")
    causal, causal_data, _ = instantiate("video/driving/causal")
    assert isinstance(teacher, VideoFlowTraining)
    assert isinstance(causal, VideoFlowTraining)
    assert isinstance(teacher_data, LatentVideoData)
    assert teacher.chunk is None
    assert teacher_data.clip_frames == causal_data.clip_frames
    assert causal_data.clip_frames % causal.chunk == 0
    assert instantiate("video/driving/codec")[0].codec.config.channels == teacher.network.config.channels


def test_the_distillation_recipe_fits_its_teacher_and_outlasts_its_window(
    instantiate: Callable[[str], Recipe],
) -> None:
    model, data, trainer = instantiate("video/driving/student")
    causal = instantiate("video/driving/causal")[0]
    teacher_data = instantiate("video/driving/teacher")[1]
    assert isinstance(model, Distiller)
    assert any(isinstance(callback, ExportStudent) for callback in trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
    roles = model.roles
    assert isinstance(roles, VideoRoles)
    assert roles.cache.chunk == causal.chunk
    assert roles.score_chunks * roles.cache.chunk == teacher_data.clip_frames
    assert roles.latent_size == (data.size // 8, data.size // 8)
    # the longest rollouts fill the window and go on: the sink fuses while training
    assert data.clip_frames // roles.cache.chunk > roles.cache.window // roles.cache.chunk + 1
    assert sorted(roles.rollouts) == [1, 2, 4]
    assert all(len(rollout.times) == steps for steps, rollout in roles.rollouts.items())


IMAGE_STAGES = ("codec", "decoder", "teacher", "classifier")
STUDENTS = {"dmd2": "fresh", "tdm": "ddim", "sid": "fresh", "split_mean_flow": "fresh"}


@pytest.fixture
def image_recipe(
    instantiate: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Recipe]:
    """Recipes of the world of objects, over tiny networks in the place of trained ones."""

    class Silence:
        def __call__(self, prompts: list[str]) -> Tensor:
            return torch.zeros(len(prompts), 4, 8)

    monkeypatch.setattr("fewstep.modalities.image.distillation.TextEncoder", Silence)
    sizes = TransformerConfig(
        dim=24, ffn_dim=32, num_layers=1, num_heads=2, channels=16, freq_dim=8, text_dim=8, patch_size=(1, 1)
    )
    save_image_transformer(
        Path("runs/objects/teacher/model"), ImageTransformer(sizes), training={}, metrics={}
    )
    codec = ImageCodec(ImageCodecConfig(channels=16, width=4, depth=1))
    save_image_codec(Path("runs/objects/codec/model"), codec, training={}, metrics={})
    return lambda name: instantiate(f"image/objects/{name}")


def test_every_image_recipe_is_tested_here() -> None:
    names = {name for name in packaged_recipes() if name.startswith("image/objects/")}
    assert names == {f"image/objects/{stage}" for stage in (*IMAGE_STAGES, *STUDENTS)}


def test_the_image_teacher_fits_its_codec_and_both_see_pictures_of_one_size(
    image_recipe: Callable[[str], Recipe],
) -> None:
    codec, codec_data, trainer = image_recipe("codec")
    teacher, teacher_data, _ = image_recipe("teacher")
    assert isinstance(codec, ImageCodecTraining)
    assert isinstance(teacher, ImageFlowTraining)
    assert codec.codec.config.channels == cast(ImageTransformer, teacher.denoiser.network).config.channels
    assert codec_data.size == teacher_data.size == CLASSIFIER_SIZE
    assert (codec_data.text_features, teacher_data.text_features) == (False, True)
    assert trainer.default_root_dir == "runs/objects/codec"


def test_the_decoder_is_trained_on_with_the_codec_it_belongs_to(
    image_recipe: Callable[[str], Recipe],
) -> None:
    model, data, _ = image_recipe("decoder")
    assert isinstance(model, ImageCodecTraining)
    assert model.codec.config.width == 4  # of the codec in runs/objects/codec
    assert data.size == image_recipe("codec")[1].size


def test_the_classifier_recipe_instantiates_and_stays_small(image_recipe: Callable[[str], Recipe]) -> None:
    model, data, trainer = image_recipe("classifier")
    assert isinstance(model, AttributeTraining)
    assert isinstance(data, AttributeDataModule)
    assert 2 * sum(p.numel() for p in model.classifier.parameters()) < 1_000_000  # bytes in bfloat16
    assert trainer.default_root_dir == "runs/objects/classifier"


@pytest.mark.parametrize("name", STUDENTS)
def test_image_students_fit_their_teacher_and_export_themselves(
    image_recipe: Callable[[str], Recipe], name: str
) -> None:
    model, data, trainer = image_recipe(name)
    assert isinstance(model, Distiller)
    roles = model.roles
    assert isinstance(roles, ImageRoles)
    assert isinstance(data, ImageDataModule)
    assert roles.latent_shape == (16, data.size // 8, data.size // 8)
    assert any(isinstance(callback, ExportStudent) for callback in trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
    assert sorted(roles.rollouts) == [1, 2, 4]
    assert all(len(rollout.times) == steps for steps, rollout in roles.rollouts.items())
    assert {rollout.renoise for rollout in roles.rollouts.values()} == {STUDENTS[name]}
    assert roles.network.config.two_times == (name == "split_mean_flow")
    assert trainer.default_root_dir == f"runs/objects/{name}"
