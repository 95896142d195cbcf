"""Packing: runs go in, a folder in TRELLIS's format comes out, and nothing but whole folders is ever left."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fewstep.apps.cli import main
from fewstep.core.checkpoints import Guidance
from fewstep.modalities.shape3d.conditioning.sources import small_pictures
from fewstep.modalities.shape3d.model_folder import load_as, save_network
from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoder, ImageEncoderConfig
from fewstep.modalities.shape3d.networks.latent_flow import LatentFlowConfig
from fewstep.modalities.shape3d.networks.latent_vae import (
    LatentEncoder,
    LatentEncoderConfig,
    MeshDecoder,
    MeshDecoderConfig,
)
from fewstep.modalities.shape3d.networks.structure_flow import StructureFlow, StructureFlowConfig
from fewstep.modalities.shape3d.networks.structure_vae import StructureDecoder, StructureDecoderConfig
from fewstep.modalities.shape3d.packing import step_grids
from fewstep.modalities.shape3d.pipeline import MeshModel
from fewstep.modalities.shape3d.stages import LatentStage, Stage, StructureStage

R = 8
FLOW: dict[str, Any] = {"cond_channels": 16, "model_channels": 24, "num_blocks": 1, "num_heads": 2}
GRIDS = {1: [1.0], 2: [1.0, 0.5]}
PLAIN: dict[str, Any] = {"training": {}, "metrics": {}}


def distilled(interval: list[float] | None = None, renoise: str = "ddim") -> dict[str, Any]:
    roles = {"init_args": {"guidance_interval": interval, "renoise": renoise}}
    return {"model": {"init_args": {"roles": roles}}}


def roughened(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter.data, std=0.1)
    return network


def save_student(stage: Stage, folder: Path, training: dict[str, Any], **options: Any) -> None:
    roughened(stage.flow)
    settings: dict[str, Any] = {"step_grids": GRIDS, "guidance": Guidance(scale=3.0, baked=True)}
    stage.save(folder, training=training, metrics={"val/x": 1.0}, **{**settings, **options})


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """`runs/NAME/model` for each network, as training leaves them."""
    torch.manual_seed(0)
    root = tmp_path / "runs"
    sizes: dict[str, Any] = {"resolution": R, "num_blocks": 1, "num_heads": 2, "window_size": 4}
    decoder = StructureDecoder(StructureDecoderConfig(channels=(8, 4), num_res_blocks=1))
    save_network(root / "structure_vae/model/decoder", roughened(decoder), **PLAIN)
    meshes = MeshDecoder(MeshDecoderConfig(model_channels=256, **sizes))
    save_network(root / "latent_vae_squeezed/model/decoder", roughened(meshes), **PLAIN)
    encoder = LatentEncoder(LatentEncoderConfig(model_channels=24, in_channels=18, **sizes))
    save_network(root / "latent_vae_squeezed/model/encoder", encoder, **PLAIN)
    pictures = ImageEncoderConfig(image_size=16, channels=16, num_blocks=1, num_heads=2)
    structure = StructureStage(StructureFlowConfig(resolution=4, **FLOW), pictures)
    structure.save(root / "structure_flow/model", **PLAIN)
    save_student(structure, root / "structure_vm/model", distilled([0.5, 1.0]))
    save_student(structure, root / "structure_vd/model", distilled([0.5, 1.0]))
    latent = LatentStage(
        LatentFlowConfig(resolution=R, io_block_channels=(8,), **FLOW),
        str(root / "structure_flow/model"),
        R,
    )
    roughened(latent.image_encoder)
    latent.normalization = ([0.25] * 8, [1.5] * 8)
    latent.save(root / "latent_flow/model", **PLAIN)
    save_student(latent, root / "latent_vm/model", distilled())
    Image.new("RGB", (40, 30), (200, 30, 30)).save(root / "structure_vd" / "curves.png")
    return root


def packed(runs: Path, *options: str) -> int:
    out = runs.parent / "packed"
    return main(["pack", "--world", "shapes", "--runs", str(runs), "-o", str(out), *options])


@pytest.fixture
def folder(runs: Path) -> Path:
    assert packed(runs) == 0
    return runs.parent / "packed"


def flow_weight(model: MeshModel) -> torch.Tensor:
    return model.pipeline.model("sparse_structure_flow_model").get_parameter("input_layer.weight")


def picture() -> Image.Image:
    return Image.fromarray(np.full((16, 16, 3), 90, np.uint8))


def test_student_and_teacher_are_sampled_as_they_were_distilled(folder: Path, runs: Path) -> None:
    student, teacher = MeshModel.load(str(folder)), MeshModel.load(str(folder), teacher=True)
    assert (student.steps, teacher.steps) == ((2, 2), (25, 25))
    for sampling in (student.pipeline.file.structure_sampling, student.pipeline.file.latent_sampling):
        assert (sampling.guidance_scale, sampling.sigma_min) == (1.0, 0.0)
        assert sampling.times().tolist() == [1.0, 0.5, 0.0]
    file = teacher.pipeline.file
    assert (file.structure_sampling.guidance_scale, file.latent_sampling.guidance_scale) == (3.0, 3.0)
    assert (file.structure_sampling.interval, file.latent_sampling.interval) == ((0.5, 1.0), None)
    assert (file.latent_mean, file.latent_std) == ((0.25,) * 8, (1.5,) * 8)
    made = next(student.generate([picture()], seeds=[0], steps=(1, 2)))
    assert made.nfe == (1, 2)
    # 19 of 25 times of the shifted grid lie in the interval
    assert next(teacher.generate([picture()], seeds=[0])).nfe == (44, 50)


def test_the_last_phase_is_the_student_unless_another_is_asked_for(folder: Path, runs: Path) -> None:
    def weight(run: str) -> torch.Tensor:
        return load_as(StructureFlow, runs / run / "model" / "flow").get_parameter("input_layer.weight")

    close: Any = {"atol": 1e-3, "rtol": 1e-3}  # half precision
    torch.testing.assert_close(flow_weight(MeshModel.load(str(folder))), weight("structure_vd"), **close)
    teacher = MeshModel.load(str(folder), teacher=True)
    torch.testing.assert_close(flow_weight(teacher), weight("structure_flow"), **close)
    assert packed(runs, "--student", "vm", "--steps", "1x2") == 0
    again = MeshModel.load(str(folder))
    torch.testing.assert_close(flow_weight(again), weight("structure_vm"), **close)
    assert again.steps == (1, 2)


@pytest.mark.parametrize("teacher", [False, True])
def test_each_stage_sees_through_the_encoder_that_learned_with_it(
    folder: Path, runs: Path, teacher: bool
) -> None:
    model = MeshModel.load(str(folder), teacher=teacher)
    assert model.latent_conditioning is not None
    found = []
    for conditioning, run in (
        (model.conditioning, "structure_flow"),
        (model.latent_conditioning, "latent_flow"),
    ):
        encoder = load_as(ImageEncoder, runs / run / "model" / "image_encoder")
        with torch.no_grad():
            tokens, seen = small_pictures(encoder).tokens([picture()]), conditioning.tokens([picture()])
        torch.testing.assert_close(seen, tokens, atol=2e-2, rtol=0.0)  # half precision
        found.append(seen)
    assert not torch.allclose(*found, atol=0.1)


def test_decoders_and_encoders_are_stored_once_in_half_precision(folder: Path) -> None:
    from safetensors.torch import load_file

    stored = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))
    assert stored == [
        "ckpts/image_cond_small.safetensors",
        "ckpts/slat_dec_mesh_small.safetensors",
        "ckpts/slat_flow_img_dit_small.safetensors",
        "ckpts/slat_image_cond_small.safetensors",
        "ckpts/ss_dec_conv3d_small.safetensors",
        "ckpts/ss_flow_img_dit_small.safetensors",
        "teacher/ckpts/slat_flow_img_dit_small.safetensors",
        "teacher/ckpts/ss_flow_img_dit_small.safetensors",
    ]
    for name in stored:
        assert {value.dtype for value in load_file(folder / name).values()} == {torch.float16}
        assert (folder / name).stat().st_mode & 0o044 == 0o044  # everybody may read them


def test_what_is_known_of_the_runs_stays_beside_the_weights(folder: Path) -> None:
    with Image.open(folder / "training" / "structure_vd.png") as curves:
        assert (curves.mode, curves.size) == ("P", (40, 30))
    record = json.loads((folder / "training" / "latent_student.json").read_text())
    assert record["metrics"] == {"val/x": 1.0}
    assert record["training"] == distilled()
    assert step_grids(folder)["structure_student"] == {"1": [1.0], "2": [1.0, 0.5]}


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_packing_again_keeps_measurements_and_a_failure_keeps_everything(
    folder: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "metrics").mkdir()
    (folder / "metrics" / "eval.json").write_text("[]")
    assert packed(runs) == 0
    before = contents(folder)
    assert "metrics/eval.json" in before
    weights = runs / "latent_flow" / "model" / "flow" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert packed(runs) == 2
    assert "latent_flow" in capsys.readouterr().err
    assert contents(folder) == before
    assert sorted(path.name for path in runs.parent.iterdir()) == ["packed", "runs"]


def other_encoder(runs: Path) -> None:
    pictures = ImageEncoderConfig(image_size=16, channels=16, num_blocks=1, num_heads=2)
    stage = StructureStage(StructureFlowConfig(resolution=4, **FLOW), pictures)
    save_student(stage, runs / "structure_vd" / "model", distilled())


def again(runs: Path, *, training: dict[str, Any], **options: Any) -> None:
    stage = StructureStage(str(runs / "structure_flow" / "model"))
    save_student(stage, runs / "structure_vd" / "model", training, **options)


def no_students(runs: Path) -> None:
    for name in ("structure_vm", "structure_vd"):
        (runs / name).rename(runs / f"was_{name}")


def other_grid(runs: Path) -> None:
    again(runs, training=distilled(), step_grids={2: [1.0, 0.5], 4: [1.0, 0.7, 0.5, 0.2]})


def other_latents(runs: Path) -> None:
    (runs / "latent_vm/model/normalization.json").write_text(
        json.dumps({"mean": [0.0] * 8, "std": [1.0] * 8})
    )


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda _: None, ["--steps", "3x2"], "num_steps=3 is not a step grid of this model"),
        (no_students, [], "has no student of the structure"),
        (other_encoder, [], "structure_student saw pictures by another image encoder"),
        (lambda runs: again(runs, training=distilled(renoise="fresh")), [], "renoise='fresh'"),
        (lambda runs: again(runs, training={}), [], "does not say how it was distilled"),
        (lambda runs: again(runs, training=distilled(), guidance=Guidance()), [], "is no student"),
        (other_grid, [], "is no shifted even grid"),
        (other_latents, [], "other normalisations"),
    ],
)
def test_what_cannot_be_packed_is_said_in_one_line_and_writes_nothing(
    runs: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    options: list[str],
    message: str,
) -> None:
    spoil(runs)
    assert packed(runs, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (runs.parent / "packed").exists()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"channels": (8, 4, 4)}, "voxels per axis differ: 16, 8, 8"),
        ({"channels": (8, 4), "latent_channels": 6}, "channels of the structure differ: 8, 6"),
    ],
)
def test_networks_that_do_not_fit_each_other_are_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], sizes: dict[str, Any], message: str
) -> None:
    decoder = StructureDecoder(StructureDecoderConfig(num_res_blocks=1, **sizes))
    save_network(runs / "structure_vae/model/decoder", decoder, **PLAIN)
    assert packed(runs) == 2
    assert message in capsys.readouterr().err


def decoder_alone(runs: Path, encoder: LatentEncoder) -> MeshDecoder:
    """A run that trained another decoder on an encoder's latents."""
    sizes: dict[str, Any] = {"resolution": R, "num_blocks": 1, "num_heads": 2, "window_size": 4}
    decoder = roughened(MeshDecoder(MeshDecoderConfig(model_channels=32, **sizes)))
    assert isinstance(decoder, MeshDecoder)
    save_network(runs / "latent_decoder/model/encoder", encoder, **PLAIN)
    save_network(runs / "latent_decoder/model/decoder", decoder, **PLAIN)
    return decoder


def test_a_decoder_trained_alone_takes_the_place_of_the_autoencoders_own(runs: Path) -> None:
    decoder = decoder_alone(runs, load_as(LatentEncoder, runs / "latent_vae_squeezed/model/encoder"))
    assert packed(runs) == 0
    folder = runs.parent / "packed"
    for teacher in (False, True):
        model = MeshModel.load(str(folder), teacher=teacher)
        stored = model.pipeline.model("slat_decoder_mesh").get_parameter("input_layer.weight")
        torch.testing.assert_close(stored, decoder.input_layer.weight, atol=1e-3, rtol=1e-3)
        assert len(next(model.generate([picture()], seeds=[0], steps=(1, 1))).mesh.faces)
    assert {"latent_vae.json", "latent_decoder.json"} <= {
        path.name for path in (folder / "training").iterdir()
    }


def test_a_decoder_of_other_latents_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = roughened(load_as(LatentEncoder, runs / "latent_vae_squeezed/model/encoder"))
    assert isinstance(other, LatentEncoder)
    decoder_alone(runs, other)
    assert packed(runs) == 2
    assert "latent_decoder was trained on another encoder's latents" in capsys.readouterr().err
    assert not (runs.parent / "packed").exists()


def test_a_folder_of_something_else_is_spared(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs.parent / "packed").mkdir()
    (runs.parent / "packed" / "thesis.txt").write_text("years of work")
    assert packed(runs) == 2
    assert "exists and has no pipeline.json" in capsys.readouterr().err
    assert contents(runs.parent / "packed").keys() == {"thesis.txt"}


def test_a_shifted_grid_keeps_its_times(runs: Path) -> None:
    again(runs, training=distilled(), step_grids={1: [1.0], 2: [1.0, 0.75], 3: [1.0, 6 / 7, 0.6]})
    assert packed(runs, "--steps", "3x1") == 0
    sampling = MeshModel.load(str(runs.parent / "packed")).pipeline.file.structure_sampling
    assert sampling.times().tolist() == pytest.approx([1.0, 6 / 7, 0.6, 0.0])
