"""`fewstep mesh`: write a 3D mesh, or several, from pictures or words to files."""

import argparse
import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from fewstep.modalities.shape3d.conditioning.pictures import Matting
    from fewstep.modalities.shape3d.conditioning.sources import Source
    from fewstep.modalities.shape3d.pipeline import Generated, MeshModel, Splatted

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MESHES = (".glb", ".ply", ".obj", ".stl")
MAX_COUNT, LONGEST_PATH = 1000, 255


@dataclass(frozen=True)
class Job:
    """One mesh to make.

    Args:
        source: a picture's file, several of one object, or words.
        seed: of the noise, and of the picture that words become first.
        output: file to write.
    """

    source: Path | tuple[Path, ...] | str
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
        "--texture", type=int, metavar="PIXELS", help="bake colours into a texture of this size (.glb only)"
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
    parser.add_argument("--model", default="objects", help="bundled preset or TRELLIS folder (%(default)s)")
    parser.add_argument("--image-model", default="objects", help="that makes pictures of words (%(default)s)")
    parser.add_argument("--image-encoder", type=Path, help="DINOv2 weights, for folders without an encoder")
    parser.add_argument("--text-encoder", type=Path, help="CLIP and its tokenizer, for models of words")
    parser.add_argument(
        "--structure-student",
        type=Path,
        metavar="FILE",
        help="student of the first stage, such as MDT-dist's: .safetensors beside its .json, or a checkpoint "
        ".pt in a run of TRELLIS's trainer",
    )
    parser.add_argument("--latent-student", type=Path, metavar="FILE", help="likewise of the second stage")
    parser.add_argument("--device", default="cpu", help="device of the model (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Make what is not there yet; each file is in place at once when it is complete."""
    steps = None if args.steps is None else parsed_steps(args.steps)
    jobs = planned(args)
    missing = jobs if args.overwrite else [job for job in jobs if not job.output.exists()]
    if len(missing) < len(jobs):
        print(
            f"{len(jobs) - len(missing)} of {len(jobs)} files are there already; --overwrite makes them again"
        )
    if missing:
        from fewstep.modalities.shape3d.pipeline import MeshModel

        model = MeshModel.load(
            args.model,
            teacher=args.teacher,
            gaussians=args.gaussians,
            image_encoder=args.image_encoder,
            text_encoder=args.text_encoder,
            students=_students(args),
            device=args.device,
        )
        for job, made in generated(model, missing, steps, args):
            write(job, made, args)
    if args.view:
        return view([job.output for job in jobs], args.port)
    return 0


def _students(args: argparse.Namespace) -> dict[str, Path]:
    from fewstep.modalities.shape3d.released.pipeline import LATENT_FLOW, STRUCTURE_FLOW

    given = {STRUCTURE_FLOW: args.structure_student, LATENT_FLOW: args.latent_student}
    return {role: path for role, path in given.items() if path is not None}


def parsed_steps(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None or 0 in (steps := (int(found[1]), int(found[2]))):
        raise ValueError(f"--steps {text!r} must be two numbers from 1 on, such as 2x2")
    return steps


def planned(args: argparse.Namespace) -> list[Job]:
    """What is to be made, refused here where it cannot be."""
    if not 1 <= args.count <= MAX_COUNT:
        raise ValueError(f"--count must be 1 to {MAX_COUNT}, got {args.count}")
    if args.texture is not None and args.texture < 16:
        raise ValueError(f"--texture must be at least 16 pixels, got {args.texture}")
    sources = [source for text in args.input for source in _sources(text)]
    if args.together:
        sources = [_together(sources)]
    elif args.turns:
        raise ValueError("--turns needs --together, for several pictures of one object")
    seeds = range(args.seed, args.seed + args.count)
    endings = (".ply",) if args.gaussians else MESHES
    if args.output.suffix.lower() in endings:
        wanted = len(sources) * args.count
        if wanted > 1:
            raise ValueError(f"--output {args.output.name} is one file for {wanted} meshes; give a folder")
        if not args.output.parent.is_dir():
            raise FileNotFoundError(f"--output: no folder {args.output.parent}")
        jobs = [Job(sources[0], args.seed, args.output)]
    elif args.output.suffix:
        raise ValueError(
            f"--output {args.output.name} must end in one of {', '.join(endings)}, or be a folder"
        )
    else:
        args.output.mkdir(parents=True, exist_ok=True)
        names = [_name(source) for source in sources]
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


def _sources(text: str) -> list[Path | tuple[Path, ...] | str]:
    from fewstep.modalities.video.text import check_prompt

    if len(text) > LONGEST_PATH:  # more than a file system takes: these can only be words
        return [check_prompt(text)]
    path = Path(text)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not found:
            raise FileNotFoundError(f"{text} holds no pictures ({', '.join(PICTURES)})")
        return [*found]
    if path.is_file():
        return [path]
    if path.suffix.lower() in PICTURES or "/" in text:
        raise FileNotFoundError(f"no picture {text}")
    return [check_prompt(text)]


def _together(sources: Sequence[Path | tuple[Path, ...] | str]) -> tuple[Path, ...]:
    pictures = tuple(source for source in sources if isinstance(source, Path))
    if len(pictures) < 2 or len(pictures) < len(sources):
        raise ValueError("--together needs two pictures or more of one object, and no words")
    return pictures


def _name(source: Path | tuple[Path, ...] | str) -> str:
    """Of the file, without ending; of the first of several."""
    if isinstance(source, tuple):
        source = source[0]
    if isinstance(source, Path):
        return source.stem
    return re.sub(r"[^a-z0-9]+", "-", source.lower()).strip("-")[:60] or "mesh"


def generated(
    model: "MeshModel", jobs: Sequence[Job], steps: tuple[int, int] | None, args: argparse.Namespace
) -> Iterator[tuple[Job, "Generated | Splatted"]]:
    """Meshes or splats one after the other, with a bar where somebody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    sources = given_to(model, jobs, args)
    make = model.splats if args.gaussians else model.generate
    how = "turns" if args.turns else "mean"
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=len(jobs) == 1) as progress:
        bar = progress.add_task("meshes", total=len(jobs))
        for job, source in zip(jobs, sources, strict=True):
            try:
                made = next(iter(make([source], seeds=[job.seed], steps=steps, how=how)))
            except ValueError as error:
                raise ValueError(f"{_told(job)}: {error}") from error
            yield job, made
            progress.advance(bar)


def given_to(model: "MeshModel", jobs: Sequence[Job], args: argparse.Namespace) -> list["Source"]:
    """What the model takes: words as they are, or pictures, into which others' words are drawn first."""
    words = [job for job in jobs if isinstance(job.source, str)]
    if model.conditioning.kind == "words":
        if len(words) < len(jobs):
            other = next(job for job in jobs if job not in words)
            raise ValueError(f"{_told(other)}: {args.model} makes meshes of words; say what it should be")
        return [str(job.source) for job in words]
    drawn = drawn_pictures(words, args.image_model, args.device) if words else {}
    matting = _matting() if args.cut_out else None
    sources: list[Source] = []
    for job in jobs:
        if isinstance(job.source, str):
            sources.append(drawn[job.source, job.seed])
        elif isinstance(job.source, tuple):
            sources.append([opened(path, matting) for path in job.source])
        else:
            sources.append(opened(job.source, matting))
    return sources


def drawn_pictures(jobs: Sequence[Job], image_model: str, device: str) -> dict[tuple[str, int], "Image"]:
    """By the image model's student, of words with their seeds."""
    from PIL import Image

    from fewstep.modalities.image.pipeline import ImageModel

    keys = [(str(job.source), job.seed) for job in jobs]
    made = ImageModel.load(image_model, device=device).generate(
        [words for words, _ in keys], seeds=[seed for _, seed in keys]
    )
    return {key: Image.fromarray(picture) for key, picture in zip(keys, made, strict=True)}


def opened(path: Path, matting: "Matting | None") -> "Image":
    """A picture of a file, cut out if there is something to do it with."""
    from PIL import Image, UnidentifiedImageError

    from fewstep.modalities.shape3d.conditioning.pictures import cut_out

    try:
        picture = Image.open(path)
        picture.load()
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error})") from error
    return picture if matting is None else cut_out(picture, matting)


def _matting() -> "Matting":
    from fewstep.modalities.shape3d.conditioning.pictures import rembg_matting

    return rembg_matting()


def _told(job: Job) -> str:
    """The source, for people."""
    return ", ".join(map(str, job.source)) if isinstance(job.source, tuple) else str(job.source)


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


def view(files: Sequence[Path], port: int) -> int:
    """Serve the page until Ctrl-C."""
    import uvicorn

    from fewstep.apps.mesh_viewer import create_viewer
    from fewstep.apps.stream import listen

    app = create_viewer(files)
    with listen("127.0.0.1", port) as listener:
        named = "1 mesh" if len(files) == 1 else f"{len(files)} meshes"
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/ shows {named}; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
    return 0
