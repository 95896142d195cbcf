"""``pipeline.json``: what a folder of several networks says of itself."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PIPELINE = "pipeline.json"


def read_pipeline(folder: Path, needed: Sequence[str]) -> dict[str, Any]:
    """What a folder's ``pipeline.json`` says, which is at least what is ``needed``.

    Raises:
        ValueError: it is no JSON, or says less than that.
    """
    path = folder / PIPELINE
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy or convert the model again") from error
    missing = [name for name in needed if not isinstance(card, dict) or name not in card]
    if missing:
        raise ValueError(f"{path} does not say {', '.join(missing)}; copy or convert the model again")
    return card
