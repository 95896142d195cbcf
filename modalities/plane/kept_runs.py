"""Finished runs of the benchmark as files, so that an interrupted one goes on and scores can be redone."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from fewstep.modalities.plane.benchmark import Run


def kept_or_made(folder: Path | None, name: str, make: Callable[[], Run]) -> Run:
    """The run of this name from ``folder``, or a new one, which is then kept there; None keeps nothing.

    A file says nothing of the code that made it: use a new folder after a change.
    """
    if folder is None:
        return make()
    path = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.safetensors"
    if path.is_file():
        return _read(path)
    run = make()
    _write(path, run)
    return run


def _write(path: Path, run: Run) -> None:
    took = {"seconds": run.seconds, "updates": run.updates, "passes": run.passes}
    samples = {str(steps): x.contiguous() for steps, x in run.samples.items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(samples, partial, metadata={"took": json.dumps(took)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path) -> Run:
    with safe_open(path, framework="pt") as file:
        took = json.loads((file.metadata() or {}).get("took", "{}"))
        samples = {int(steps): file.get_tensor(steps) for steps in file.keys()}
    if sorted(took) != ["passes", "seconds", "updates"]:
        raise ValueError(f"{path} is not a run of the benchmark; delete it or use another folder")
    return Run(samples=samples, **took)
