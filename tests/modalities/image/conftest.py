"""Tiny networks of the real classes, and words whose features need no model."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def tiny_image() -> ModuleType:
    """Builds a tiny image model folder: `tiny_image.build(folder)`."""
    spec = importlib.util.spec_from_file_location("tiny_image", Path(__file__).parents[2] / "tiny_image.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def folder(tiny_image: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image model folder that nobody changes."""
    return tiny_image.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def word_features(tiny_image: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """`WordFeatures` in the text encoder's place wherever one is built."""
    for module in ("pipeline", "packing", "distillation"):
        monkeypatch.setattr(f"fewstep.modalities.image.{module}.TextEncoder", tiny_image.WordFeatures)
