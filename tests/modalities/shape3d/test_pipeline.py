"""The bundled model as it is loaded for use."""

from importlib.resources import as_file, files

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial import KDTree

from fewstep.modalities.objects.scene import numbered_scene, render
from fewstep.modalities.shape3d.pipeline import PRESETS, MeshModel
from fewstep.modalities.shape3d.released.pipeline import MESH_DECODER, load_pipeline
from fewstep.modalities.shape3d.surface.decoded import extracted

CELL = 1 / 64


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(render(numbered_scene(3, split="heldout")))


def test_decoders_in_half_precision_leave_the_surface_where_it_is(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewstep.modalities.shape3d.pipeline.fast_dtype", lambda device: torch.bfloat16)
    model = MeshModel.load("objects")
    latents = model.latents(picture, seed=0)
    rounded = extracted(model.pipeline.decode(latents))[0]
    with as_file(files(PRESETS)) as presets:
        exact = load_pipeline(presets / "objects", roles=[MESH_DECODER])
    expected = extracted(exact.decode(latents))[0]
    assert not np.array_equal(rounded.vertices, expected.vertices)  # or nothing was rounded
    near, _ = KDTree(expected.vertices).query(rounded.vertices)
    assert near.mean() < 0.02 * CELL
    assert np.quantile(near, 0.99) < 0.2 * CELL
    assert len(rounded.faces) == pytest.approx(len(expected.faces), rel=0.01)


def test_flows_are_not_rounded_and_without_fast_products_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def formats(role: str) -> set[torch.dtype]:
        return {weight.dtype for weight in MeshModel.load("objects").pipeline.model(role).parameters()}

    for fast in (torch.bfloat16, torch.float32):
        monkeypatch.setattr("fewstep.modalities.shape3d.pipeline.fast_dtype", lambda device, fast=fast: fast)
        assert formats("slat_flow_model") == {torch.float32}
        assert formats(MESH_DECODER) == {torch.float32, fast}


def test_a_device_that_is_not_there_is_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^no device 'nowhere' here \(.*\); `fewstep doctor` lists devices$"
    ):
        MeshModel.load("objects", device="nowhere")
