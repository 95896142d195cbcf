"""`fewstep backbone`: the table by which CA chains become whole backbones, from ProMod3's database."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.progress import track
from safetensors.numpy import save

from fewstep.modalities.protein.backbone_fitting import fitted_table
from fewstep.modalities.protein.data.chain_set import Split, longest_run, split_of
from fewstep.modalities.protein.data.promod3 import read_backbones

SHORTEST = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="structure_db.dat of Debian's promod3-data")
    parser.add_argument("output", type=Path, help="table to write (backbone_table.safetensors)")


def run(args: argparse.Namespace) -> int:
    """Counts over the training split, and writes the table whole."""
    if not args.source.is_file():
        raise FileNotFoundError(f"{args.source} does not exist; it is in Debian's promod3-data")
    chains = track(backbones(args.source, "train"), description="chains", total=None)
    table = fitted_table(chains)
    part = args.output.with_name(f".{args.output.name}.part")
    part.write_bytes(save({"turns": table}))
    part.replace(args.output)
    print(f"{args.output}: {table.size:,} turns")
    return 0


def backbones(source: Path, split: Split) -> Iterator[np.ndarray]:
    """N, CA, C and O of each unbroken chain of a split."""
    for name, atoms in read_backbones(source):
        if len(atoms) >= SHORTEST and split_of(name) == split:
            part = longest_run(atoms[:, 1])
            if part.stop - part.start == len(atoms):
                yield atoms
