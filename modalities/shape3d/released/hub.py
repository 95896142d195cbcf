"""Where a folder of a TRELLIS pipeline is: on disk, or on the hub."""

from pathlib import Path

from fewstep.modalities.shape3d.released.pipeline_json import FILE

WANTED = (FILE, "ckpts/*")


def find_pipeline(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a local path, or of a hub id, which is downloaded or found in the cache.

    Args:
        revision: branch, tag or commit on the hub.
        cache_dir: of the hub's client; None is its own.
        local_files_only: never ask the hub.

    Raises:
        ValueError: for what is neither a folder nor an id that may be read.
        ConnectionError: for a hub id that is not cached while the hub cannot be reached.
    """
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    owner, slash, name = str(source).partition("/")
    if isinstance(source, Path) or not (owner and slash and name) or "/" in name or owner[0] in ".~":
        raise ValueError(f"source={str(source)!r} is neither a folder nor a hub id such as 'owner/name'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                source,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=list(WANTED),
            )
        )
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise ConnectionError(
            f"{source!r} is no local folder, is not in the hub's cache, and the hub was not reached; "
            "connect once, or pass a local folder"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"source={source!r} is no model that you may read on the hub, at this revision; check the name, "
            "or log in with `hf auth login`"
        ) from error
