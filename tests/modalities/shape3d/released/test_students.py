import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep.modalities.shape3d.networks.structure_flow import StructureFlow
from fewstep.modalities.shape3d.released.model_file import save_model_file
from fewstep.modalities.shape3d.released.pipeline import LATENT_FLOW, STRUCTURE_FLOW, ReleasedPipeline
from fewstep.modalities.shape3d.released.students import load_flow, with_students

NanoNetwork = Callable[..., nn.Module]


def test_students_take_their_teachers_places_and_are_called_once_per_step(
    tmp_path: Path, pipeline: ReleasedPipeline, nano_network: NanoNetwork
) -> None:
    torch.manual_seed(1)
    students = {STRUCTURE_FLOW: tmp_path / "ss.safetensors", LATENT_FLOW: tmp_path / "slat.json"}
    for path, kind in zip(students.values(), ("SparseStructureFlowModel", "SLatFlowModel"), strict=True):
        save_model_file(nano_network(kind), path.with_suffix(""))
    fast = with_students(pipeline, students)
    file = fast.file
    assert [s.nfe for s in (file.structure_sampling, file.latent_sampling)] == [2, 2]
    assert file.structure_sampling.times().tolist() == [1.0, 0.5, 0.0]
    assert file.structure_sampling.sigma_min == pipeline.file.structure_sampling.sigma_min
    assert file.latent_mean == pipeline.file.latent_mean
    flow, old = fast.model(STRUCTURE_FLOW), pipeline.model(STRUCTURE_FLOW)
    assert isinstance(flow, StructureFlow)
    noise, tokens = torch.randn(1, 8, 4, 4, 4), torch.randn(1, 3, 6)
    with torch.no_grad():
        # two steps of Euler with the mean velocity u: at t = 1, then at 1/2
        u = flow(noise, torch.ones(1), tokens)
        middle = noise - 0.5 * u
        expected = middle - 0.5 * flow(middle, torch.full((1,), 0.5), tokens)
        assert not torch.allclose(u, old(noise, torch.ones(1), tokens), atol=1e-3)
    made = file.structure_sampling.sample(flow, noise, tokens, null_condition=torch.zeros(1, 3, 6))
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def test_a_student_is_loaded_from_a_run_of_the_trainer(
    tmp_path: Path, pipeline: ReleasedPipeline, nano_network: NanoNetwork
) -> None:
    save_model_file(pipeline.model(STRUCTURE_FLOW), tmp_path / "teacher")
    (tmp_path / "ckpts").mkdir()
    model = json.loads((tmp_path / "teacher.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"models": {"denoiser": model}}))
    plain, averaged = nano_network("SparseStructureFlowModel"), nano_network("SparseStructureFlowModel")
    for network, name in ((plain, "denoiser"), (averaged, "denoiser_ema0.9999")):
        torch.save(network.state_dict(), tmp_path / "ckpts" / f"{name}_step0000300.pt")
    for network, name in ((plain, "denoiser"), (averaged, "denoiser_ema0.9999")):
        path = tmp_path / "ckpts" / f"{name}_step0000300.pt"
        found = with_students(pipeline, {STRUCTURE_FLOW: path}).model(STRUCTURE_FLOW)
        torch.testing.assert_close(found.state_dict(), network.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"last\.pt is not named as TRELLIS's trainers name checkpoints"):
        load_flow(tmp_path / "ckpts" / "last.pt")


def test_a_student_may_be_stored_in_other_precision_than_its_teacher(
    tmp_path: Path, pipeline: ReleasedPipeline, nano_network: NanoNetwork
) -> None:
    save_model_file(nano_network("SLatFlowModel", use_fp16=True), tmp_path / "slat")
    found = with_students(pipeline, {LATENT_FLOW: tmp_path / "slat"}).model(LATENT_FLOW)
    assert found is not pipeline.model(LATENT_FLOW)


def test_what_is_no_student_of_the_pipeline_is_refused(
    tmp_path: Path, pipeline: ReleasedPipeline, nano_network: NanoNetwork
) -> None:
    save_model_file(nano_network("SLatFlowModel"), tmp_path / "slat")
    with pytest.raises(ValueError, match=r"slat is a LatentFlow that does not fit sparse_structure_flow_mod"):
        with_students(pipeline, {STRUCTURE_FLOW: tmp_path / "slat"})
    with pytest.raises(ValueError, match="role='slat_decoder_mesh' has no student"):
        with_students(pipeline, {"slat_decoder_mesh": tmp_path / "slat"})
