"""What every test starts from: the same random numbers, one thread."""

import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # tiny tensors gain nothing from more, and sums keep their order on every machine


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_video() -> ModuleType:
    """Builds a tiny video model folder: `tiny_video.build(folder)`."""
    from tests import tiny_video

    return tiny_video


@pytest.fixture(scope="session")
def tiny_model_folder(tiny_video: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny video model folder that nobody changes."""
    return tiny_video.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny_model(tiny_model_folder: Path, tiny_video: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny video model in float32, with random features for words."""
    from fewstep.modalities.video import parts, pipeline

    monkeypatch.setattr(parts, "TextEncoder", tiny_video.WordFeatures)
    return pipeline.VideoModel.load(tiny_model_folder, dtype=torch.float32)
