"""`fewstep train`: train what a YAML names, resuming by itself when the run's folder holds a checkpoint."""

import logging
import sys
from importlib.resources import files
from pathlib import Path

USAGE = """usage: fewstep train {fit,validate} --config RECIPE [--trainer.max_steps N ...]

RECIPE is a YAML file or the name of a packaged one, such as video/driving/teacher:
"""


def packaged_recipes() -> dict[str, Path]:
    """The YAML files inside the package by their names without suffix."""
    root = Path(str(files("fewstep.configs")))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def recipe_path(name: str) -> Path:
    """The file of a recipe given by path or by its packaged name."""
    path = Path(name)
    if path.is_file():
        return path
    recipes = packaged_recipes()
    if name in recipes:
        return recipes[name]
    known = ", ".join(recipes) or "none"
    raise FileNotFoundError(f"config {name!r} is neither a file nor a packaged recipe (packaged: {known})")


def with_recipe_paths(argv: list[str]) -> list[str]:
    """The arguments with every `--config NAME` replaced by the path of that recipe."""
    resolved: list[str] = []
    for position, argument in enumerate(argv):
        before = argv[position - 1] if position else ""
        if before in ("--config", "-c"):
            resolved.append(str(recipe_path(argument)))
        elif argument.startswith("--config="):
            resolved.append("--config=" + str(recipe_path(argument.removeprefix("--config="))))
        else:
            resolved.append(argument)
    return resolved


def run(argv: list[str]) -> int:
    """Parse the remaining arguments and train; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE + "\n".join(f"  {name}" for name in packaged_recipes()))
        return 0 if argv else 2
    arguments = with_recipe_paths(argv)

    from fewstep.apps.train_cli import train

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout
    )
    train(arguments)
    return 0
