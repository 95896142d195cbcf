"""`fewstep mesh`: write a 3D mesh, or several, from pictures or words to files."""

import argparse
import contextlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.apps.mesh_models import add_model_arguments, given_students
from fewstep.apps.mesh_sources import Named, Sources, file_name, named, together, told
from fewstep.core.seeds import check_seeds

if TYPE_CHECKING:
    from fewstep.modalities.shape3d.pipeline import Generated, MeshModel, Splatted

MESHES = (".glb", ".ply", ".obj", ".stl")
MAX_COUNT = 1000
TEXTURES = range(16, 8192 + 1)
FEWEST_FACES = 4
SOME_FAILED = 1


@dataclass(frozen=True)
class Job:
    """One mesh to make.

    Args:
        source: a picture's file, several of one object, or words.
        seed: of the noise, and of the picture that words become first.
        output: file to write.
    """

    source: Named
    seed: int
    output: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", nargs="+", help="pictures, folders of pictures, or words in quotes")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="a file (.glb .ply .obj .stl), or a folder for several",
    )
    parser.add_argument(
        "--count", type=int, default=1, help="meshes per input, seeds ascending (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first mesh's noise (%(default)s)")
    parser.add_argument(
        "--steps", metavar="AxB", help="steps of the two stages, such as 2x2 (the model's own)"
    )
    parser.add_argument("--teacher", action="store_true", help="the teacher in place of the student")
    parser.add_argument("--faces", type=int, help="most faces (all)")
    parser.add_argument(
        "--texture",
        type=int,
        metavar="PIXELS",
        help="bake colours into a texture of this size (.glb only), on at most 20,000 faces",
    )
    parser.add_argument(
        "--floaters", type=float, default=0.005, help="drop pieces below this share of the area (%(default)s)"
    )
    parser.add_argument(
        "--together", action="store_true", help="all pictures show one object: make one mesh of them"
    )
    parser.add_argument(
        "--turns",
        action="store_true",
        help="with --together: look at one picture per step, instead of the mean over all at every step",
    )
    parser.add_argument(
        "--cut-out", action="store_true", help="cut objects out of their backgrounds first (needs rembg)"
    )
    parser.add_argument(
        "--gaussians",
        action="store_true",
        help="write Gaussian splats (.ply) in place of meshes, where the model has a decoder of them",
    )
    parser.add_argument("--overwrite", action="store_true", help="make files again that are there already")
    parser.add_argument("--view", action="store_true", help="then serve a page that shows them")
    parser.add_argument("--port", type=int, default=8766, help="of that page; 0 picks one (%(default)s)")
    add_model_arguments(parser)
    parser.add_argument("--image-model", default="objects", help="that makes pictures of words (%(default)s)")
    parser.add_argument("--text-encoder", type=Path, help="CLIP and its tokenizer, for models of words")


def run(args: argparse.Namespace) -> int:
    """Make what is not there yet; each file is in place at once when it is complete."""
    steps = None if args.steps is None else parsed_steps(args.steps)
    jobs = planned(args)
    missing = jobs if args.overwrite else [job for job in jobs if not job.output.exists()]
    if len(missing) < len(jobs):
        print(
            f"{len(jobs) - len(missing)} of {len(jobs)} files are there already; --overwrite makes them again"
        )
    failed = 0
    if missing:
        from fewstep.modalities.shape3d.pipeline import MeshModel

        model = MeshModel.load(
            args.model,
            teacher=args.teacher,
            gaussians=args.gaussians,
            image_encoder=args.image_encoder,
            text_encoder=args.text_encoder,
            students=given_students(args),
            device=args.device,
        )
        failed = make_all(model, missing, steps, args, alone=len(jobs) == 1)
    there = [job.output for job in jobs if job.output.exists()]
    if args.view and there:
        view(there, args.port)
    return SOME_FAILED if failed else 0


def parsed_steps(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None or 0 in (steps := (int(found[1]), int(found[2]))):
        raise ValueError(f"--steps {text!r} must be two numbers from 1 on, such as 2x2")
    return steps


def planned(args: argparse.Namespace) -> list[Job]:
    """What is to be made, refused here where it cannot be."""
    if not 1 <= args.count <= MAX_COUNT:
        raise ValueError(f"--count must be 1 to {MAX_COUNT}, got {args.count}")
    _check_options(args)
    sources = [source for text in args.input for source in named(text)]
    if args.together:
        sources = [together(sources)]
    elif args.turns:
        raise ValueError("--turns needs --together, for several pictures of one object")
    seeds = range(args.seed, args.seed + args.count)
    endings = (".ply",) if args.gaussians else MESHES
    is_folder = args.output.is_dir()
    if args.output.suffix.lower() in endings and not is_folder:
        wanted = len(sources) * args.count
        if wanted > 1:
            raise ValueError(f"--output {args.output.name} is one file for {wanted} meshes; give a folder")
        if not args.output.parent.is_dir():
            raise FileNotFoundError(f"--output: no folder {args.output.parent}")
        jobs = [Job(sources[0], args.seed, args.output)]
    elif (args.output.suffix or args.output.is_file()) and not is_folder:
        raise ValueError(
            f"--output {args.output.name} must end in one of {', '.join(endings)}, or be a folder"
        )
    else:
        args.output.mkdir(parents=True, exist_ok=True)
        names = [file_name(source) for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"inputs {', '.join(twice)} would be written to the same file; rename one")
        marks = [f"-{seed}" if args.count > 1 else "" for seed in seeds]
        suffix = ".ply" if args.gaussians else ".glb"
        jobs = [
            Job(source, seed, args.output / f"{name}{mark}{suffix}")
            for source, name in zip(sources, names, strict=True)
            for seed, mark in zip(seeds, marks, strict=True)
        ]
    if args.texture is not None and jobs[0].output.suffix.lower() != ".glb":
        raise ValueError("--texture needs a .glb file; other formats get vertex colours")
    if not 0 <= args.port <= 65_535:
        raise ValueError(f"--port must be in 0..65535, got {args.port}")
    if args.gaussians and (args.texture is not None or args.faces is not None):
        raise ValueError("--faces and --texture are for meshes; leave them out with --gaussians")
    if args.view and any(job.output.suffix.lower() != ".glb" for job in jobs):
        raise ValueError("--view shows .glb files; write one")
    return jobs


def _check_options(args: argparse.Namespace) -> None:
    """Before a model is loaded, and not after the first mesh was made."""
    if args.faces is not None and args.faces < FEWEST_FACES:
        raise ValueError(f"--faces must be at least {FEWEST_FACES}, got {args.faces}")
    if args.texture is not None and args.texture not in TEXTURES:
        raise ValueError(f"--texture must be {TEXTURES[0]} to {TEXTURES[-1]} pixels, got {args.texture}")
    if not 0 <= args.floaters < 1:
        raise ValueError(f"--floaters must be at least 0 and below 1, got {args.floaters}")
    for option, package in (("faces", "fast_simplification"), ("texture", "xatlas")):
        if getattr(args, option) is not None and importlib.util.find_spec(package) is None:
            raise ImportError(f"--{option} needs {package.replace('_', '-')}: pip install 'fewstep[three-d]'")
    check_seeds(range(args.seed, args.seed + args.count))


def make_all(
    model: "MeshModel",
    jobs: Sequence[Job],
    steps: tuple[int, int] | None,
    args: argparse.Namespace,
    *,
    alone: bool,
) -> int:
    """Write one file after the other, with a bar where somebody looks; the number that could not be made.

    Among several, what cannot be made is named and left out; one asked for ``alone`` is an error.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    sources = Sources(model.conditioning.kind, args)
    sources.check([job.source for job in jobs])
    failed = 0
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=alone) as progress:
        for job in progress.track(jobs, description="meshes"):
            try:
                write(job, made(model, job, sources, steps, args), args)
            except ValueError as error:
                if alone:
                    raise ValueError(f"{told(job.source)}: {error}") from error
                failed += 1
                line = " ".join(f"{told(job.source)}, seed {job.seed}: {error}".split())
                print(f"fewstep: left out: {line}", file=sys.stderr)
    if failed:
        print(f"fewstep: {failed} of {len(jobs)} could not be made", file=sys.stderr)
    return failed


def made(
    model: "MeshModel",
    job: Job,
    sources: Sources,
    steps: tuple[int, int] | None,
    args: argparse.Namespace,
) -> "Generated | Splatted":
    make = model.splats if args.gaussians else model.generate
    source = sources.of(job.source, job.seed)
    return next(iter(make([source], seeds=[job.seed], steps=steps, how="turns" if args.turns else "mean")))


def write(job: Job, made: "Generated | Splatted", args: argparse.Namespace) -> None:
    """Clean, simplify, paint and write one mesh, or write splats, and say what it is."""
    from fewstep.modalities.shape3d.pipeline import Splatted

    seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in made.seconds.items())
    if isinstance(made, Splatted):
        shape = write_splats(job.output, made)
    else:
        shape = write_finished(job.output, made, args)
    print(f"{job.output}: {shape}; {made.voxels} voxels; {seconds}; seed {job.seed}")


def write_splats(path: Path, made: "Splatted") -> str:
    from fewstep.modalities.shape3d.gaussians import write_gaussians

    write_gaussians(path, made.gaussians)
    return f"{len(made.gaussians.centres)} Gaussians"


def write_finished(path: Path, made: "Generated", args: argparse.Namespace) -> str:
    from fewstep.modalities.shape3d.mesh_file import write_mesh
    from fewstep.modalities.shape3d.surface.cleaning import health
    from fewstep.modalities.shape3d.surface.finishing import finished

    mesh = finished(made.mesh, floaters=args.floaters, faces=args.faces, texture=args.texture)
    write_mesh(path, mesh)
    found = health(mesh)
    closed = "watertight" if found.watertight else "not watertight"
    pieces = "one piece" if found.components == 1 else f"{found.components} pieces"
    return f"{found.faces} faces, {closed}, {pieces}"


def view(files: Sequence[Path], port: int) -> None:
    """Serve the page until Ctrl-C."""
    import uvicorn

    from fewstep.apps.mesh_viewer import create_viewer
    from fewstep.apps.stream import listen

    app = create_viewer(files)
    with listen("127.0.0.1", port) as listener:
        shown = "1 mesh" if len(files) == 1 else f"{len(files)} meshes"
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/ shows {shown}; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
