"""`fewstep bench objectives`: every objective of the family on one teacher that is known exactly."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.apps.records import Record, Setting, machine_settings, write_json
from fewstep.apps.score_table import print_scores

if TYPE_CHECKING:
    from fewstep.modalities.plane.benchmark import Points
    from fewstep.modalities.plane.ring import Quality

DEFINITIONS = """\
The teacher is the exact denoiser of eight Gaussians on a ring (radius 1.5, standard deviation 0.15). Each
student is a perceptron that starts as a network trained on the teacher's velocity. Students of a critic are
trained for each number of steps, those on trajectories once for all (seconds are of that one training).
sliced_wasserstein: 2-Wasserstein distance to real samples over 256 directions, root of the mean square.
mmd: squared maximum mean discrepancy, three Gaussian kernels.
min_mode: share of samples of the least frequented mode, 12.5 if even; in_mode: within 4 sd of a centre,
which the whole circle through the centres is: bridges between modes count as modes.
seconds: processor time of the training, on as many threads as the caption says. updates: of the student.
passes: samples through student, critic and target networks per update of the student and sample of a batch.
real: other real samples; most of their distance is chance in the counts of the modes (0.006 if even).
teacher: the exact one, by Euler's method. undistilled: the start of all students.
Multi-student: two with half the weights each, one per half of the ring; below it one of these for all of it.
Re-DMD, NP-Edit: reward, or judge, is the right half of the plane; NP-Edit's, at its
released weight of 0.02, leaves the numbers where DMD's are.
SlimFlow: all of its networks have the size of the others.
"""

ROWS = ("method", "steps")
UNITS = {
    "sliced_wasserstein": "",
    "mmd": "",
    "min_mode": "%",
    "in_mode": "%",
    "seconds": "s",
    "updates": "",
    "passes": "",
}
TEACHER_STEPS = (64, 4, 2, 1)
SHOWN, BESIDE, GREYS = 3000, 3, 16  # of the picture: points per panel, methods per row, shades
QUICK_UPDATES, QUICK_SAMPLES = 0.002, 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DEFINITIONS
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these (all)")
    parser.add_argument("--steps", type=int, nargs="+", choices=(1, 2, 4), help="only these (1 2 4)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on every method's updates (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of training and samples (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (%(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw all samples")


def run(args: argparse.Namespace) -> int:
    """Train every student, measure, report."""
    from fewstep.apps.bench_stream import torch_threads
    from fewstep.modalities.plane.methods import METHODS

    known = {method.name: method for method in METHODS}
    unknown = sorted(set(args.methods or ()) - set(known))
    if unknown:
        raise ValueError(f"--methods {', '.join(unknown)} unknown; choose from {', '.join(known)}")
    if args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}")
    if args.scale <= 0:
        raise ValueError(f"--scale must be above 0, got {args.scale}")
    if args.picture is not None and not args.picture.parent.is_dir():
        raise ValueError(f"--picture must be a file in a folder that exists, got {args.picture}")
    with torch_threads(args.threads):
        settings: dict[str, Setting] = {**machine_settings(), "seed": args.seed, "quick": args.quick}
        settings["scale"] = QUICK_UPDATES if args.quick else args.scale
        records, panels = measure(args, settings)
    print(DEFINITIONS)
    print_scores(records, rows=ROWS, sections=("method",), title="fewstep bench objectives")
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    if args.picture is not None:
        draw_panels(panels, args.picture)
    return 0


def measure(
    args: argparse.Namespace, settings: dict[str, Setting]
) -> tuple[list[Record], dict[tuple[str, int], "Points"]]:
    """Records and samples of floor, teacher, undistilled student and every method.

    ``args.json`` is written anew after each training: an interrupted run loses only the one it was at.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from fewstep.modalities.plane.benchmark import Scale, distil, pretrained, undistilled
    from fewstep.modalities.plane.methods import METHODS
    from fewstep.modalities.plane.ring import draw, quality

    scale = Scale(updates=QUICK_UPDATES, samples=QUICK_SAMPLES) if args.quick else Scale(updates=args.scale)
    wanted = tuple(args.steps or (1, 2, 4))
    real = draw(scale.samples, seed=3)[0]
    records: list[Record] = []
    panels: dict[tuple[str, int], Points] = {}

    def add(method: str, steps: int, x: "Points", score: "Quality", **extra: float) -> None:
        values = {
            "sliced_wasserstein": score.sliced_wasserstein,
            "mmd": score.mmd,
            "min_mode": 100 * score.min_mode,
            "in_mode": 100 * score.in_mode,
            **extra,
        }
        panels[method, steps] = x
        for name, value in values.items():
            row = {**settings, "method": method, "steps": steps}
            records.append(Record(name=name, value=value, unit=UNITS[name], settings=row))
        if args.json is not None:
            write_json(args.json, records)

    other = draw(scale.samples, seed=5)[0]
    add("real", 0, other, quality(other, real))
    for steps in TEACHER_STEPS:
        x = undistilled(steps, count=scale.samples)
        add("teacher", steps, x, quality(x, real))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        chosen = [method for method in METHODS if args.methods is None or method.name in args.methods]
        every = progress.add_task("objectives", total=len(chosen))
        network = pretrained(updates=max(1, round(3000 * min(1.0, 2 * scale.updates))))
        for steps in wanted:
            x = undistilled(steps, count=scale.samples, network=network)
            add("undistilled", steps, x, quality(x, real))
        for method in chosen:
            steps_of = tuple(count for count in method.steps if count in wanted)
            groups = [steps_of] if method.one_training else [(count,) for count in steps_of]
            for group in groups:
                if not group:
                    continue
                task = progress.add_task(f"{method.name}, {', '.join(map(str, group))} steps")
                done = distil(
                    method,
                    group,
                    scale,
                    seed=args.seed,
                    report=lambda count, total, task=task: progress.update(
                        task, completed=count, total=total
                    ),
                )
                progress.remove_task(task)
                for count in group:
                    extra = {"seconds": done.seconds, "updates": done.updates, "passes": done.passes}
                    add(method.name, count, done.samples[count], done.quality[count], **extra)
            progress.advance(every)
    return records, panels


def draw_panels(panels: dict[tuple[str, int], "Points"], path: Path) -> None:
    """A panel of points for every method and number of steps, several methods beside each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    rows: dict[str, list[int]] = {}
    for method, steps in panels:
        rows.setdefault(method, []).append(steps)
    wide = max(map(len, rows.values()))
    high = -(-len(rows) // BESIDE)
    figure = Figure(figsize=(1.25 * (wide + 0.1) * min(BESIDE, len(rows)), 1.45 * high), layout="constrained")
    blocks = figure.subfigures(high, min(BESIDE, len(rows)), squeeze=False)
    for number, (method, counts) in enumerate(rows.items()):
        block = blocks[number // BESIDE, number % BESIDE]
        for column, steps in enumerate(counts):
            axes = block.add_subplot(1, wide, column + 1)
            axes.set_axis_off()
            x = panels[method, steps][:SHOWN]
            axes.scatter(x[:, 0], x[:, 1], s=0.25, linewidths=0, color="black")
            axes.set_xlim(-2.4, 2.4)
            axes.set_ylim(-2.4, 2.4)
            axes.set_aspect("equal")
            axes.set_title(f"{method}, {steps}" if steps else method, fontsize=6, pad=1)
    partial = path.with_name(f".{path.name}.partial.png")
    FigureCanvasAgg(figure).print_png(partial)
    with Image.open(partial) as picture:
        grey = picture.convert("L").quantize(GREYS)
    grey.save(partial, optimize=True)
    partial.replace(path)
