"""The teacher as a sampler."""

import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fewstep.modalities.video.model_folder import load_transformer
from fewstep.modalities.video.noise import chunk_noise
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.teacher import Teacher, TeacherSettings


def test_the_teacher_takes_eulers_steps_along_the_guided_flow(tiny_model: VideoModel, tiny_video: ModuleType):
    teacher = Teacher.load(tiny_model)
    assert teacher.pixel_frames == 24
    features, null = tiny_model.encode_prompt("driving fast at night")[None], tiny_video.WordFeatures()([""])
    x = chunk_noise(7, 0, 0, (12, 4, 12, 12))[None]
    network = load_transformer(tiny_model.folder / "teacher")
    with torch.inference_mode():
        for t, t_next in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0)):
            time = torch.full((1,), t)
            unguided = network(x, time, null)
            x = x + (t_next - t) * (unguided + 2.5 * (network(x, time, features) - unguided))
    torch.testing.assert_close(teacher.sample(features, seeds=[7]), x, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(teacher.sample(features, seeds=[7], num_steps=1), x, atol=1e-2)


def test_a_model_without_a_teacher_says_so(tiny_model_folder: Path, tmp_path: Path):
    for name in ("student", "codec"):
        shutil.copytree(tiny_model_folder / name, tmp_path / name)
    shutil.copy(tiny_model_folder / "pipeline.json", tmp_path)
    with pytest.raises(ValueError, match=r"has no teacher .*pipeline\.json"):
        Teacher.load(VideoModel.load(tmp_path))


def test_teacher_settings_are_checked():
    with pytest.raises(ValueError, match="num_steps"):
        TeacherSettings(num_steps=0)
