"""`fewstep models`: released students of Wan 2.1 converted to our own folders, listed and verified."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  fewstep models convert Wan-AI/Wan2.1-T2V-1.3B -o self-forcing \\
    --student gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt
  fewstep models convert Wan-AI/Wan2.1-T2V-1.3B -o longlive \\
    --student Efficient-Large-Model/LongLive-1.3B/models/longlive_base.pt \\
    --lora Efficient-Large-Model/LongLive-1.3B/models/lora.pt
  fewstep models convert ./Wan2.1-T2V-1.3B-Diffusers --student rewardforcing.pt --taehv taew2_1.pth -o fast
  fewstep models list .
  fewstep models verify self-forcing
"""
MEGABYTE = 1e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("convert", help="write a released student as a folder of our own")
    add.add_argument("base", help="Wan2.1-T2V folder or hub id, in Wan's layout or diffusers'")
    add.add_argument("--student", help="its file or folder, or owner/name/file on the hub (the one in BASE)")
    add.add_argument("--recipe", help="how it generates (guessed by the file's name)")
    add.add_argument("--taehv", help="decode with this taew2_1.pth instead of Wan's autoencoder")
    add.add_argument("--lora", help="adapters to merge into the student (LongLive's lora.pt)")
    add.add_argument("--no-ema", action="store_true", help="not the averaged weights, where a file has both")
    add.add_argument("--prompt", action="append", default=[], help="prompt to encode now; may be repeated")
    add.add_argument("--size", type=_size, help="frames as WIDTHxHEIGHT (832x480)")
    add.add_argument("--dtype", default="bfloat16", help="of the stored weights (%(default)s)")
    add.add_argument("--offline", action="store_true", help="never ask the hub")
    add.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    show = actions.add_parser("list", help="models on disk, and released students that can be converted")
    show.add_argument("folders", type=Path, nargs="*", help="folders to look in, one level deep")
    check = actions.add_parser("verify", help="compare a converted model's files with their digests")
    check.add_argument("folder", type=Path)


def run(args: argparse.Namespace) -> int:
    actions = {"convert": _convert, "list": _list, "verify": _verify}
    return actions[args.action](args)


def _convert(args: argparse.Namespace) -> int:
    from fewstep.modalities.video.released.conversion import convert
    from fewstep.modalities.video.released.folder import find_files, load_parts
    from fewstep.modalities.video.released.hub import find_released
    from fewstep.modalities.video.released.recipes import recipe

    def found(source: str | None) -> Path | None:
        return None if source is None else find_released(source, local_files_only=args.offline)

    base = found(args.base)
    assert base is not None
    files = find_files(
        base,
        student=found(args.student),
        recipe_name=args.recipe,
        taehv=found(args.taehv),
        ema=not args.no_ema,
        lora=found(args.lora),
    )
    parts = load_parts(files, size=args.size)
    convert(
        parts,
        recipe(files.recipe),
        args.out,
        source=args.student or args.base,
        prompts=args.prompt,
        storage_dtype=args.dtype,
    )
    print(f"Wrote {args.out} ({files.recipe}). Try: fewstep stream {args.out}")
    return 0


def _list(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from fewstep.modalities.video.released.recipes import RECIPES

    table = Table("model", "frames", "steps", "window, sink", "licence", "where", title_justify="left")
    damaged = []
    for folder in _model_folders(args.folders):
        try:
            table.add_row(*_row_of(folder))
        except (ValueError, OSError) as error:
            damaged.append(error)
    for name, known in RECIPES.items():
        table.add_row(*_row(name, known.card(name), known.licence, f"{known.source} (to convert)"))
    Console(width=None if Console().is_terminal else 200).print(table)
    for error in damaged:
        print(f"fewstep: not listed: {error}", file=sys.stderr)
    return 1 if damaged else 0


def _row_of(folder: Path) -> list[str]:
    """What a model folder says of itself.

    Raises:
        ValueError: it is damaged.
    """
    from fewstep.modalities.video.parts import read_card

    card = read_card(folder)
    try:
        return _row(str(card.get("name", folder.name)), card, _licence(folder), _where(folder))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{folder}: its cards are damaged ({type(error).__name__}: {error}); copy or convert the model "
            "again"
        ) from error


def _row(name: str, card: dict[str, Any], licence: str, where: str) -> list[str]:
    cache = card["cache"]
    frames = f"{card['width']}x{card['height']} at {card['fps']:g} a second"
    sink = "none" if cache["sink_mode"] == "none" else f"{cache['sink']} ({cache['sink_mode']})"
    return [name, frames, ", ".join(card["step_grids"]), f"{cache['window']}, {sink}", licence, where]


def _licence(folder: Path) -> str:
    path = folder / "student" / "card.json"
    return str(json.loads(path.read_text()).get("licence", "-")) if path.is_file() else "-"


def _where(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{folder} ({size / MEGABYTE:.0f} MB)"


def _model_folders(places: list[Path]) -> list[Path]:
    """Of videos, among the bundled ones, the places themselves, and one level below them."""
    from importlib.resources import as_file, files

    with as_file(files("fewstep.modalities.video.presets")) as presets:
        looked = [*sorted(presets.iterdir())]
    for place in places:
        if not place.is_dir():
            raise FileNotFoundError(f"{place} is no folder; give one that holds models")
        looked += [place, *sorted(path for path in place.iterdir() if path.is_dir())]
    # students of other modalities are several, in a folder `students`, and are not for `fewstep stream`
    kept = (folder for folder in dict.fromkeys(looked) if (folder / "student").is_dir())
    return [folder for folder in kept if (folder / "pipeline.json").is_file()]


def _verify(args: argparse.Namespace) -> int:
    from fewstep.modalities.video.released.conversion import problems

    wrong = problems(args.folder)
    for line in wrong:
        print(line)
    print(f"{args.folder}: {'not whole' if wrong else 'whole, every file is as it was converted'}")
    return 1 if wrong else 0


def _size(text: str) -> tuple[int, int]:
    """Height and width of WIDTHxHEIGHT."""
    width, cross, height = text.partition("x")
    sides = [int(side) if side.isdecimal() else 0 for side in (height, width)]
    if not cross or not all(sides) or any(side % 16 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} must be WIDTHxHEIGHT, both multiples of 16")
    return sides[0], sides[1]
