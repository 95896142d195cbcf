"""`fewstep eval mesh`: how near meshes come to the objects in their pictures, students against teacher."""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewstep.apps.eval_video import Clock
from fewstep.apps.mesh_models import add_model_arguments, given_students, student_and_teacher
from fewstep.apps.records import Record, Setting, machine_settings, write_json
from fewstep.apps.score_table import print_scores

if TYPE_CHECKING:
    from fewstep.modalities.shape3d.evaluation import Made
    from fewstep.modalities.shape3d.held_out import HeldOut
    from fewstep.modalities.shape3d.pipeline import MeshModel

DEFINITIONS = """\
Every row makes a mesh of each of the same pictures with the same seeds, and finishes it as fewstep mesh does
(walls within, floaters and holes). The objects were never trained on: --split val has new ones of the pairs
of category and colour that training shows, --split heldout those of pairs that it never shows. They are
compared as they stand, without alignment, in units of the cube that holds the object. source=teacher: with
guidance at its own numbers of steps, and at the students' (undistilled). source=true is the true surface
itself by other points and, for coverage and nearest_neighbour_accuracy, other objects of the split: no model
can be asked for more.
made: pictures of which a mesh came out. The others count as 0 below, but for chamfer, normals and colours.
chamfer: half the sum of the mean distances from 10,000 points of either surface to the nearest of 50,000 of
  the other, in thousandths of the cube's edge. f_score_1, f_score_2: harmonic mean of the shares of points
  that are within 1 % and 2 % of the edge of the other surface. normal_consistency: mean |cosine| of normals.
occupancy_iou: intersection over union of the cells of a grid of 64 that lie inside.
watertight: meshes whose every edge has two faces, run through in opposite directions.
category: meshes whose nearest true object (Chamfer, 2,048 points, of all in the test) has the category that
  the picture shows. view_iou, view_psnr: silhouettes from where the picture was taken, mesh and true object;
  and where both are seen, their colours without light.
coverage: true objects that are the nearest one to some mesh; it grows with variety.
nearest_neighbour_accuracy: how often the nearest other shape tells whether a shape is generated or true; 50
  is ideal. This and coverage depend on the number of objects: compare rows with equal numbers.
voxels, faces: means. Second table: median seconds by stage, by the clock, one mesh at a time, rows in turns
  (picture: its tokens; surface: FlexiCubes; cleanup); total and speed_ratio to the teacher at its own steps.
"""

STUDENT_STEPS = ((2, 2), (1, 2))
SPLITS = ("val", "heldout")
STAGES = ("picture", "structure", "latents", "decode", "surface", "cleanup")
ROWS = ("source", "steps", "objects")
UNITS = {
    "made": "%",
    "chamfer": "1e-3",
    "f_score_1": "%",
    "f_score_2": "%",
    "normal_consistency": "%",
    "occupancy_iou": "%",
    "watertight": "%",
    "category": "%",
    "view_iou": "%",
    "view_psnr": "dB",
    "coverage": "%",
    "nearest_neighbour_accuracy": "%",
    "voxels": "",
    "faces": "",
}
SHEET_OBJECTS, SHEET_COLUMNS, SHEET_PIXELS = 16, 2, 128
SHEET_MARGIN = 16  # of a view that is cut off on either side, as objects stand small in it
TURN = 150.0  # degrees around the object to its other side
TEACHER, STUDENT, TRUE = "teacher", "student", "true"

Row = tuple[str, tuple[int, int]]  # who makes the meshes, and in how many steps


@dataclass(frozen=True)
class Plan:
    """How much is generated."""

    objects: int


FULL, QUICK = Plan(100), Plan(3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DEFINITIONS
    add_model_arguments(parser)
    parser.add_argument("--split", choices=SPLITS, default="val", help="which objects (%(default)s)")
    parser.add_argument(
        "--objects", type=int, help=f"how many ({FULL.objects}, with --quick {QUICK.objects})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first object's noise (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (its own default)")
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE.png",
        help=f"write {SHEET_OBJECTS} pictures beside what the student makes of them, seen from two sides",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write every mesh that was scored as .glb")


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    from fewstep.apps.bench_stream import torch_threads

    plan = QUICK if args.quick else FULL
    plan = plan if args.objects is None else Plan(args.objects)
    _validate(args, plan)
    with torch_threads(args.threads):
        student, teacher = student_and_teacher(args)
        evaluation = Evaluation(student, teacher, plan, split=args.split, seed=args.seed)
        clock = Clock()
        evaluation.run(clock)
        settings: dict[str, Setting] = {
            **machine_settings(args.device),
            "model": args.model,
            **{role: path.name for role, path in given_students(args).items()},
            "split": args.split,
            "seed": args.seed,
            "guidance": evaluation.guidance,
        }
    print(DEFINITIONS)
    print_scores(evaluation.scores, rows=ROWS, sections=("source",), title="fewstep eval mesh")
    print_scores(evaluation.seconds, rows=ROWS, sections=("source",), title="median seconds of one mesh")
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    print(clock)
    if args.json is not None:
        write_json(args.json, [_set(one, settings) for one in (*evaluation.scores, *evaluation.seconds)])
    if args.sheet is not None:
        save_asset_sheet(evaluation, args.sheet)
    if args.out is not None:
        _write_meshes(evaluation, args.out)
    return 0


def _validate(args: argparse.Namespace, plan: Plan) -> None:
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}")
    if plan.objects < 2:
        raise ValueError(f"--objects must be at least 2, got {plan.objects}")
    if args.sheet is not None and (args.sheet.suffix.lower() != ".png" or not args.sheet.parent.is_dir()):
        raise ValueError(f"--sheet must be a .png file in a folder that exists, got {args.sheet}")
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out must be a folder, {args.out} is a file")


def _set(record: Record, settings: Mapping[str, Setting]) -> Record:
    return Record(
        name=record.name, value=record.value, unit=record.unit, settings={**settings, **record.settings}
    )


@dataclass
class Evaluation:
    """Everything that is made and scored for one model; `made` keeps the meshes of each row."""

    student: "MeshModel"
    teacher: "MeshModel"
    plan: Plan
    split: str = "val"
    seed: int = 0
    scores: list[Record] = field(default_factory=list)
    seconds: list[Record] = field(default_factory=list)
    made: dict[Row, list["Made | None"]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """Who is scored at how many steps: the teacher at its own numbers first."""
        few = [steps for steps in STUDENT_STEPS if steps != self.teacher.steps]
        return [
            (TEACHER, self.teacher.steps),
            *((TEACHER, steps) for steps in few),
            *((STUDENT, steps) for steps in STUDENT_STEPS),
        ]

    @property
    def guidance(self) -> str:
        """The teacher's scales, of either stage."""
        file = self.teacher.pipeline.file
        return f"{file.structure_sampling.guidance_scale:g}, {file.latent_sampling.guidance_scale:g}"

    @cached_property
    def objects(self) -> list["HeldOut"]:
        from fewstep.modalities.shape3d.held_out import HeldOut

        return [HeldOut(number, self.split) for number in range(self.plan.objects)]

    def run(self, clock: Clock) -> None:
        """Make, row by row for each object, and score."""
        from fewstep.modalities.shape3d.evaluation import Reference, best_possible, evaluated
        from fewstep.modalities.shape3d.held_out import HeldOut

        reference = Reference(self.objects)
        self.made = {row: [] for row in self.rows}
        self.make(reference.objects[0], self.rows[-1])  # not counted: the first call is slower
        for one in reference.objects:
            for row, meshes in self.made.items():
                with clock.part(f"{row[0]} {_named(row[1])}"):
                    meshes.append(self.make(one, row))
        with clock.part("measuring"):
            count = self.plan.objects
            others = [HeldOut(count + number, self.split) for number in range(count)]
            for row, meshes in self.made.items():
                self._add(evaluated(meshes, reference), source=row[0], steps=_named(row[1]))
            self._add(best_possible(reference, others), source=TRUE, steps=None)
        self._time()

    def make(self, one: "HeldOut", row: Row) -> "Made | None":
        """A finished mesh; None where nothing comes out."""
        from PIL import Image

        from fewstep.modalities.shape3d.evaluation import Made
        from fewstep.modalities.shape3d.released.pipeline import NothingMade
        from fewstep.modalities.shape3d.surface.finishing import finished

        source, steps = row
        model = self.teacher if source == TEACHER else self.student
        picture, seed = Image.fromarray(one.picture), self.seed + one.number
        try:
            result = next(model.generate([picture], seeds=[seed], steps=steps))
            started = time.perf_counter()
            mesh = finished(result.mesh)
        except NothingMade:
            return None
        seconds = {**result.seconds, "cleanup": time.perf_counter() - started}
        return Made(mesh, seconds, result.voxels) if len(mesh.faces) else None

    def _time(self) -> None:
        totals: dict[Row, float] = {}
        for row, meshes in self.made.items():
            rows = [one.seconds for one in meshes if one is not None]
            if not rows:
                continue
            scores = {stage: statistics.median(one[stage] for one in rows) for stage in STAGES}
            totals[row] = scores["total"] = statistics.median(sum(one.values()) for one in rows)
            settings: dict[str, Setting] = {
                "source": row[0],
                "steps": _named(row[1]),
                "objects": self.plan.objects,
            }
            for name, value in scores.items():
                self.seconds.append(Record(name=name, value=value, unit="s", settings=settings))
            own = totals.get(self.rows[0])
            if own is not None:
                ratio = own / totals[row]
                self.seconds.append(Record(name="speed_ratio", value=ratio, unit="x", settings=settings))

    def _add(self, scores: Mapping[str, float], **settings: Setting) -> None:
        for name, unit in UNITS.items():
            if name in scores:
                own = {**settings, "objects": self.plan.objects}
                self.scores.append(Record(name=name, value=scores[name], unit=unit, settings=own))


def _named(steps: tuple[int, int]) -> str:
    return f"{steps[0]}x{steps[1]}"


def save_asset_sheet(evaluation: Evaluation, path: Path) -> None:
    """Pictures beside the student's meshes at its own number of steps, as many categories as there are."""
    from fewstep.apps.contact_sheet import Row as SheetRow
    from fewstep.apps.contact_sheet import save_sheet

    row = (STUDENT, evaluation.student.steps)
    chosen = sheet_objects(evaluation.objects)
    meshes = evaluation.made.get(row, [])
    shown = []
    for one in chosen:
        made = meshes[one.number] if one.number < len(meshes) else evaluation.make(one, row)
        shown.append(asset_pictures(one, made))
    rows = []
    for start in range(0, len(chosen), SHEET_COLUMNS):
        some = chosen[start : start + SHEET_COLUMNS]
        label = "; ".join(f"{one.scene.attributes.colour} {one.category}" for one in some)
        groups = shown[start : start + SHEET_COLUMNS]
        rows.append(SheetRow(label=label, groups=[*groups, *[None] * (SHEET_COLUMNS - len(groups))]))
    save_sheet(path, ["picture, mesh from there, mesh from behind"] * SHEET_COLUMNS, rows)


def sheet_objects(objects: Sequence["HeldOut"]) -> list["HeldOut"]:
    """Different categories first, in the order of the objects; more of the split where these are few."""
    from fewstep.modalities.shape3d.held_out import HeldOut

    split = objects[0].split
    candidates = [*objects, *(HeldOut(number, split) for number in range(len(objects), 4 * SHEET_OBJECTS))]
    first = {one.category: one for one in reversed(candidates)}
    ordered = [one for one in candidates if first[one.category] is one]
    rest = [one for one in candidates if first[one.category] is not one]
    return [*ordered, *rest][:SHEET_OBJECTS]


def asset_pictures(one: "HeldOut", made: "Made | None") -> np.ndarray:
    """The picture, the mesh from where it was taken, and from the other side; uint8 `[3, S, S, 3]`."""
    from dataclasses import replace

    from PIL import Image

    from fewstep.modalities.shape3d.surface.rendering import rendered

    size = (SHEET_PIXELS, SHEET_PIXELS)
    picture = np.asarray(Image.fromarray(one.picture).resize(size, Image.Resampling.LANCZOS))
    if made is None:
        return np.stack([picture, *[np.full_like(picture, 255)] * 2])
    camera = one.scene.camera
    views = (camera, replace(camera, azimuth=camera.azimuth + TURN))
    inner = slice(SHEET_MARGIN, SHEET_MARGIN + SHEET_PIXELS)
    seen = [rendered(made.mesh, view, size=SHEET_PIXELS + 2 * SHEET_MARGIN)[inner, inner] for view in views]
    return np.stack([picture, *seen])


def _write_meshes(evaluation: Evaluation, out: Path) -> None:
    from fewstep.modalities.shape3d.mesh_file import write_mesh

    for (source, steps), meshes in evaluation.made.items():
        folder = out / f"{source}-{_named(steps)}"
        folder.mkdir(parents=True, exist_ok=True)
        for number, made in enumerate(meshes):
            if made is not None:
                write_mesh(folder / f"{number:04d}.glb", made.mesh)
