"""Tiny networks of the real classes, and words whose features need no model."""

from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def tiny_image() -> ModuleType:
    """Builds a tiny image model folder: `tiny_image.build(folder)`."""
    from tests import tiny_image

    return tiny_image


@pytest.fixture(scope="session")
def folder(tiny_image: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image model folder that nobody changes."""
    return tiny_image.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def word_features(tiny_image: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """`WordFeatures` in the text encoder's place wherever one is built."""
    for module in ("pipeline", "packing", "distillation"):
        monkeypatch.setattr(f"fewstep.modalities.image.{module}.TextEncoder", tiny_image.WordFeatures)
