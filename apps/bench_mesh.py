"""`fewstep bench mesh`: how long a mesh takes, stage by stage, student against teacher."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.apps.mesh_models import add_model_arguments, given_students, student_and_teacher
from fewstep.apps.records import Record, Setting, finish, machine_settings

if TYPE_CHECKING:
    from PIL.Image import Image

    from fewstep.modalities.shape3d.mesh_file import Mesh
    from fewstep.modalities.shape3d.pipeline import Generated, MeshModel
    from fewstep.modalities.shape3d.surface.flexicubes import Cells

DEFINITIONS = """\
A mesh is made from a picture of the world of objects, one at a time; students and teacher take turns with the
same pictures and seeds, each as often the first, after one mesh that is not counted.
stage_time: median seconds: picture (its tokens), structure, latents, decode, surface (FlexiCubes), cleanup
  (walls within, floaters, holes, the budget of --faces), export (GLB).
seconds_per_mesh: median of their sum. speedup_vs_teacher: the teacher's over the student's.
nfe: evaluations of the two flows. voxels, faces: medians.
surface_speedup: seconds of FlexiCubes on every cell of the grid over those on cells near the surface, for the
  same cells: what the decoder gives, and a ball in a grid of twice the resolution. surface_memory_ratio:
  likewise of the largest memory that tensors take meanwhile.
"""

STUDENT_STEPS = ((1, 2), (2, 2))
STAGES = ("picture", "structure", "latents", "decode", "surface", "cleanup", "export")
SURFACE_RUNS = 3
BALL_RADIUS = 0.4  # of the cube's edge


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    pictures: int


FULL, QUICK = Plan(24), Plan(2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DEFINITIONS
    add_model_arguments(parser)
    parser.add_argument("--faces", type=int, help="budget of faces (none)")
    parser.add_argument("--threads", type=int, help="threads of torch (its own default)")


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    from fewstep.apps.bench_stream import torch_threads

    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}")
    if args.faces is not None and args.faces < 4:
        raise ValueError(f"--faces must be at least 4, got {args.faces}")
    with torch_threads(args.threads):
        student, teacher = student_and_teacher(args)
        settings: dict[str, Setting] = {
            **machine_settings(args.device),
            "model": args.model,
            **{role: path.name for role, path in given_students(args).items()},
            "faces": args.faces,
        }
        records = measure(student, teacher, QUICK if args.quick else FULL, settings, faces=args.faces)
    print(DEFINITIONS)
    return finish(records, args, title="fewstep bench mesh")


def measure(
    student: "MeshModel", teacher: "MeshModel", plan: Plan, settings: dict[str, Setting], *, faces: int | None
) -> list[Record]:
    """All records."""
    records: list[Record] = []

    def add(name: str, value: int | float, unit: str, **own: Setting) -> None:
        records.append(Record(name=name, value=value, unit=unit, settings={**settings, **own}))

    contestants = [("student", student, steps) for steps in STUDENT_STEPS]
    contestants.append(("teacher", teacher, teacher.steps))
    pictures = drawn_pictures(plan.pictures + 1)
    timed: dict[tuple[str, str], list[dict[str, float]]] = {}
    made: dict[tuple[str, str], list[Generated]] = {}
    for seed, picture in enumerate(pictures):
        first = seed % len(contestants)  # or it would always be the same one that follows the teacher
        for source, model, steps in contestants[first:] + contestants[:first]:
            seconds, result = timed_mesh(model, picture, seed, steps, faces)
            if seed > 0:
                key = (source, f"{steps[0]}x{steps[1]}")
                timed.setdefault(key, []).append(seconds)
                made.setdefault(key, []).append(result)
    whole = {key: statistics.median(sum(one.values()) for one in rows) for key, rows in timed.items()}
    slowest = whole[contestants[-1][0], f"{teacher.steps[0]}x{teacher.steps[1]}"]
    for (source, steps), rows in timed.items():
        own: dict[str, Setting] = {"source": source, "steps": steps}
        results = made[source, steps]
        for stage in STAGES:
            add("stage_time", statistics.median(row[stage] for row in rows), "s", stage=stage, **own)
        add("seconds_per_mesh", whole[source, steps], "s", meshes=len(rows), **own)
        if source != "teacher":
            add("speedup_vs_teacher", slowest / whole[source, steps], "x", meshes=len(rows), **own)
        add("nfe", sum(results[0].nfe), "", **own)
        add("voxels", statistics.median(result.voxels for result in results), "", **own)
        add("faces", statistics.median(len(result.mesh.faces) for result in results), "", **own)
    decoded = decoded_cells(student, pictures[-1])
    for cells in (decoded, cells_of_ball(2 * decoded.resolution)):
        speed, memory = surface_ratios(cells)
        own = {"cells": len(cells.coords), "resolution": cells.resolution}
        add("surface_speedup", speed, "x", **own)
        add("surface_memory_ratio", memory, "x", **own)
    return records


def drawn_pictures(count: int) -> list["Image"]:
    """Pictures of held-out objects."""
    from PIL import Image

    from fewstep.modalities.objects.scene import numbered_scene, render

    return [Image.fromarray(render(numbered_scene(number, split="heldout"))) for number in range(count)]


def timed_mesh(
    model: "MeshModel", picture: "Image", seed: int, steps: tuple[int, int], faces: int | None
) -> tuple[dict[str, float], "Generated"]:
    """Seconds of every stage, clean-up and export included."""
    result = next(model.generate([picture], seeds=[seed], steps=steps))
    return {**result.seconds, **finishing(result.mesh, faces)}, result


def finishing(mesh: "Mesh", faces: int | None) -> dict[str, float]:
    """Seconds of clean-up and export."""
    from fewstep.modalities.shape3d.mesh_file import write_mesh
    from fewstep.modalities.shape3d.surface.finishing import finished

    started = time.perf_counter()
    clean = finished(mesh, faces=faces)
    cleaned_at = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_mesh(Path(folder) / "mesh.glb", clean)
    return {"cleanup": cleaned_at - started, "export": time.perf_counter() - cleaned_at}


def decoded_cells(model: "MeshModel", picture: "Image") -> "Cells":
    """What the decoder says of an object."""
    from fewstep.modalities.shape3d.surface.decoded import cells_of

    return cells_of(model.pipeline.decode(model.latents(picture, seed=0)), 0)


def cells_of_ball(resolution: int) -> "Cells":
    """The cells of voxels that the surface of a ball passes, as many in each as a decoder gives."""
    import torch

    from fewstep.modalities.shape3d.networks.latent_vae import CELLS_PER_VOXEL
    from fewstep.modalities.shape3d.surface.flexicubes import Cells
    from fewstep.modalities.shape3d.surface.tables import CORNERS

    def distance(points: torch.Tensor, size: int) -> torch.Tensor:
        return (points / size - 0.5).norm(dim=-1) - BALL_RADIUS

    voxels = resolution // CELLS_PER_VOXEL
    voxel = torch.cartesian_prod(*[torch.arange(voxels)] * 3)
    near = voxel[distance(voxel + 0.5, voxels).abs() < 1 / voxels]
    within = torch.cartesian_prod(*[torch.arange(CELLS_PER_VOXEL)] * 3)
    coords = (CELLS_PER_VOXEL * near[:, None] + within).flatten(0, 1)
    return Cells(
        coords=coords,
        sdf=distance(coords[:, None] + CORNERS, resolution),
        deform=torch.zeros(len(coords), 8, 3),
        weights=torch.zeros(len(coords), 21),
        resolution=resolution,
    )


def surface_ratios(cells: "Cells") -> tuple[float, float]:
    """Dense over sparse FlexiCubes: seconds and memory."""
    import torch

    from fewstep.apps.bench_random import waiter
    from fewstep.modalities.shape3d.surface.dense import extract_surface_densely
    from fewstep.modalities.shape3d.surface.flexicubes import extract_surface

    wait = waiter(str(cells.coords.device))
    with torch.no_grad():
        seconds, memory = [], []
        for extract in (extract_surface, extract_surface_densely):
            seconds.append(min(_seconds(extract, cells, wait) for _ in range(SURFACE_RUNS)))
            memory.append(_largest_memory(extract, cells))
    return seconds[1] / seconds[0], memory[1] / memory[0]


def _seconds(extract: Any, cells: Any, wait: Callable[[], None]) -> float:
    wait()
    started = time.perf_counter()
    extract(cells)
    wait()
    return time.perf_counter() - started


def _largest_memory(extract: Any, cells: Any) -> float:
    """Bytes of all tensors that are alive at once, from the profiler's record of allocations."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        extract(cells)
    held = largest = 0
    for event in profiler.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            largest = max(largest, held)
    return float(largest)
