import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoder, ImageEncoderConfig
from fewstep.modalities.shape3d.released.pipeline import (
    IMAGE_ENCODER,
    MESH_DECODER,
    ReleasedPipeline,
    load_pipeline,
)
from fewstep.modalities.shape3d.released.pipeline_json import FILE, read_pipeline, write_pipeline
from fewstep.modalities.shape3d.sampling import FlowSampling

IMAGE_LARGE = {
    "name": "TrellisImageTo3DPipeline",
    "args": {
        "models": {"slat_flow_model": "ckpts/slat_flow_img_dit_L_64l8p2_fp16"},
        "sparse_structure_sampler": {
            "name": "FlowEulerGuidanceIntervalSampler",
            "args": {"sigma_min": 1e-5},
            "params": {"steps": 25, "cfg_strength": 5.0, "cfg_interval": [0.5, 1.0], "rescale_t": 3.0},
        },
        "slat_sampler": {
            "name": "FlowEulerGuidanceIntervalSampler",
            "args": {"sigma_min": 1e-5},
            "params": {"steps": 25, "cfg_strength": 5.0, "cfg_interval": [0.5, 1.0], "rescale_t": 3.0},
        },
        "slat_normalization": {"mean": [0.5] * 8, "std": [2.0] * 8},
        "image_cond_model": "dinov2_vitl14_reg",
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / FILE).write_text(json.dumps(IMAGE_LARGE))
    return tmp_path


def test_the_file_of_the_hub_is_read_in_this_packages_terms(folder: Path) -> None:
    file = read_pipeline(folder)
    assert file.structure_sampling == FlowSampling()
    assert file.latent_sampling.guidance_scale == 6.0  # a strength of 5 is a scale of 6
    assert file.latent_std == (2.0,) * 8


def test_the_file_is_written_as_it_was_read(folder: Path) -> None:
    write_pipeline(read_pipeline(folder), folder / "again")
    assert json.loads((folder / "again" / FILE).read_text()) == IMAGE_LARGE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slat_sampler": {"name": "Heun", "params": {}}}, "sampler 'Heun'"),
        ({"slat_sampler": {"name": "FlowEulerSampler", "params": {"cfg_strength": 1}}}, "cfg_strength"),
        ({"slat_normalization": {"mean": [0.0], "std": [0.0]}}, "those of std above 0"),
        ({"slat_sampler": {"name": "FlowEulerSampler", "params": {"steps": 0}}}, "num_steps=0 must be"),
        ({"slat_sampler": {"name": "FlowEulerSampler", "params": {"steps": "many"}}}, "'many'"),
        ({"image_cond_model": None}, "lacks 'image_cond_model'"),
    ],
)
def test_what_is_not_understood_is_an_error(folder: Path, change: dict[str, object], message: str) -> None:
    arguments = {key: value for key, value in {**IMAGE_LARGE["args"], **change}.items() if value is not None}
    (folder / FILE).write_text(json.dumps({**IMAGE_LARGE, "args": arguments}))
    with pytest.raises(ValueError, match=message):
        read_pipeline(folder)


def test_another_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not the folder of a TRELLIS pipeline"):
        read_pipeline(tmp_path)


def test_a_pipeline_generates_the_same_after_a_round_trip(tmp_path: Path, pipeline: ReleasedPipeline) -> None:
    pipeline.save(tmp_path)
    again = load_pipeline(tmp_path)
    assert again.file == pipeline.file
    condition, null = torch.randn(2, 3, 6), torch.zeros(2, 3, 6)
    made = []
    for each in (pipeline, again):
        generator = torch.Generator().manual_seed(3)
        voxels = each.structure(condition, null, generator=generator)
        latents = each.latents(voxels, condition, null, generator=generator)
        made.append((voxels.coords, latents.feats, each.decode(latents).feats))
    for one, other in zip(*made, strict=True):
        assert torch.equal(one, other)
    assert made[0][2].shape == (64 * len(made[0][0]), 101)


def test_latents_leave_with_the_mean_and_deviation_of_the_file(pipeline: ReleasedPipeline) -> None:
    flow = pipeline.models["slat_flow_model"]
    for parameter in flow.parameters():
        torch.nn.init.zeros_(parameter.data)  # a flow that moves nothing gives its noise back
    condition, null = torch.randn(1, 3, 6), torch.zeros(1, 3, 6)
    voxels = pipeline.structure(condition, null, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(len(voxels), 8, generator=torch.Generator().manual_seed(4))
    latents = pipeline.latents(voxels, condition, null, generator=torch.Generator().manual_seed(4)).feats
    expected = noise * torch.tensor(pipeline.file.latent_std) + torch.tensor(pipeline.file.latent_mean)
    torch.testing.assert_close(latents, expected)


def test_an_object_without_voxels_is_an_error(pipeline: ReleasedPipeline) -> None:
    decoder = pipeline.models["sparse_structure_decoder"]
    torch.nn.init.constant_(decoder.get_parameter("out_layer.2.bias").data, -100.0)
    with pytest.raises(ValueError, match=r"objects \[0\] came out without an active voxel"):
        pipeline.structure(torch.randn(1, 3, 6), torch.zeros(1, 3, 6))


def test_tokens_of_another_encoder_are_an_error(pipeline: ReleasedPipeline) -> None:
    with pytest.raises(ValueError, match=r"tokens of 5 channels, the flow takes 6; .* dinov2_vitl14_reg"):
        pipeline.structure(torch.randn(1, 3, 5), torch.zeros(1, 3, 5))


def test_only_what_is_asked_for_is_loaded(tmp_path: Path, pipeline: ReleasedPipeline) -> None:
    pipeline.save(tmp_path)
    (tmp_path / "ckpts" / "slat_decoder_mesh_nano.safetensors").unlink()
    loaded = load_pipeline(tmp_path, roles=["slat_flow_model"])
    with pytest.raises(ValueError, match="role='slat_decoder_mesh' was not loaded"):
        loaded.model(MESH_DECODER)
    with pytest.raises(ValueError, match=r"roles=\['slat_decoder_gs'\] are not in"):
        load_pipeline(tmp_path, roles=["slat_decoder_gs"])


def test_a_pipeline_may_bring_its_own_image_encoder(tmp_path: Path, pipeline: ReleasedPipeline) -> None:
    encoder = ImageEncoder(ImageEncoderConfig(image_size=16, channels=6, num_blocks=1, num_heads=2)).eval()
    file = replace(pipeline.file, condition_model="fewstep:ckpts/image_cond_nano")
    ReleasedPipeline(file, {**pipeline.models, IMAGE_ENCODER: encoder}).save(tmp_path)
    again = load_pipeline(tmp_path)
    pictures = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.tokens(pictures), encoder(pictures))


def test_decoders_may_lie_in_another_repositorys_folder(tmp_path: Path, pipeline: ReleasedPipeline) -> None:
    """As those of TRELLIS's pipelines from text do, see the files of microsoft/TRELLIS-text-base."""
    role = "slat_decoder_mesh"
    shared = "JeffreyXiang/TRELLIS-image-large/ckpts/decoder"
    file = replace(pipeline.file, models={**pipeline.file.models, role: shared})
    ReleasedPipeline(file, pipeline.models).save(tmp_path / "text")
    (tmp_path / "text" / "JeffreyXiang" / "TRELLIS-image-large").rename(tmp_path / "TRELLIS-image-large")
    found = load_pipeline(tmp_path / "text").model(role).state_dict()
    torch.testing.assert_close(found, pipeline.model(role).state_dict(), rtol=0, atol=0)


def test_an_encoder_that_is_elsewhere_has_to_be_loaded_by_itself(pipeline: ReleasedPipeline) -> None:
    with pytest.raises(
        ValueError, match=r"'dinov2_vitl14_reg', which is not in its folder; load it by itself"
    ):
        pipeline.tokens(torch.rand(1, 3, 16, 16))
