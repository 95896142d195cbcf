"""`fewstep protein`: protein backbones to files, with a table of what they are."""

import argparse
import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.modalities.protein.data.fold_classes import FOLD_CLASSES
from fewstep.modalities.protein.released.cath import FILE as CATH_FILE

if TYPE_CHECKING:
    from fewstep.apps.protein_designs import Maker, Request
    from fewstep.modalities.protein.design_table import Row

MOST, LARGEST_SHARD = 100_000_000, 100_000
TABLE = "designs"
EPILOG = """\
The output folder holds structures/, designs.csv (and designs.parquet where pyarrow is installed), run.json
(the settings), shards/ (coordinates and rows, with a digest each) and manifest.jsonl. The same command goes
on where a run was stopped, and makes no design twice. On several processes: torchrun --nproc-per-node 4 -m
fewstep.apps.cli protein -n 1000 -o designs (-n, as torchrun takes --num for its own), or --ray 4; each takes
other shards. Under mpnn_ and nearest_ the table has proxies; only --folding gives designability.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write, or to go on in")
    parser.add_argument(
        "--length", default="100", help="residues: 60, a list 60,80, or a range 50-120 (%(default)s)"
    )
    parser.add_argument("-n", "--num", type=int, default=10, help="designs, over all lengths (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first design; they ascend (%(default)s)"
    )
    parser.add_argument(
        "--fold",
        metavar="CLASS",
        help=f"where the model knows it: {', '.join(FOLD_CLASSES)}; of a .ckpt CATH codes, such as 1.10.8",
    )
    parser.add_argument(
        "--fold-labels",
        type=Path,
        metavar="FILE",
        help=f"Proteina's {CATH_FILE}, which a .ckpt's --fold needs",
    )
    parser.add_argument("--steps", type=int, help="calls of the network per design (the model's own)")
    parser.add_argument(
        "--noise-scale",
        type=float,
        help="factor on the noise; below 1 more regular, less diverse (the model's)",
    )
    parser.add_argument("--student", help="one of the model's students (its default one)")
    parser.add_argument("--teacher", action="store_true", help="the teacher in place of the student")
    parser.add_argument(
        "--sampler",
        choices=("sde", "ode", "renoise"),
        help="of a teacher or a .ckpt (sde); renoise is for distilled ones",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        metavar="W",
        help="towards --fold, or away from --worse (1: off)",
    )
    parser.add_argument(
        "--worse", type=Path, metavar="MODEL", help="the network earlier in its training: autoguidance"
    )
    parser.add_argument(
        "--format", choices=("pdb", "cif", "bcif", "none"), default="pdb", help="(%(default)s)"
    )
    parser.add_argument("--ca-only", action="store_true", help="CA atoms only, no completed backbone")
    parser.add_argument(
        "--sequences", type=int, default=0, metavar="N", help="ProteinMPNN sequences per design"
    )
    parser.add_argument(
        "--novelty", action="store_true", help="search the training chains for the nearest one"
    )
    parser.add_argument(
        "--folding", metavar="DIR", help="ESMFold's weights: fold the sequences (designability)"
    )
    parser.add_argument("--shard-size", type=int, default=50, help="designs made at once (%(default)s)")
    parser.add_argument("--ray", type=int, metavar="N", help="spread the work over N workers of Ray")
    parser.add_argument("--view", action="store_true", help="then serve a page that shows the designs")
    parser.add_argument("--port", type=int, default=8767, help="of that page; 0 picks one (%(default)s)")
    parser.add_argument("--model", default="chains", help="preset, model folder or .ckpt (%(default)s)")
    parser.add_argument("--device", default="cpu", help="device of the model (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Make what is not there yet, then write the table."""
    from fewstep.apps.protein_designs import Maker
    from fewstep.apps.protein_workers import make_here, make_with_ray
    from fewstep.apps.ranks import Rank

    rank = Rank.of(os.environ)
    request = requested(args, device=rank.device(args.device))
    if args.ray is not None and rank.size > 1:
        raise ValueError("--ray and torchrun both divide the work; use one of them")
    maker = Maker(request)
    low, high = maker.model.lengths
    if rank.rank == 0 and not low <= min(maker.lengths) <= max(maker.lengths) <= high:
        print(
            f"some of these lengths lie outside of {low} to {high} residues, which the model was trained on"
        )
    before = time.monotonic()
    if args.ray is None:
        made = make_here(maker, rank)
    else:
        todo = maker.folder.unfinished()
        ahead = sum(len(maker.folder.designs(shard)) for shard in todo)
        made = make_with_ray(request, todo, workers=args.ray, total=args.num, done=args.num - ahead)
    seconds = time.monotonic() - before
    who = f"rank {rank.rank}: " if rank.size > 1 else ""
    print(
        f"{who}{made} designs made, {args.num} asked for; {seconds:.1f} s, "
        f"{made / max(seconds, 1e-9):.3g} designs/s"
    )
    if maker.folder.write_manifest():
        finish(maker)
    else:
        print(f"{who}{len(maker.folder.unfinished())} shards are still to be made, by other workers")
    if args.view and rank.rank == 0:
        return view(args.output, args.port)
    return 0


def requested(args: argparse.Namespace, *, device: str) -> "Request":
    """The request, refused here where it cannot be."""
    from fewstep.apps.protein_designs import Request
    from fewstep.core.seeds import check_seeds

    for name, low, high in (
        ("num", 1, MOST), ("shard_size", 1, LARGEST_SHARD), ("sequences", 0, 1000), ("port", 0, 65_535),
    ):  # fmt: skip
        if not low <= getattr(args, name) <= high:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)} must be from {low} to {high}")
    check_seeds(range(args.seed, args.seed + args.num))
    if args.ray is not None and args.ray < 1:
        raise ValueError(f"--ray {args.ray} must be at least 1 worker")
    if args.teacher and args.student is not None:
        raise ValueError("--teacher and --student name two networks; give one")
    return Request(
        out=args.output,
        model=args.model,
        length=args.length,
        num=args.num,
        seed=args.seed,
        student="teacher" if args.teacher else args.student,
        steps=args.steps,
        noise_scale=args.noise_scale,
        fold=args.fold,
        files=None if args.format == "none" else args.format,
        atoms="ca" if args.ca_only else "backbone",
        sequences=args.sequences,
        novelty=args.novelty,
        folding=args.folding,
        shard_size=args.shard_size,
        device=device,
        sampler=args.sampler,
        guidance=args.guidance,
        worse=args.worse,
        fold_labels=args.fold_labels,
    )


def finish(maker: "Maker") -> None:
    """Structure files that went missing, the table, and a summary."""
    from fewstep.apps.protein_designs import STRUCTURES
    from fewstep.modalities.protein.design_table import csv_table, parquet_table
    from fewstep.modalities.protein.files import write_whole
    from fewstep.modalities.protein.shards import SHARDS

    out = maker.request.out
    rows: list[Row] = []
    for folder in (SHARDS, STRUCTURES):
        for part in (out / folder).glob(".*.part"):  # of workers that were killed
            part.unlink(missing_ok=True)
    for _, shard in maker.folder.finished():
        maker.write_structures(shard, missing_only=True)
        rows += shard.rows
    write_whole(out / f"{TABLE}.csv", csv_table(rows))
    with contextlib.suppress(ImportError):
        write_whole(out / f"{TABLE}.parquet", parquet_table(rows))
    print(f"{out / TABLE}.csv: {summary(rows)}")


def summary(rows: Sequence["Row"]) -> str:
    """Means over designs, in a line."""

    def mean(name: str) -> float:
        values = [float(row[name]) for row in rows if isinstance(row.get(name), int | float)]  # pyright: ignore[reportArgumentType] # numbers only
        return sum(values) / len(values) if values else float("nan")

    told = (
        f"{len(rows)} designs, {100 * mean('valid'):.0f} % with all bonds near 3.8 A and no clash, "
        f"CA-CA {mean('bond_mean'):.3f} A, helix {100 * mean('helix'):.0f} %, "
        f"strand {100 * mean('strand'):.0f} %"
    )
    if any("nearest_tm" in row for row in rows):
        told += f", nearest known chain TM {mean('nearest_tm'):.2f}"
    if any("mpnn_nll" in row for row in rows):
        told += f", ProteinMPNN {mean('mpnn_nll'):.2f} nats (a proxy)"
    if any("designable" in row for row in rows):
        told += f", designable {100 * mean('designable'):.0f} %"
    return told


def view(folder: Path, port: int) -> int:
    """Serve the page until Ctrl-C."""
    import uvicorn

    from fewstep.apps.protein_viewer import create_viewer
    from fewstep.apps.stream import listen

    app = create_viewer(folder)
    with listen("127.0.0.1", port) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/ shows {folder}; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
    return 0
