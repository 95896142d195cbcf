"""`fewstep eval video`: does the student do what it is told, look like its teacher, and stay that way."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.apps.files import check_folder, check_output
from fewstep.apps.records import Record, Setting, machine_settings, write_json
from fewstep.apps.score_table import print_scores

if TYPE_CHECKING:
    from fewstep.modalities.video.cache import SinkMode
    from fewstep.modalities.video.evaluation import Measured, Reference, Sample
    from fewstep.modalities.video.generation import LongRun, Script
    from fewstep.modalities.video.pipeline import VideoModel

DEFINITIONS = """\
A sample is 24 frames under one prompt. part=first: a clip of the teacher, or the first frames of a stream.
part=switched: 24 frames of a stream that was sent another prompt (all attributes change) 18 frames earlier.
part=long: streams under one prompt, sinks side by side. source=real is other real video against the same
reference: no model can be asked for less. phrasing=heldout: phrases and sentences that training never used.
lane_offset_error: |mean lane offset of a sample - mean of real video with the same attributes|, for left,
  centre and right; a sample without a road counts as half a road's width (14.8 px). weave_error: the same
  for the standard deviation of the offset, when weaving. speed_error: the same for the median speed.
palette_error: RGB distance of a frame's mean colour to the wanted world's. road_lost: frames without a road.
motion, high_frequency_energy: mean absolute difference of neighbouring frames, and of pixels in a row.
frechet_random_cnn: squared Frechet distance to real video, in 99 features of a fixed random network and mean
  colours. It falls with the number of samples: compare rows with equal numbers.
lane_offset_gap: |mean offset - that of the teacher|, averaged over left, centre and right;
  high_frequency_energy_ratio: to the teacher. Both to the teacher at its own number of steps, told the same
  attributes in training phrasings.
frame_distance: of the last 60 frames of a stream to real frames' statistics, in their standard deviations
  (real: 0.8); drift: that less the distance of its first 60, drift_error: the standard error of its mean.
  part=long: motion is of all frames, the other scores are of the last 48. decay: of the EMA sink.
"""

REFERENCE = "reference.json"
ROWS = ("part", "phrasing", "source", "steps", "sink", "decay", "samples")
PARTS = ("first", "switched", "long")
PHRASINGS = (None, "train", "heldout")
UNITS = {
    "lane_offset_error": "px",
    "weave_error": "px",
    "speed_error": "px/frame",
    "palette_error": "RGB levels",
    "road_lost": "%",
    "motion": "grey levels",
    "high_frequency_energy": "grey levels",
    "frechet_random_cnn": "",
    "lane_offset_gap": "px",
    "high_frequency_energy_ratio": "%",
    "drift": "sd",
    "drift_error": "sd",
    "frame_distance": "sd",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is generated.

    Args:
        combinations: of attributes; a stream starts from each, in training and in held-out phrasings.
        segments: per stream.
        teacher_splits: phrasings for which the teacher makes clips.
        streams: long ones to compare sinks; the other numbers of steps get half as many, at least 4.
        frames: of the long streams.
    """

    combinations: int
    segments: int
    teacher_splits: tuple[str, ...]
    streams: int
    frames: int


FULL = Plan(combinations=32, segments=2, teacher_splits=("train", "heldout"), streams=8, frames=2000)
QUICK = Plan(combinations=2, segments=2, teacher_splits=("train",), streams=4, frames=120)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DEFINITIONS
    parser.add_argument("--model", default="driving", help="bundled preset or model folder (%(default)s)")
    parser.add_argument("--device", default="cpu", help="device of the model (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (its own default)")
    parser.add_argument("--seed", type=int, default=0, help="of phrasings and noise (%(default)s)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help=f"real video to compare with: DIR/val (the model's {REFERENCE}, else rendered)",
    )
    parser.add_argument(
        "--write-reference", action="store_true", help=f"measure real video, write {REFERENCE}, and stop"
    )
    parser.add_argument(
        "--decays",
        type=float,
        nargs="+",
        metavar="D",
        help="only compare long streams: no sink, first frames, and EMA sinks of these decays",
    )
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="write a contact sheet")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write contact sheets and short videos")


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    from fewstep.apps.bench_stream import torch_threads
    from fewstep.modalities.video.pipeline import VideoModel

    _validate(args)
    with torch_threads(args.threads):
        model = VideoModel.load(args.model, device=args.device)
        if args.write_reference:
            return _write_reference(args, model)
        reference = find_reference(args.data, model)
        evaluation = Evaluation(model, reference, QUICK if args.quick else FULL, seed=args.seed)
        clock = Clock()
        if args.decays is None:
            evaluation.run(clock)
        else:
            evaluation.run_decays(args.decays, clock)
    settings: dict[str, Setting] = {
        **machine_settings(args.device),
        "model": args.model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "resolution": f"{model.width}x{model.height}",
        "window": model.cache_config.window,
        "seed": args.seed,
        "reference": reference.source,
    }
    records = [
        Record(name=one.name, value=one.value, unit=one.unit, settings={**settings, **one.settings})
        for one in evaluation.records
    ]
    print(DEFINITIONS)
    records.sort(
        key=lambda one: (PARTS.index(one.settings["part"]), PHRASINGS.index(one.settings["phrasing"]))
    )
    print_scores(records, rows=ROWS, sections=("part", "phrasing"), title="fewstep eval video")
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    print(clock)
    if args.json is not None:
        write_json(args.json, records)
    if args.sheet is not None or args.out is not None:
        from fewstep.apps.eval_pictures import write_pictures

        write_pictures(evaluation, sheet=args.sheet, out=args.out)
    return 0


def find_reference(data: Path | None, model: "VideoModel") -> "Reference":
    """Statistics of real video: of a folder, of the file beside the model, or of fresh drives."""
    from fewstep.modalities.video.evaluation import Reference
    from fewstep.modalities.video.held_out import folder_reference, rendered_reference

    if data is not None:
        return folder_reference(data / "val")
    if (model.folder / REFERENCE).is_file():
        return Reference.load(model.folder / REFERENCE)
    try:
        return rendered_reference()
    except ImportError as error:
        raise ImportError(f"{model.folder} has no {REFERENCE}: give --data DIR, or {error}") from error


def _write_reference(args: argparse.Namespace, model: "VideoModel") -> int:
    from fewstep.modalities.video.held_out import folder_reference, rendered_reference

    reference = rendered_reference() if args.data is None else folder_reference(args.data / "val")
    reference.save(model.folder / REFERENCE)
    print(f"{model.folder / REFERENCE}: {reference.source}, {len(reference.expected)} combinations")
    return 0


def _validate(args: argparse.Namespace) -> None:
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}")
    if args.sheet is not None:
        check_output(args.sheet, ".png", option="--sheet")
    if args.out is not None:
        check_folder(args.out, option="--out")
    if args.decays is not None and not all(0 <= decay <= 1 for decay in args.decays):
        raise ValueError(f"--decays must lie in [0, 1], got {args.decays}")
    if args.decays is not None and (args.sheet is not None or args.out is not None):
        raise ValueError("--decays makes no pictures: leave out --sheet and --out")
    if args.data is not None and not (args.data / "val").is_dir():
        raise FileNotFoundError(f"--data: no folder {args.data / 'val'}; fewstep render makes one")


@dataclass
class Evaluation:
    """Everything that is generated and scored for one model.

    `footage` keeps what pictures are made of: videos by (source, steps), of the training phrasings.
    """

    model: "VideoModel"
    reference: "Reference"
    plan: Plan
    seed: int = 0
    records: list[Record] = field(default_factory=list)
    scripts: dict[str, list["Script"]] = field(default_factory=dict)
    footage: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    long_scripts: list["Script"] = field(default_factory=list)
    long_runs: dict[tuple[int, str], "LongRun"] = field(default_factory=dict)

    def run(self, clock: "Clock") -> None:
        """Generate and score; teacher first, because the students are compared with it."""
        from fewstep.modalities.video.captions import all_attributes
        from fewstep.modalities.video.generation import balanced_attributes, draw_scripts
        from fewstep.modalities.video.teacher import Teacher

        plan, model = self.plan, self.model
        everything = all_attributes()
        combinations = (
            everything if plan.combinations == len(everything) else balanced_attributes(plan.combinations)
        )
        self.reference.require(combinations)
        teacher = Teacher.load(model)
        with clock.part("prompts"):
            for split in ("train", "heldout"):
                self.scripts[split] = draw_scripts(
                    model, combinations, split=split, segments=plan.segments, seed=self.seed
                )
            self._draw_long_scripts(plan.streams)
        self._real()
        targets = self._teacher(teacher, clock)
        self._students(targets, clock)
        self._long(clock)

    def run_decays(self, decays: Sequence[float], clock: "Clock") -> None:
        """Long streams alone, twice as many, as sinks differ by little more than streams do."""
        from fewstep.modalities.video.generation import balanced_attributes

        count = 2 * self.plan.streams
        self.reference.require(balanced_attributes(count))
        self._draw_long_scripts(count)
        steps = self.model.default_steps
        for sink in ("none", "first"):
            self._long_row(clock, steps, sink, None, count)
        for decay in decays:
            self._long_row(clock, steps, "ema", decay, count)

    def _draw_long_scripts(self, count: int) -> None:
        from fewstep.modalities.video.generation import balanced_attributes, draw_scripts

        combinations = balanced_attributes(count)
        self.long_scripts = draw_scripts(
            self.model, combinations, split="train", segments=1, seed=self.seed + 1
        )

    def _real(self) -> None:
        samples = {"samples": len(self.reference.expected)}
        for name, value in self.reference.floor.items():
            part = "long" if name == "drift" else "first"
            settings = samples if part == "first" else {}
            self._add(
                {name: value}, part=part, phrasing=None, source="real", steps=None, sink=None, **settings
            )

    def _teacher(self, teacher: Any, clock: "Clock") -> list["Measured"]:
        from fewstep.modalities.video.generation import first_samples, generate_clips

        own, targets = teacher.settings.num_steps, []
        for steps in (own, *sorted(set(self.model.steps_available) - {own}, reverse=True)):
            for split in self.plan.teacher_splits:
                scripts = self.scripts[split]
                with clock.part(f"teacher, {steps} steps, {split} phrasings"):
                    clips = generate_clips(teacher, scripts, num_steps=steps)
                with clock.part("measuring"):
                    measured = _measured(first_samples(clips, scripts))
                if split == "train":
                    self.footage["teacher", steps] = clips
                    targets = targets or measured
                self._score(
                    measured,
                    targets,
                    part="first",
                    phrasing=split,
                    source="teacher",
                    steps=steps,
                    sink=None,
                    guidance_scale=float(teacher.settings.guidance_scale),
                )
        return targets

    def _students(self, targets: list["Measured"], clock: "Clock") -> None:
        from fewstep.modalities.video.generation import first_samples, generate_streams, switched_samples

        sink = self.model.cache_config.sink_mode
        for steps in self.model.steps_available:
            for split, scripts in self.scripts.items():
                with clock.part(f"student, {steps} steps, {split} phrasings"):
                    videos = generate_streams(self.model, scripts, steps=steps)
                parts: tuple[tuple[str, Callable[..., list[Sample]]], ...] = (
                    ("first", first_samples),
                    ("switched", switched_samples),
                )
                for part, cut in parts:
                    with clock.part("measuring"):
                        measured = _measured(cut(videos, scripts))
                    row: dict[str, Setting] = {"phrasing": split, "source": "student"}
                    self._score(measured, targets, part=part, **row, steps=steps, sink=sink)
                if split == "train":
                    self.footage["student", steps] = videos

    def _long(self, clock: "Clock") -> None:
        model, plan = self.model, self.plan
        sinks: tuple[SinkMode, ...] = ("none", "first", "ema")
        for sink in sinks:
            self._long_row(clock, model.default_steps, sink, None, plan.streams)
        for steps in model.steps_available:
            if steps != model.default_steps:
                sink = model.cache_config.sink_mode
                self._long_row(clock, steps, sink, None, max(4, plan.streams // 2))

    def _long_row(
        self, clock: "Clock", steps: int, sink: "SinkMode", decay: float | None, count: int
    ) -> None:
        """Score ``count`` long streams; a decay of None is the model's own."""
        from fewstep.modalities.video.evaluation import appearance, obedience
        from fewstep.modalities.video.generation import long_run

        model, frames = self.model, self.plan.frames
        used = None if sink != "ema" else model.cache_config.decay if decay is None else decay
        with clock.part(f"student, {steps} steps, {frames} frames, sink {sink} {used or ''}"):
            result = long_run(
                model,
                self.long_scripts[:count],
                self.reference,
                steps=steps,
                sink_mode=sink,
                decay=decay,
                frames=frames,
            )
        with clock.part("measuring"):
            late = _measured(result.late)
        scores = {"drift": result.drift, "drift_error": result.drift_error}
        scores |= {"frame_distance": result.frame_distance}
        scores |= obedience(late, self.reference) | appearance(late, self.reference)
        scores["motion"] = result.motion
        del scores["frechet_random_cnn"]  # of too few prompts to mean something
        row: dict[str, Setting] = {"part": "long", "phrasing": "train", "source": "student"}
        row |= {"steps": steps, "sink": sink, "decay": used, "samples": len(late), "frames": frames}
        self._add(scores, **row)
        self.long_runs[steps, sink] = result

    def _score(
        self, measured: list["Measured"], targets: list["Measured"], *, part: str, **row: Setting
    ) -> None:
        from fewstep.modalities.video.evaluation import appearance, lane_offset_gap, obedience

        scores = obedience(measured, self.reference) | appearance(measured, self.reference)
        scores["lane_offset_gap"] = lane_offset_gap(measured, targets)
        energies = [np.mean([one.high_frequency_energy for one in group]) for group in (measured, targets)]
        scores["high_frequency_energy_ratio"] = 100.0 * float(energies[0] / energies[1])
        self._add(scores, part=part, samples=len(measured), **row)

    def _add(self, scores: Mapping[str, float], **settings: Setting) -> None:
        for name, value in scores.items():
            self.records.append(Record(name=name, value=value, unit=UNITS[name], settings=settings))


def _measured(samples: Sequence["Sample"]) -> list["Measured"]:
    from fewstep.modalities.video.evaluation import measure

    return [measure(sample) for sample in samples]


class Clock:
    """Says on the terminal what is being done, and remembers what took how long."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        from rich.console import Console

        started = time.perf_counter()
        with Console(stderr=True).status(name):
            yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        return f"took {sum(self.seconds.values()):.0f} s: {parts}"
