"""Folders of tiny pipelines, built once; the teachers loaded from them; one run of each real pipeline."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

NAMES = ("sd15", "sdxl", "pixart_alpha", "pixart_sigma", "sd3", "flux", "sana", "qwen_image")


@pytest.fixture(scope="session")
def tiny_pipelines() -> ModuleType:
    """``tiny_pipelines.build(name)``; a fixture, so that only these tests pay for importing diffusers."""
    from diffusers.utils import logging

    from tests.modalities.image.pretrained import tiny_pipelines

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return tiny_pipelines


@pytest.fixture(scope="session")
def folder_of(tiny_pipelines: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny pipeline, which nobody changes."""
    root = tmp_path_factory.mktemp("pipelines")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            tiny_pipelines.build(name).save_pretrained(root / name)
        return root / name

    return folder


@pytest.fixture(scope="session")
def teacher_of(folder_of: Callable[[str], Path]) -> Callable[[str], Any]:
    """The teacher from that folder, which nobody changes."""
    from fewstep.modalities.image.pretrained import load_teacher

    teachers: dict[str, Any] = {}

    def teacher(name: str) -> Any:
        if name not in teachers:
            teachers[name] = load_teacher(folder_of(name))
        return teachers[name]

    return teacher


@pytest.fixture(scope="session", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def folder(name: str, folder_of: Callable[[str], Path]) -> Path:
    return folder_of(name)


@pytest.fixture(scope="session")
def teacher(name: str, teacher_of: Callable[[str], Any]) -> Any:
    return teacher_of(name)


@pytest.fixture(scope="session")
def pipeline(folder: Path) -> Any:
    """The real pipeline, loaded by diffusers alone, with the first-order solver of its own schedule."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    loaded: Any = DiffusionPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    config = loaded.scheduler.config
    if isinstance(loaded.scheduler, DPMSolverMultistepScheduler):
        loaded.scheduler = DPMSolverMultistepScheduler.from_config(
            config, solver_order=1, final_sigmas_type="sigma_min"
        )
    elif "beta_schedule" in config:
        loaded.scheduler = DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=False)
    return loaded
