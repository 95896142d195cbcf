"""A model folder end to end: a seed decides a picture, and nothing else does."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.core.denoisers import NetworkDenoiser, NetworkFlowMap
from fewstep.core.rollouts import FewStep, FlowMapSteps
from fewstep.modalities.image.model_folder import load_codec, load_transformer
from fewstep.modalities.image.pipeline import ImageModel
from fewstep.modalities.video.noise import chunk_noise

STUDENTS = ("dmd2", "split_mean_flow", "tdm")
pytestmark = pytest.mark.usefixtures("word_features")


@pytest.fixture
def model(folder: Path) -> ImageModel:
    return ImageModel.load(folder, dtype=torch.float32)


def test_a_folder_says_what_it_makes(model: ImageModel) -> None:
    assert (model.size, model.students, model.default_prompt) == ((64, 64), STUDENTS, "a blue mug")
    assert (model.default_steps, model.teacher_steps) == (2, 3)
    assert [model.steps_available(name) for name in STUDENTS] == [(1, 2)] * 3


@pytest.mark.parametrize("student", STUDENTS)
def test_a_seed_makes_the_same_picture_whatever_is_made_beside_it(model: ImageModel, student: str) -> None:
    prompts, seeds = ["a blue mug", "a red car", "a blue mug"], [5, 6, 7]
    together = model.generate(prompts, seeds=seeds, steps=2, student=student)
    assert (together.shape, together.dtype) == ((3, 64, 64, 3), np.uint8)
    alone = [model.generate([p], seeds=[s], student=student)[0] for p, s in zip(prompts, seeds, strict=True)]
    # float32 sums of another order may move a value across the boundary between two bytes
    assert np.abs(together.astype(int) - np.stack(alone)).max() <= 1
    assert np.array_equal(together, model.generate(prompts, seeds=seeds, steps=2, student=student))
    assert not np.array_equal(together[0], together[2])  # the seed counts
    other = model.generate(["a red car"], seeds=[5], student=student)
    assert not np.array_equal(together[0], other[0])  # the prompt counts


def test_a_large_batch_is_cut_and_keeps_its_order(model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, seeds = ["a blue mug", "a red car"] * 3, list(range(6))
    whole = model.generate(prompts, seeds=seeds).astype(int)
    monkeypatch.setattr("fewstep.modalities.image.pipeline.BATCH", 4)
    assert np.abs(model.generate(prompts, seeds=seeds) - whole).max() <= 1


def test_each_student_is_rolled_out_as_it_was_distilled(model: ImageModel, folder: Path) -> None:
    features = model.encode_prompts(["a blue mug"])
    noise, fresh = (chunk_noise(9, 0, step, (4, 8, 8))[None] for step in (0, 1))
    times = (1.0, 0.6)

    def network(name: str):
        return load_transformer(folder / "students" / name).eval()

    with torch.no_grad():
        expected = {
            "dmd2": FewStep(times).rollout(
                NetworkDenoiser(network("dmd2")), noise, features, noises=lambda step: fresh
            ),
            "tdm": FewStep(times, renoise="ddim").rollout(NetworkDenoiser(network("tdm")), noise, features),
            "split_mean_flow": FlowMapSteps(times).rollout(
                NetworkFlowMap(network("split_mean_flow")), noise, features
            ),
        }
    for name, latents in expected.items():
        found = model.student_latents(features, seeds=[9], steps=2, student=name)
        torch.testing.assert_close(found, latents, atol=1e-5, rtol=1e-5)


def test_the_teacher_is_guided_and_its_last_step_ends_at_the_picture(model: ImageModel, folder: Path) -> None:
    features = model.encode_prompts(["a blue mug"])
    null = model._null_features
    noise = chunk_noise(9, 0, 0, (4, 8, 8))[None]
    network, t = load_transformer(folder / "teacher").eval(), torch.ones(1)
    with torch.no_grad():
        guided = network(noise, t, null) + 2.5 * (network(noise, t, features) - network(noise, t, null))
        expected = load_codec(folder / "codec").decode(noise - guided)
    found = model.teacher_samples(["a blue mug"], seeds=[9], num_steps=1)
    wanted = ((expected + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - wanted).max() <= 1
    unguided = model.teacher_samples(["a blue mug"], seeds=[9], num_steps=1, guidance_scale=1.0)
    assert not np.array_equal(found, unguided)


def test_known_prompts_need_no_text_encoder(model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(prompts: list[str]) -> torch.Tensor:
        raise AssertionError(prompts)

    monkeypatch.setattr(model, "_text", refuse)
    model.generate([" a  blue mug "], seeds=[0])
    model.teacher_samples(["a blue mug"], seeds=[0], num_steps=1)
    with pytest.raises(AssertionError, match="a red car"):
        model.generate(["a red car"], seeds=[0])


def test_bad_input_is_refused_with_the_remedy(model: ImageModel, folder: Path, tmp_path: Path) -> None:
    for match, settings in (
        ("steps=3: student tdm was distilled to 1, 2 steps", {"steps": 3, "student": "tdm"}),
        ("student='sit' is unknown; this model has dmd2, split_mean_flow, tdm", {"student": "sit"}),
    ):
        with pytest.raises(ValueError, match=match):
            model.generate(["a blue mug"], seeds=[0], **settings)  # pyright: ignore[reportArgumentType]
    for prompts, seeds, match in (
        (["a blue mug"], [-1], "seed=-1"),
        (["a blue mug"], [0, 1], "lists of one length"),
        ([], [], "at least 1"),
        ("a blue mug", [0] * 10, "must be lists"),
        (["  "], [0], "prompt is empty"),
        (["x" * 2001], [0], "2001 characters"),
    ):
        with pytest.raises(ValueError, match=match):
            model.generate(prompts, seeds=seeds)
    with pytest.raises(ValueError, match="num_steps=0"):
        model.teacher_samples(["a blue mug"], seeds=[0], num_steps=0)
    with pytest.raises(ValueError, match=r"no image model .* give a folder with pipeline.json"):
        ImageModel.load(tmp_path)
    with pytest.raises(ValueError, match=r"one network as training leaves it.* fewstep pack$"):
        ImageModel.load(model.folder / "teacher")


def test_the_default_student_and_steps_are_those_of_the_folder(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    card = json.loads((copy / "pipeline.json").read_text())
    (copy / "pipeline.json").write_text(json.dumps(card | {"default_student": "tdm", "default_steps": 1}))
    model = ImageModel.load(copy, dtype=torch.float32)
    explicit = model.generate(["a blue mug"], seeds=[1], student="tdm", steps=1)
    assert np.array_equal(model.generate(["a blue mug"], seeds=[1]), explicit)
    assert model.students[0] == "tdm"
