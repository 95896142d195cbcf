"""`fewstep bench objectives`: every objective of the family on one teacher that is known exactly."""

import argparse
import functools
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.apps.records import Record, Setting, machine_settings, write_json
from fewstep.apps.score_table import print_scores

if TYPE_CHECKING:
    from fewstep.modalities.plane.benchmark import Points

DEFINITIONS = """\
The teacher is the exact denoiser of eight Gaussians on a ring (radius 1.5, standard deviation 0.15). Each
student is a perceptron that starts as a network trained on the teacher's velocity. Students of a critic are
trained for each number of steps, those on trajectories once for all (seconds are of that one training).
sliced_wasserstein: 2-Wasserstein distance to real samples over 256 directions, root of the mean square.
Real samples are equally many per mode and students start from spread (Sobol) noise, so that chance in the
counts of the modes is no part of it. over_seeds: largest minus smallest of the seeds.
mmd: squared maximum mean discrepancy, three Gaussian kernels.
min_mode: share of samples of the least frequented mode, 12.5 if even; in_mode: within 3 sd of a centre, 98.9
for real ones, less with bridges between modes, more where modes are too narrow.
right_half: share of samples to the right of 0, 50 if even.
seconds: processor time of the training, on as many threads as the caption says. updates: of the student.
passes: samples through student, critic and target networks per update of the student and sample of a batch.
real: other real samples. teacher: the exact one, by Euler's method. undistilled: the start of all students.
Re-DMD: samples in the right half weigh e^2 as much as others; from the common start, as in Reward Forcing no
student of DMD comes before it, and after a student of DMD. NP-Edit: its judge prefers the right half, with a
weight of 0.3 (released: 0.02).
Multi-student: two with a twentieth of the weights each, one per half of the ring; below it one such student.
SlimFlow: students of a quarter of the weights, from new ones.
"""

ROWS = ("method", "steps")
UNITS = {
    "sliced_wasserstein": "",
    "mmd": "",
    "min_mode": "%",
    "in_mode": "%",
    "right_half": "%",
    "seconds": "s",
    "updates": "",
    "passes": "",
}
README_HEAD = (
    "| method | SW2, 1 step | 2 | 4 | in a mode, 1 step, % | 2 | 4 | rarest mode, 1 step, % "
    "| right half, 1 step, % | processor s |"
)
README_SCORES = (("sliced_wasserstein", 3), ("in_mode", 1))
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
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of training and samples; several are averaged (0)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (%(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw all samples of the first seed")
    parser.add_argument("--markdown", type=Path, metavar="FILE.md", help="write the README's table")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep finished trainings there, and go on from those"
    )


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
    for name in ("picture", "markdown"):
        path = getattr(args, name)
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"--{name} must be a file in a folder that exists, got {path}")
    if args.picture is not None and importlib.util.find_spec("matplotlib") is None:
        raise ImportError("--picture needs matplotlib: pip install 'fewstep[train]'")
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
    with torch_threads(args.threads):
        settings: dict[str, Setting] = {**machine_settings(), "quick": args.quick}
        settings["scale"] = QUICK_UPDATES if args.quick else args.scale
        records, panels = measure(args, settings)
    means = over_seeds(records)
    print(DEFINITIONS)
    print_scores(means, rows=ROWS, sections=("method",), title="fewstep bench objectives")
    print(", ".join(f"{name} {value}" for name, value in settings.items()), f"seeds {args.seeds}", sep=", ")
    if args.markdown is not None:
        args.markdown.write_text(readme_table(means))
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

    from fewstep.modalities.plane.benchmark import Run, Scale, distil, pretrained, undistilled
    from fewstep.modalities.plane.kept_runs import kept_or_made
    from fewstep.modalities.plane.methods import METHODS, Method
    from fewstep.modalities.plane.ring import draw_evenly, quality

    scale = Scale(updates=QUICK_UPDATES, samples=QUICK_SAMPLES) if args.quick else Scale(updates=args.scale)
    wanted = tuple(args.steps or (1, 2, 4))
    real = draw_evenly(scale.samples, seed=3)
    records: list[Record] = []
    panels: dict[tuple[str, int], Points] = {}

    def add(method: str, steps: int, x: "Points", seed: int, **extra: int | float) -> None:
        score = quality(x, real)
        values = {
            "sliced_wasserstein": score.sliced_wasserstein,
            "mmd": score.mmd,
            "min_mode": 100 * score.min_mode,
            "in_mode": 100 * score.in_mode,
            "right_half": 100 * score.right_half,
            **extra,
        }
        panels.setdefault((method, steps), x)
        for name, value in values.items():
            row = {**settings, "seed": seed, "method": method, "steps": steps}
            records.append(Record(name=name, value=value, unit=UNITS[name], settings=row))
        if args.json is not None:
            write_json(args.json, records)

    add("real", 0, draw_evenly(scale.samples, seed=5), args.seeds[0])
    for steps in TEACHER_STEPS:
        add("teacher", steps, undistilled(steps, count=scale.samples), args.seeds[0])
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        chosen = [method for method in METHODS if args.methods is None or method.name in args.methods]
        every = progress.add_task("objectives", total=len(chosen) * len(args.seeds))
        network = pretrained(updates=max(1, round(3000 * min(1.0, 2 * scale.updates))))
        for steps in wanted:
            x = undistilled(steps, count=scale.samples, network=network)
            add("undistilled", steps, x, args.seeds[0])

        def train(method: Method, group: tuple[int, ...], seed: int) -> Run:
            task = progress.add_task(f"{method.name}, {', '.join(map(str, group))} steps")
            run, _ = distil(
                method,
                group,
                scale,
                seed=seed,
                report=lambda count, total: progress.update(task, completed=count, total=total),
            )
            progress.remove_task(task)
            return run

        for method in chosen:
            steps_of = tuple(count for count in method.steps if count in wanted)
            groups = [steps_of] if method.one_training else [(count,) for count in steps_of]
            for seed in args.seeds:
                for group in filter(None, groups):
                    name = f"{method.name} {group} seed {seed}"
                    run = kept_or_made(args.keep, name, functools.partial(train, method, group, seed))
                    for count in group:
                        extra = {"seconds": run.seconds, "updates": run.updates, "passes": run.passes}
                        add(method.name, count, run.samples[count], seed, **extra)
                progress.advance(every)
    return records, panels


def over_seeds(records: list[Record]) -> list[Record]:
    """The mean of each score over seeds, and beside the distance its largest minus its smallest value."""
    groups: dict[tuple[Setting, Setting, str], list[Record]] = {}
    for record in records:
        key = record.settings["method"], record.settings["steps"], record.name
        groups.setdefault(key, []).append(record)
    means: list[Record] = []
    for same in groups.values():
        first, values = same[0], [record.value for record in same]
        shown = {name: value for name, value in first.settings.items() if name != "seed"}
        means.append(replace(first, value=sum(values) / len(values), settings=shown))
        if first.name == "sliced_wasserstein":
            spread = max(values) - min(values)
            means.append(replace(first, name="over_seeds", value=spread, settings=shown))
    return means


def readme_table(means: list[Record]) -> str:
    """One line per method, its numbers of steps beside each other."""
    scores: dict[str, dict[tuple[str, int], float]] = {}
    for record in means:
        method, steps = str(record.settings["method"]), record.settings["steps"]
        scores.setdefault(method, {})[record.name, int(steps or 0)] = record.value

    def cell(of: dict[tuple[str, int], float], name: str, steps: int, digits: int) -> str:
        value = of.get((name, steps), of.get((name, 0)) if steps == 1 else None)
        return "" if value is None else f"{value:.{digits}f}"

    lines = [README_HEAD, "|---" * README_HEAD.count("| ") + "|"]
    for method, of in scores.items():
        cells = [cell(of, name, steps, digits) for name, digits in README_SCORES for steps in (1, 2, 4)]
        cells += [cell(of, "min_mode", 1, 1), cell(of, "right_half", 1, 1)]
        times = [time for steps in (1, 2, 4) if (time := cell(of, "seconds", steps, 0))]
        cells.append(" / ".join(times if len(set(times)) > 1 else times[:1]))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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
