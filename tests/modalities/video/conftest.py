"""Tiny networks of the real classes, and words whose features need no model."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from fewstep.core.training.run_folder import read_metrics
from fewstep.modalities.video.acceleration import PLAIN, Acceleration
from fewstep.modalities.video.codec import CodecConfig, VideoCodec
from fewstep.modalities.video.data import write_clip
from fewstep.modalities.video.latents import LatentVideoData
from fewstep.modalities.video.model_folder import save_codec, save_transformer
from fewstep.modalities.video.parts import Parts
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer
from tests.trainers import fitted, quiet_trainer

WORDS, FEATURES = 4, 8  # of the stand-in for the text encoder
SIZES: dict[str, Any] = {
    "dim": 48,
    "ffn_dim": 96,
    "num_layers": 2,
    "num_heads": 4,
    "channels": 4,
    "freq_dim": 16,
    "text_dim": FEATURES,
}


class WordFeatures:
    """Random features for each word, the same whenever it occurs; zeros after a prompt's end."""

    def __call__(self, prompts: list[str]) -> Tensor:
        features = torch.zeros(len(prompts), WORDS, FEATURES)
        for row, prompt in zip(features, prompts, strict=True):
            for place, word in enumerate(["[CLS]", *prompt.split()][:WORDS]):
                key = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
                row[place] = torch.randn(FEATURES, generator=torch.Generator().manual_seed(key))
        return features


def randomise(module: nn.Module, seed: int) -> None:
    """No weight at its initial 0 or 1: a term that starts switched off would go untested."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session")
def make_network() -> Callable[..., VideoTransformer]:
    def make(seed: int = 0, dtype: torch.dtype = torch.float64, **sizes: int) -> VideoTransformer:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = VideoTransformer(TransformerConfig(**{**SIZES, **sizes}))
        randomise(network, seed)
        return network.to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def make_codec() -> Callable[..., VideoCodec]:
    def make(seed: int = 0, dtype: torch.dtype = torch.float64, **sizes: int) -> VideoCodec:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            codec = VideoCodec(
                CodecConfig(**{"channels": 4, "frames_per_latent": 2, "width": 8, "depth": 2, **sizes})
            )
        randomise(codec, seed)
        return codec.to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def make_model(
    make_network: Callable[..., VideoTransformer], make_codec: Callable[..., VideoCodec]
) -> Callable[..., VideoModel]:
    """A random model of 16x32 pixels in float32, which forgets from its fourth chunk on."""
    card = {
        "fps": 12,
        "height": 16,
        "width": 32,
        "cache": {"window": 6, "chunk": 2, "sink": 2, "sink_mode": "ema", "decay": 0.8},
        "step_grids": {"2": [1.0, 0.7]},
        "default_steps": 2,
        "default_prompt": "ahead",
    }

    def make(acceleration: Acceleration = PLAIN, **sizes: int) -> VideoModel:
        student = make_network(dtype=torch.float32, **sizes)
        parts = Parts(
            card=card, student=student, codec=make_codec(dtype=torch.float32), text=WordFeatures(), known={}
        )
        return VideoModel(Path(), dtype=torch.float32, parts=parts, acceleration=acceleration)

    return make


@pytest.fixture
def word_features(monkeypatch: pytest.MonkeyPatch) -> WordFeatures:
    """Puts ``WordFeatures`` in the text encoder's place wherever training builds one."""
    monkeypatch.setattr("fewstep.modalities.video.latents.TextEncoder", WordFeatures)
    monkeypatch.setattr("fewstep.modalities.video.distillation.TextEncoder", WordFeatures)
    return WordFeatures()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drifting stripes of 32x32 pixels, red in the first half of the video and blue in the second."""
    root = tmp_path_factory.mktemp("videos")
    length = 24
    phase = np.arange(length)[:, None, None] + np.arange(32)[None, None, :] / 2
    stripes = np.broadcast_to(127 + 100 * np.sin(phase / 2), (length, 32, 32))
    frames = np.zeros((length, 32, 32, 3), dtype=np.uint8)
    frames[:12, ..., 0], frames[12:, ..., 2] = stripes[:12], stripes[12:]
    segments = [{"start": 0, "captions": ["red stripes"]}, {"start": 12, "captions": ["blue stripes"]}]
    for split in ("train", "val"):
        write_clip(root / split, "00000", frames, {"segments": segments}, fps=12.0)
    return root


@pytest.fixture
def models(
    tmp_path: Path, make_codec: Callable[..., VideoCodec], make_network: Callable[..., VideoTransformer]
) -> Path:
    """Random model folders ``codec`` and ``network``."""
    save_codec(tmp_path / "codec", make_codec(dtype=torch.float32), training={}, metrics={})
    network = make_network(dtype=torch.float32, dim=24, ffn_dim=48, num_heads=2)
    save_transformer(tmp_path / "network", network, training={}, metrics={})
    return tmp_path


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


@pytest.fixture
def place_in_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """A trainer that has consumed so many batches, as one rank of several."""

    def place(first_batch: int, rank: int, world_size: int) -> Trainer:
        trainer = quiet_trainer(tmp_path / "place", 1, [])
        trainer.fit_loop.epoch_loop.batch_progress.total.ready = first_batch
        monkeypatch.setattr(Trainer, "global_rank", rank)
        monkeypatch.setattr(Trainer, "world_size", world_size)
        return trainer

    return place


@pytest.fixture
def latent_data(root: Path, models: Path) -> Callable[[int], LatentVideoData]:
    """Latents of the stripes in clips of so many frames."""

    def make(clip_frames: int) -> LatentVideoData:
        return LatentVideoData(
            str(root), str(models / "codec"), clip_frames=clip_frames, batch_size=2, size=32, val_batches=1
        )

    return make


@pytest.fixture
def logged() -> Callable[[Path, str], list[float]]:
    """The values of a metric in a run's folder."""
    return lambda folder, name: [row[name] for row in read_metrics(folder) if name in row]
