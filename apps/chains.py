"""`fewstep chains`: a set of CA chains for training, from ProMod3's database or from structure files."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import track

from fewstep.modalities.protein.data.chain_set import (
    ChainSet,
    NamedChain,
    file_sha256,
    longest_run,
    save_chain_set,
)
from fewstep.modalities.protein.data.promod3 import read_structure_db
from fewstep.modalities.protein.data.structure_files import read_structure_file, structure_files

NAMED = 5  # of the files that could not be read
LICENCE = "CC0-1.0"  # of coordinates in the Protein Data Bank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `fewstep chains`."""
    parser.add_argument(
        "source",
        type=Path,
        help="structure_db.dat of Debian's promod3-data, or a folder of PDB, mmCIF or binary CIF files",
    )
    parser.add_argument("out", type=Path, help="folder to write chains.safetensors and card.json to")
    parser.add_argument("--min-length", type=int, default=40, help="residues of the shortest chain")
    parser.add_argument("--max-length", type=int, default=128, help="residues of the longest chain")
    parser.add_argument("--source-name", help="name and version of the source, for the card")
    parser.add_argument(
        "--licence", default=LICENCE, help=f"of the coordinates, for the card (default: {LICENCE})"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the set and says what is in it."""
    if not 1 <= args.min_length <= args.max_length:
        raise ValueError(f"--min-length {args.min_length} must be from 1 to --max-length {args.max_length}")
    if not args.source.exists():
        raise FileNotFoundError(f"{args.source} does not exist; give structure_db.dat or a folder")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"{args.out} is a file; give a folder for the set")
    origin: dict[str, Any] = {"source": args.source_name or args.source.name, "licence": args.licence}
    unreadable: list[str] = []
    if args.source.is_dir():
        found = _of_folder(args.source, unreadable)
    else:
        origin["source_sha256"] = file_sha256(args.source)
        found = _of_database(args.source)
    kept = (chain for chain in found if args.min_length <= len(chain.coordinates) <= args.max_length)
    card = save_chain_set(args.out, ChainSet.of(kept), origin=origin)
    if unreadable:
        print(f"{len(unreadable)} files were left out: {'; '.join(unreadable[:NAMED])}", file=sys.stderr)
    print(
        f"{args.out}: {card['chains']} chains, {card['residues']} residues, "
        f"{card['train']} to train and {card['val']} to validate"
    )
    return 0


def _of_database(path: Path) -> Iterator[NamedChain]:
    """Chains without a gap; few have one."""
    for chain in read_structure_db(path):
        part = longest_run(chain.coordinates)
        if part.stop - part.start == len(chain.coordinates):
            yield chain


def _of_folder(folder: Path, unreadable: list[str]) -> Iterator[NamedChain]:
    """Chains of all files; one among many that cannot be read is noted, and the others go on."""
    for path in track(structure_files(folder), description=f"structures in {folder}"):
        try:
            yield from read_structure_file(path)
        except ValueError as error:
            unreadable.append(str(error))
