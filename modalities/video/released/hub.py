"""Where a released file or folder is: on disk, or on the hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER_PATTERNS = (
    "*.json",
    "*.safetensors",
    "*.pt",
    "*.pth",
    "google/*",
    "checkpoints/*",
    "transformer/*",
    "vae/*",
    "text_encoder/*",
    "tokenizer/*",
)
HUB_PARTS = 2  # owner and name; what follows is a file


def find_released(source: str | Path, *, local_files_only: bool = False) -> Path:
    """The path of a file or folder on disk, of a hub id `owner/name`, or of a file in one, `owner/name/file`;
    those are downloaded or found in the hub's cache.

    Args:
        local_files_only: never ask the hub.

    Raises:
        ValueError: for what is neither on disk nor an id that may be read.
        ConnectionError: for a hub id that is not cached while the hub cannot be reached.
    """
    local = Path(source).expanduser()
    if local.exists():
        return local
    parts = str(source).split("/")
    if isinstance(source, Path) or len(parts) < HUB_PARTS or not all(parts) or parts[0][0] in ".~":
        raise ValueError(
            f"{str(source)!r} is neither on disk nor a hub id such as 'owner/name' or 'owner/name/file.pt'"
        )
    from huggingface_hub import hf_hub_download, snapshot_download

    name, file = "/".join(parts[:HUB_PARTS]), "/".join(parts[HUB_PARTS:])
    options: dict[str, Any] = {"local_files_only": local_files_only}
    if file:
        return _fetched(str(source), lambda: hf_hub_download(name, file, **options))
    return _fetched(
        str(source), lambda: snapshot_download(name, allow_patterns=list(FOLDER_PATTERNS), **options)
    )


def _fetched(source: str, download: Callable[[], str]) -> Path:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(download())
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise ConnectionError(
            f"{source!r} is not on disk, not in the hub's cache, and the hub was not reached; connect once, "
            "or give a local path"
        ) from error
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"{source!r} is nothing that you may read on the hub; check the name, or log in with "
            "`hf auth login`"
        ) from error
