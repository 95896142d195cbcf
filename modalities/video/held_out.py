"""Real driving video to compare with: rendered on tracks that training never saw, or read from a folder."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from fewstep.modalities.video.captions import PALETTES, Attributes, all_attributes
from fewstep.modalities.video.data import load_clips
from fewstep.modalities.video.driving import FPS, IMAGE_SIZE, DrivingWorld
from fewstep.modalities.video.evaluation import (
    SAMPLE_FRAMES,
    Reference,
    Sample,
    appearance,
    measure,
    obedience,
)
from fewstep.modalities.video.files import decode_video, write_video
from fewstep.modalities.video.metrics import REACTION_FRAMES, Frames, drift

FIRST_SEED = 1_800_000_001  # odd, as `fewstep render --split val` counts, and far from its smaller seeds
ATTEMPTS = 20
DRIVES = 4
SAMPLES_PER_DRIVE = 4
LONG_FRAMES = 2000


def rendered_samples(drives: int, *, first_seed: int) -> Iterator[Sample]:
    """`drives` fresh drives of every combination, each on its own track, cut into samples.

    The frames pass through the video codec as those of training did.
    """
    combinations = all_attributes()
    for number in range(drives):
        for index, attributes in enumerate(combinations):
            seed = first_seed + 2 * (number * len(combinations) + index)
            frames = film(attributes, frames=SAMPLES_PER_DRIVE * SAMPLE_FRAMES, seed=seed)
            for start in range(0, len(frames), SAMPLE_FRAMES):
                yield Sample(frames=frames[start : start + SAMPLE_FRAMES], attributes=attributes)


def film(attributes: Attributes, *, frames: int, seed: int) -> Frames:
    """A drive under one caption that stays on the road, as it comes out of a video file."""
    for attempt in range(ATTEMPTS):
        drive = DrivingWorld(seed + 1_000_000 * attempt).film([(0, attributes)], frames=frames)
        if not drive.off_road:
            break
    else:
        raise RuntimeError(f"the car left the road in {ATTEMPTS} drives from seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drive.mp4"
        write_video(path, drive.frames, fps=FPS)
        return decode_video(path, height=IMAGE_SIZE, width=IMAGE_SIZE, fps=None, decoder="av")[0]


def folder_samples(folder: Path) -> list[Sample]:
    """The settled parts of every segment of the videos in `folder`, whose sidecars must give attributes."""
    samples = []
    for clip in load_clips(folder, size=IMAGE_SIZE, fps=FPS):
        starts = [segment.start for segment in clip.segments] + [len(clip.frames)]
        for segment, end in zip(clip.segments, starts[1:], strict=True):
            if not segment.attributes:
                raise ValueError(
                    f"{folder}: {clip.name} has captions without attributes; render the folder anew"
                )
            attributes = Attributes(**segment.attributes)
            first = segment.start + (REACTION_FRAMES if segment.start else 0)
            for start in range(first, end - SAMPLE_FRAMES + 1, SAMPLE_FRAMES):
                frames = np.ascontiguousarray(clip.frames[start : start + SAMPLE_FRAMES])
                samples.append(Sample(frames=frames, attributes=attributes))
    return samples


def rendered_reference(*, drives: int = DRIVES, long_frames: int = LONG_FRAMES) -> Reference:
    """A reference from fresh drives, with a floor from other fresh drives.

    The floor has one sample of each combination, and drift over one long drive through each palette.
    """
    reference = Reference.of(
        list(rendered_samples(drives, first_seed=FIRST_SEED)),
        source=f"rendered, {drives * SAMPLES_PER_DRIVE} samples of each combination",
    )
    later = FIRST_SEED + 2 * drives * len(all_attributes())
    others = [measure(one) for one in list(rendered_samples(1, first_seed=later))[::SAMPLES_PER_DRIVE]]
    drifts = []
    for index, palette in enumerate(PALETTES):
        frames = film(Attributes(palette=palette), frames=long_frames, seed=later + 1000 + 2 * index)
        drifts.append(drift(reference.statistics.distance(frames, [palette] * len(frames))))
    floor = {**obedience(others, reference), **appearance(others, reference), "drift": float(np.mean(drifts))}
    return replace(reference, floor=floor)


def folder_reference(folder: Path) -> Reference:
    """A reference from a folder of captioned drives."""
    return Reference.of(folder_samples(folder), source=str(folder))
