"""Every stage of the image recipes on tiny networks: it runs, it learns, and its export loads."""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor

from fewstep.core.checkpoints import read_card
from fewstep.core.discriminators import TokenHead
from fewstep.core.objectives.dmd2 import DMD2
from fewstep.core.objectives.split_mean_flow import SplitMeanFlow
from fewstep.core.training.distiller import Distiller
from fewstep.core.training.export import ExportStudent
from fewstep.core.training.run_folder import SaveLast, read_metrics
from fewstep.modalities.image.caption_features import encode_captions
from fewstep.modalities.image.classifier import ClassifierConfig, load_classifier
from fewstep.modalities.image.classifier_training import AttributeDataModule, AttributeTraining
from fewstep.modalities.image.codec import ImageCodec, ImageCodecConfig
from fewstep.modalities.image.codec_training import ImageCodecTraining
from fewstep.modalities.image.data import ImageDataModule
from fewstep.modalities.image.distillation import ImageRoles
from fewstep.modalities.image.flow_training import ImageFlowTraining
from fewstep.modalities.image.model_folder import load_codec, load_transformer
from tests.trainers import fitted

pytestmark = [
    pytest.mark.usefixtures("word_features"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),  # the teacher and the codec are
]

Fit = Callable[..., Path]
BATCH = 4


@pytest.fixture(scope="module")
def root(tiny_image: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_image.write_pictures(
        tmp_path_factory.mktemp("pictures"), {"train": 32, "val": 8, "heldout": 8}
    )


@pytest.fixture
def pictures(tiny_image: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions of the pictures are encoded by `WordFeatures`."""

    def encode(captions: list[str], *, cache: Path, width: int) -> Any:
        return encode_captions(
            captions, cache=cache, width=tiny_image.WORDS, encoder=tiny_image.WordFeatures()
        )

    monkeypatch.setattr("fewstep.modalities.image.data.encode_captions", encode)


def data(root: Path, tmp_path: Path, **settings: Any) -> ImageDataModule:
    settings = {"batch_size": BATCH, **settings}
    return ImageDataModule(str(root), val_batches=1, cache=str(tmp_path), **settings)


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
        return fitted(tmp_path / name, module, data, steps, callbacks, **settings)

    return fit


def logged(folder: Path, name: str) -> list[float]:
    return [row[name] for row in read_metrics(folder) if name in row]


def test_the_codec_learns_and_its_export_loads(root: Path, tmp_path: Path, fit: Fit) -> None:
    module = ImageCodecTraining(ImageCodecConfig(channels=4, width=8, depth=1), learning_rate=1e-2)
    folder = fit(module, data(root, tmp_path, text_features=False, batch_size=16), 60)
    losses = logged(folder, "loss/reconstruction")
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    loaded = load_codec(folder / "model")
    torch.testing.assert_close(loaded.state_dict(), module.codec.state_dict())
    assert math.isfinite(read_card(folder / "model").metrics["val/psnr"])


def test_psnr_is_that_of_eight_bit_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ImageCodecTraining(ImageCodecConfig(channels=4, width=8, depth=1))
    monkeypatch.setattr(ImageCodec, "encode", lambda self, pixels: pixels)
    monkeypatch.setattr(ImageCodec, "decode", lambda self, latents: latents + 2 * 8 / 255)  # 8 grey levels
    found: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: found.update({name: value}))
    module.validation_step({"pixels": torch.rand(1, 3, 8, 8) * 0.5}, 0)
    assert float(found["val/psnr"]) == pytest.approx(20 * math.log10(255 / 8), abs=1e-4)


@pytest.mark.usefixtures("pictures")
def test_flow_matching_learns_and_exports_its_average(
    root: Path, folder: Path, tmp_path: Path, fit: Fit, tiny_image: ModuleType
) -> None:
    module = ImageFlowTraining(str(folder / "codec"), tiny_image.SIZES, learning_rate=1e-2, ema_decay=0.9)
    statistics = {name: value.clone() for name, value in module.codec.state_dict().items()}
    run = fit(module, data(root, tmp_path), 30)
    losses = logged(run, "loss/velocity")
    assert np.mean(losses[-6:]) < 0.95 * np.mean(losses[:3])
    loaded = load_transformer(run / "model").state_dict()
    torch.testing.assert_close(
        {name: loaded[name] for name in module.ema.names}, module.ema.averaged_state(), atol=0.0, rtol=0.0
    )
    assert math.isfinite(read_card(run / "model").metrics["val/velocity_0.5"])
    torch.testing.assert_close(dict(module.codec.state_dict()), statistics, atol=0.0, rtol=0.0)


def distiller(folder: Path, method: str) -> Distiller:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        roles = ImageRoles(
            teacher=str(folder / "teacher"),
            codec=str(folder / "codec"),
            step_grids={1: [1.0], 2: [1.0, 0.6]},
            two_times=method == "split_mean_flow",
        )
        if method == "split_mean_flow":
            return Distiller(roles, SplitMeanFlow(), student_lr=1e-3)
        objective = DMD2(discriminator=TokenHead(dim=16))
        return Distiller(roles, objective, student_lr=1e-3, critic_lr=1e-3, critic_updates=1)


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("method", ["dmd2", "split_mean_flow"])
def test_an_interrupted_and_resumed_student_equals_an_uninterrupted_one_bit_for_bit(
    root: Path, folder: Path, tmp_path: Path, fit: Fit, method: str
) -> None:
    def train(name: str, steps: int) -> Path:
        torch.randn(7)  # a new process has another state of the random numbers
        module, pictures = distiller(folder, method), data(root, tmp_path)
        return fit(module, pictures, steps, ExportStudent(), SaveLast(), name=name, limit_val_batches=0)

    whole = train("whole", 4)
    train("parts", 2)
    parts = train("parts", 4)
    expected = load_transformer(whole / "model").state_dict()
    torch.testing.assert_close(load_transformer(parts / "model").state_dict(), expected, atol=0.0, rtol=0.0)
    assert logged(parts, "loss/student") == logged(whole, "loss/student")
    started = distiller(folder, method).roles.student.state_dict()
    assert any(not torch.equal(expected[name], value) for name, value in started.items())  # it did train
    card = read_card(parts / "model")
    assert card.step_grids == {"1": [1.0], "2": [1.0, 0.6]}
    assert (card.guidance.scale, card.guidance.baked) == (2.5, True)


def test_the_classifier_learns_colours_and_reports_its_accuracies(root: Path, fit: Fit) -> None:
    module = AttributeTraining(ClassifierConfig(width=4, features=16), learning_rate=1e-2)
    folder = fit(module, AttributeDataModule(str(root), batch_size=16), 60)
    losses = logged(folder, "loss/attributes")
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])
    metrics = read_card(folder / "model").metrics
    assert {"val/category", "val/background", "val/heldout/colour"} <= set(metrics)
    assert metrics["val/background"] > 2 / 7  # the most of a picture; seven backgrounds by chance
    loaded = load_classifier(folder / "model")
    torch.testing.assert_close(loaded.state_dict(), module.classifier.state_dict())
