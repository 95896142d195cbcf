"""Packing: runs go in, a folder that streams comes out, and nothing but whole folders is ever left."""

from pathlib import Path

import pytest
import torch

from fewstep.core.checkpoints import Guidance, read_card
from fewstep.modalities.video.captions import all_attributes
from fewstep.modalities.video.codec import CodecConfig, VideoCodec
from fewstep.modalities.video.model_folder import save_codec, save_transformer
from fewstep.modalities.video.packing import pack_driving, steering
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer

CACHE = {"window": 9, "chunk": 3, "sink": 3, "sink_mode": "ema", "decay": 0.8}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        "fewstep.modalities.video.packing.TextEncoder",
        lambda: lambda prompts: torch.ones(len(prompts), 32, 384),
    )
    config = TransformerConfig(
        dim=24, ffn_dim=24, num_layers=1, num_heads=2, channels=2, freq_dim=8, text_dim=384
    )
    roles = {"init_args": {"cache": CACHE, "score_chunks": 4}}
    training = {"model": {"init_args": {"roles": roles}}}
    codec = VideoCodec(CodecConfig(channels=2, width=4, depth=1))
    save_codec(tmp_path / "codec", codec, training={}, metrics={})
    for name in ("teacher", "student"):
        save_transformer(
            tmp_path / name,
            VideoTransformer(config),
            training=training,
            metrics={},
            step_grids={1: [1.0], 2: [1.0, 0.75]} if name == "student" else {},
            guidance=Guidance(scale=2.5, baked=True),
        )
    return tmp_path


def pack(runs: Path, *, default_steps: int = 2) -> Path:
    folder = runs / "packed"
    pack_driving(
        folder,
        codec=runs / "codec",
        teacher=runs / "teacher",
        student=runs / "student",
        default_steps=default_steps,
        teacher_steps=50,
    )
    return folder


def test_a_packed_folder_streams_with_the_cache_and_grids_it_was_distilled_with(runs: Path) -> None:
    model = VideoModel.load(pack(runs))
    assert vars(model.cache_config) == {**CACHE, "sink_position": "moving"}
    assert model.step_grids == {1: (1.0,), 2: (1.0, 0.75)}
    assert model.card["teacher"] == {"num_steps": 50, "guidance_scale": 2.5, "clip_frames": 12, "shift": 1.0}
    stream = model.stream(model.encode_prompt(model.default_prompt))
    assert stream.step().frames.shape == (6, 96, 96, 3)


def test_weights_are_stored_in_half_precision_with_their_training(runs: Path) -> None:
    card = read_card(pack(runs) / "student")
    assert card.storage_dtype == "bfloat16"
    assert card.training == read_card(runs / "student").training


def test_packing_again_keeps_measurements_and_replaces_weights(runs: Path) -> None:
    folder = pack(runs)
    (folder / "metrics.json").write_text("[]")
    pack(runs, default_steps=1)
    assert (folder / "metrics.json").read_text() == "[]"
    assert VideoModel.load(folder).default_steps == 1


def test_a_number_of_steps_the_student_lacks_writes_nothing(runs: Path) -> None:
    with pytest.raises(ValueError, match="steps=3"):
        pack(runs, default_steps=3)
    assert not (runs / "packed").exists()


def test_a_foreign_folder_is_not_replaced(runs: Path) -> None:
    (runs / "packed").mkdir()
    (runs / "packed" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="no video model folder"):
        pack(runs)
    assert (runs / "packed" / "mine.txt").read_text() == "keep"


def test_steering_has_a_caption_for_every_combination_in_the_order_of_its_axes() -> None:
    spec = steering()
    names = [axis["name"] for axis in spec["axes"]]
    assert len(set(spec["prompts"].values())) == len(all_attributes())
    for attributes in all_attributes():
        values = attributes.as_dict()
        assert "|".join(values[name] for name in names) in spec["prompts"]
    assert set(spec["default"]) == set(names)
