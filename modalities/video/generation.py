"""Video generated for scoring: prompts of known meaning in, samples and long streams out."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep.modalities.video.cache import SinkMode
from fewstep.modalities.video.captions import (
    MANOEUVRES,
    PALETTES,
    SPEEDS,
    Attributes,
    Split,
    draw_captions,
)
from fewstep.modalities.video.evaluation import SAMPLE_FRAMES, Reference, Sample
from fewstep.modalities.video.metrics import REACTION_FRAMES, drift, motion
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.stream_batch import StreamBatch
from fewstep.modalities.video.teacher import Teacher

Videos = UInt8[np.ndarray, " batch frame height width 3"]
Progress = Callable[[int], None]
"""Called with the number of pixel frames just generated."""

BATCH = 16  # streams at once: wide enough for the processor, small enough for its caches
TEACHER_BATCH = 4
SWITCH_STRIDE = 13  # coprime to the number of combinations, and changes all three attributes at a switch
DRIFT_FRAMES = 60  # at each end of a long stream
LATE_FRAMES = 2 * SAMPLE_FRAMES


@dataclass(frozen=True, kw_only=True)
class Script:
    """One stream to generate: its seed, and for each segment the attributes asked for and how."""

    seed: int
    attributes: tuple[Attributes, ...]
    captions: tuple[str, ...]
    features: Float[Tensor, " segment text feature"]


def balanced_attributes(count: int) -> list[Attributes]:
    """`count` combinations (a multiple of 4) in which every palette and manoeuvre is equally frequent."""
    return [
        Attributes(
            palette=PALETTES[index % 4],
            manoeuvre=MANOEUVRES[(index + 2 * (index // 4)) % 4],
            speed=SPEEDS[(index + index // 4) % 2],
        )
        for index in range(count)
    ]


def draw_scripts(
    model: VideoModel, combinations: Sequence[Attributes], *, split: Split, segments: int, seed: int
) -> list[Script]:
    """A script that starts from each of `combinations` and then moves through others, in random phrasings."""
    random, scripts = Random(f"{split} {seed}"), []
    for index in range(len(combinations)):
        numbers = [(index + SWITCH_STRIDE * segment) % len(combinations) for segment in range(segments)]
        attributes = tuple(combinations[number] for number in numbers)
        captions = tuple(draw_captions(one, 1, random, split=split)[0] for one in attributes)
        features = torch.stack([model.encode_prompt(caption) for caption in captions])
        scripts.append(
            Script(seed=random.getrandbits(62), attributes=attributes, captions=captions, features=features)
        )
    return scripts


def segment_chunks(model: VideoModel) -> int:
    """Chunks per segment: time to react, and a sample."""
    return math.ceil((REACTION_FRAMES + SAMPLE_FRAMES) / model.chunk_frames)


def generate_streams(
    model: VideoModel,
    scripts: Sequence[Script],
    *,
    steps: int,
    sink_mode: SinkMode | None = None,
    progress: Progress | None = None,
) -> Videos:
    """The streams of all scripts, every segment `segment_chunks` long."""
    videos = []
    for group in _groups(scripts, BATCH):
        features = torch.stack([script.features for script in group])
        batch = StreamBatch(
            model,
            features[:, 0],
            seeds=[script.seed for script in group],
            steps=steps,
            sink_mode=sink_mode,
        )
        chunks = []
        for segment in range(features.shape[1]):
            batch.set_prompts(features[:, segment])
            for _ in range(segment_chunks(model)):
                chunks.append(batch.step())
                _report(progress, chunks[-1])
        videos.append(np.concatenate(chunks, axis=1))
    return np.concatenate(videos)


def first_samples(videos: Videos, scripts: Sequence[Script]) -> list[Sample]:
    """What each stream (or clip) shows first."""
    return [
        Sample(frames=video[:SAMPLE_FRAMES], attributes=script.attributes[0])
        for video, script in zip(videos, scripts, strict=True)
    ]


def switched_samples(videos: Videos, scripts: Sequence[Script]) -> list[Sample]:
    """The ends of all segments but the first: other prompts than those the stream began with."""
    samples = []
    for video, script in zip(videos, scripts, strict=True):
        length = video.shape[0] // len(script.attributes)
        for segment, attributes in enumerate(script.attributes[1:], start=1):
            end = (segment + 1) * length
            samples.append(Sample(frames=video[end - SAMPLE_FRAMES : end], attributes=attributes))
    return samples


def generate_clips(
    teacher: Teacher, scripts: Sequence[Script], *, num_steps: int, progress: Progress | None = None
) -> Videos:
    """The teacher's clips under the first prompts of the scripts."""
    if teacher.pixel_frames < SAMPLE_FRAMES:
        raise ValueError(
            f"the teacher's clips have {teacher.pixel_frames} frames; a sample has {SAMPLE_FRAMES}"
        )
    clips = []
    for group in _groups(scripts, TEACHER_BATCH):
        features = torch.stack([script.features[0] for script in group])
        latents = teacher.sample(features, seeds=[script.seed for script in group], num_steps=num_steps)
        clips.append(teacher.decode(latents))
        _report(progress, clips[-1])
    return np.concatenate(clips)


@dataclass(frozen=True, kw_only=True)
class LongRun:
    """What is kept of long streams under prompts that never change.

    `drift` and `frame_distance` (of the last frames) are in standard deviations of real frames' statistics,
    means over streams, `drift_error` is the standard error of that mean; `motion` is that of all frames;
    `late` are the samples at the end; `snapshots` are single frames by frame number.
    """

    drift: float
    drift_error: float
    frame_distance: float
    motion: float
    late: list[Sample]
    snapshots: dict[int, UInt8[np.ndarray, " stream height width 3"]]


def long_run(
    model: VideoModel,
    scripts: Sequence[Script],
    reference: Reference,
    *,
    steps: int,
    sink_mode: SinkMode,
    decay: float | None = None,
    frames: int,
    snapshots: int = 9,
    progress: Progress | None = None,
) -> LongRun:
    """Streams of `frames` frames under each script's first prompt, in memory that does not grow with them."""
    if frames < 2 * DRIFT_FRAMES:
        raise ValueError(f"frames={frames} is too short for drift; use at least {2 * DRIFT_FRAMES}")
    features = torch.stack([script.features[0] for script in scripts])
    seeds = [script.seed for script in scripts]
    batch = StreamBatch(model, features, seeds=seeds, steps=steps, sink_mode=sink_mode, decay=decay)
    wanted = {round(frame) for frame in np.linspace(0, frames - 1, snapshots)}
    head: list[np.ndarray] = []
    tail: deque[np.ndarray] = deque(maxlen=max(DRIFT_FRAMES, LATE_FRAMES))
    kept, motions, count = {}, [], 0
    while count < frames:
        chunk = batch.step()[:, : frames - count]
        for offset, frame in enumerate(chunk.swapaxes(0, 1)):
            if count + offset in wanted:
                kept[count + offset] = frame.copy()
            if len(head) < DRIFT_FRAMES:
                head.append(frame)
            if tail:
                motions.append(np.mean([motion(pair)[0] for pair in np.stack([tail[-1], frame], axis=1)]))
            tail.append(frame)
        count += chunk.shape[1]
        _report(progress, chunk)
    first, last = np.stack(head, axis=1), np.stack(list(tail)[-DRIFT_FRAMES:], axis=1)
    drifts, distances = [], []
    for begin, end, script in zip(first, last, scripts, strict=True):
        worlds = [script.attributes[0].palette] * (2 * DRIFT_FRAMES)
        distance = reference.statistics.distance(np.concatenate([begin, end]), worlds)
        drifts.append(drift(distance, window=DRIFT_FRAMES))
        distances.append(distance[DRIFT_FRAMES:].mean())
    late = np.stack(list(tail)[-LATE_FRAMES:], axis=1)
    return LongRun(
        drift=float(np.mean(drifts)),
        drift_error=float(np.std(drifts, ddof=1) / len(drifts) ** 0.5) if len(drifts) > 1 else float("nan"),
        frame_distance=float(np.mean(distances)),
        motion=float(np.mean(motions)),
        late=[
            Sample(frames=video[start : start + SAMPLE_FRAMES], attributes=script.attributes[0])
            for video, script in zip(late, scripts, strict=True)
            for start in range(0, LATE_FRAMES, SAMPLE_FRAMES)
        ],
        snapshots=kept,
    )


def _groups(scripts: Sequence[Script], size: int) -> list[Sequence[Script]]:
    return [scripts[start : start + size] for start in range(0, len(scripts), size)]


def _report(progress: Progress | None, frames: np.ndarray) -> None:
    if progress is not None:
        progress(frames.shape[0] * frames.shape[1])
