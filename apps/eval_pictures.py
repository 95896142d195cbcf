"""The pictures of `fewstep eval video`: sheets of frames and short videos of what was scored."""

from pathlib import Path

import numpy as np

from fewstep.apps.contact_sheet import Row, save_sheet, tiled
from fewstep.apps.eval_video import Evaluation
from fewstep.modalities.video.evaluation import SAMPLE_FRAMES
from fewstep.modalities.video.files import write_video
from fewstep.modalities.video.generation import Script, balanced_attributes
from fewstep.modalities.video.held_out import FIRST_SEED, film

SHEET_PROMPTS, SHEET_COLUMNS = 8, 2
DRIFT_PROMPTS = 4
FILM_SEED = FIRST_SEED + 100_001


def write_pictures(evaluation: Evaluation, *, sheet: Path | None, out: Path | None) -> None:
    """Write the sheet of prompts to `sheet`, and sheets and videos into the folder `out`."""
    if sheet is not None:
        save_prompts_sheet(evaluation, sheet)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    save_prompts_sheet(evaluation, out / "prompts.png")
    save_drift_sheet(evaluation, out / "drift.png")
    for (source, steps), videos in evaluation.footage.items():
        shown = videos[_shown(evaluation.scripts["train"])]
        write_video(out / f"{source}-{steps}-steps.mp4", tiled(shown), fps=evaluation.model.fps)


def save_prompts_sheet(evaluation: Evaluation, path: Path) -> None:
    """Rows are prompts, columns time: real video (where it can be rendered), teacher and students."""
    scripts = evaluation.scripts["train"]
    numbers = _shown(scripts)
    real = _real([scripts[number] for number in numbers])
    columns = np.linspace(0, SAMPLE_FRAMES - 1, SHEET_COLUMNS).round().astype(int)
    headings = ["real"] if real else []
    headings += [f"{source}, {steps} steps" for source, steps in evaluation.footage]
    rows = []
    for position, number in enumerate(numbers):
        groups = [real[position][columns]] if real else []
        groups += [videos[number][columns] for videos in evaluation.footage.values()]
        rows.append(Row(label=scripts[number].captions[0], groups=groups))
    save_sheet(path, headings, rows)


def save_drift_sheet(evaluation: Evaluation, path: Path) -> None:
    """Rows are prompts and sinks, columns the frames of one long stream."""
    default, rows = evaluation.model.default_steps, []
    scripts = evaluation.long_scripts[:DRIFT_PROMPTS]
    runs = {sink: run for (steps, sink), run in evaluation.long_runs.items() if steps == default}
    frames = list(next(iter(runs.values())).snapshots)
    for number, script in enumerate(scripts):
        for sink, run in runs.items():
            groups = [run.snapshots[frame][number][None] for frame in frames]
            rows.append(Row(label=f"sink {sink}: {script.captions[0]}", groups=groups))
    save_sheet(path, [f"frame {frame}" for frame in frames], rows)


def _shown(scripts: list[Script]) -> list[int]:
    """A few prompts in which all worlds, manoeuvres and speeds appear."""
    wanted = balanced_attributes(SHEET_PROMPTS)
    return [number for number, script in enumerate(scripts) if script.attributes[0] in wanted]


def _real(scripts: list[Script]) -> list[np.ndarray]:
    try:
        return [
            film(script.attributes[0], frames=SAMPLE_FRAMES, seed=FILM_SEED + 2 * number)
            for number, script in enumerate(scripts)
        ]
    except ImportError:  # without gymnasium the sheet has no real column
        return []
