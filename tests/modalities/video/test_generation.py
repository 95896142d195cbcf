import numpy as np
import pytest
import torch

from fewstep.core.frechet import Moments
from fewstep.modalities.video.captions import MANOEUVRES, PALETTES, SPEEDS, all_attributes, phrases
from fewstep.modalities.video.evaluation import SAMPLE_FRAMES, Expected, Reference
from fewstep.modalities.video.generation import (
    DRIFT_FRAMES,
    LATE_FRAMES,
    Script,
    balanced_attributes,
    draw_scripts,
    first_samples,
    generate_clips,
    generate_streams,
    long_run,
    segment_chunks,
    switched_samples,
)
from fewstep.modalities.video.metrics import REACTION_FRAMES, FrameStatistics, drift, motion
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.stream_batch import StreamBatch
from fewstep.modalities.video.teacher import Teacher


@pytest.fixture
def scripts(tiny_model: VideoModel) -> list[Script]:
    return draw_scripts(tiny_model, balanced_attributes(4), split="train", segments=2, seed=5)


def statistics() -> FrameStatistics:
    """Any real statistics: what matters below is that frames are compared with them."""
    return FrameStatistics(
        {name: np.full(8, 60.0 + 10 * index) for index, name in enumerate(PALETTES)},
        {name: np.full(8, 9.0) for name in PALETTES},
    )


def reference() -> Reference:
    expected = Expected(offset=0.0, spread=1.0, speed=3.0, samples=1)
    return Reference(
        expected={"centre|slow|meadow": expected},
        moments=Moments(np.zeros(99), np.eye(99)),
        statistics=statistics(),
        floor={},
        source="nothing",
    )


@pytest.mark.parametrize("count", [4, 8, 16, 32])
def test_balanced_combinations_show_every_world_and_manoeuvre_equally_often(count: int):
    combinations = balanced_attributes(count)
    for name, values in (("palette", PALETTES), ("manoeuvre", MANOEUVRES), ("speed", SPEEDS)):
        shown = [getattr(one, name) for one in combinations]
        assert {shown.count(value) for value in values} == {count // len(values)}


def test_scripts_change_everything_at_a_switch_and_keep_to_their_split(tiny_model: VideoModel):
    scripts = draw_scripts(tiny_model, all_attributes(), split="heldout", segments=2, seed=0)
    assert len({script.seed for script in scripts}) == 32
    for script in scripts:
        before, after = (one.as_dict() for one in script.attributes)
        assert all(before[name] != after[name] for name in before)
        assert not any(phrase in script.captions[0] for phrase in phrases("train") if len(phrase) > 12)
    assert {script.attributes[1] for script in scripts} == set(all_attributes())


def test_samples_are_the_first_frames_and_the_settled_ends_of_segments(
    tiny_model: VideoModel, scripts: list[Script]
):
    length = segment_chunks(tiny_model) * tiny_model.chunk_frames
    assert length >= REACTION_FRAMES + SAMPLE_FRAMES
    videos = np.zeros((4, 2 * length, 96, 96, 3), np.uint8)
    videos[:] = np.arange(2 * length, dtype=np.uint8)[None, :, None, None, None]
    first, switched = first_samples(videos, scripts), switched_samples(videos, scripts)
    assert [sample.attributes for sample in first] == [script.attributes[0] for script in scripts]
    assert [sample.attributes for sample in switched] == [script.attributes[1] for script in scripts]
    assert first[0].frames[:, 0, 0, 0].tolist() == list(range(SAMPLE_FRAMES))
    assert switched[0].frames[:, 0, 0, 0].tolist() == list(range(2 * length - SAMPLE_FRAMES, 2 * length))


def test_generated_streams_switch_prompts_between_segments(tiny_model: VideoModel, scripts: list[Script]):
    count = 0

    def progress(frames: int) -> None:
        nonlocal count
        count += frames

    videos = generate_streams(tiny_model, scripts[:2], steps=1, progress=progress)
    length = segment_chunks(tiny_model) * tiny_model.chunk_frames
    assert videos.shape == (2, 2 * length, 96, 96, 3)
    assert count == 2 * 2 * length
    stream = tiny_model.stream(scripts[1].features[0], seed=scripts[1].seed, steps=1)
    frames = [stream.step().frames for _ in range(segment_chunks(tiny_model))]
    stream.set_prompt(scripts[1].features[1])
    frames += [stream.step().frames for _ in range(segment_chunks(tiny_model))]
    # Rounding to bytes; float32 sums of another order.
    assert np.abs(np.concatenate(frames).astype(int) - videos[1]).max() <= 1


def test_clips_of_the_teacher_come_one_per_script(tiny_model: VideoModel, scripts: list[Script]):
    teacher = Teacher.load(tiny_model)
    clips = generate_clips(teacher, scripts, num_steps=2)
    alone = teacher.decode(teacher.sample(scripts[3].features[:1], seeds=[scripts[3].seed], num_steps=2))
    assert clips.shape == (4, 24, 96, 96, 3)
    assert np.abs(clips[3].astype(int) - alone[0]).max() <= 1


def test_a_long_run_keeps_what_the_whole_video_would_give(tiny_model: VideoModel, scripts: list[Script]):
    frames, two = 2 * DRIFT_FRAMES + 9, scripts[:2]
    result = long_run(tiny_model, two, reference(), steps=1, sink_mode="first", frames=frames, snapshots=3)
    features = torch.stack([script.features[0] for script in two])
    batch = StreamBatch(
        tiny_model, features, seeds=[script.seed for script in two], steps=1, sink_mode="first"
    )
    whole = np.concatenate([batch.step() for _ in range(-(-frames // 6))], axis=1)[:, :frames]
    worlds = [[script.attributes[0].palette] * frames for script in two]
    distances = [statistics().distance(video, names) for video, names in zip(whole, worlds, strict=True)]
    assert result.drift == pytest.approx(np.mean([drift(one, window=DRIFT_FRAMES) for one in distances]))
    assert result.frame_distance == pytest.approx(np.mean([one[-DRIFT_FRAMES:].mean() for one in distances]))
    assert result.motion == pytest.approx(np.mean([motion(video).mean() for video in whole]))
    assert list(result.snapshots) == [0, 64, 128]
    np.testing.assert_array_equal(result.snapshots[64], whole[:, 64])
    late = np.concatenate([sample.frames for sample in result.late[: LATE_FRAMES // SAMPLE_FRAMES]])
    np.testing.assert_array_equal(late, whole[0, -LATE_FRAMES:])


def test_a_run_too_short_for_drift_is_refused(tiny_model: VideoModel, scripts: list[Script]):
    with pytest.raises(ValueError, match="frames=119 is too short for drift; use at least 120"):
        long_run(tiny_model, scripts, reference(), steps=1, sink_mode="ema", frames=119)
