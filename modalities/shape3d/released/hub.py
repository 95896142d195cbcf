"""Where a folder of a TRELLIS pipeline is, and where its models are: on disk, or on the hub."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.modalities.shape3d.released.pipeline_json import FILE

WANTED = (FILE, "ckpts/*")


def find_pipeline(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    local_files_only: bool = False,
    wanted: Sequence[str] = WANTED,
) -> Path:
    """The folder of a local path, or of a hub id, which is downloaded or found in the cache.

    Args:
        revision: branch, tag or commit on the hub.
        cache_dir: of the hub's client; None is its own.
        local_files_only: never ask the hub.
        wanted: patterns of the files to download.

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
                allow_patterns=list(wanted),
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


def find_model(folder: str | Path, path: str) -> Path:
    """The model of a pipeline, without suffix: in its folder, in one beside it, or in another of the hub.

    The released pipelines from text name most of their decoders as ``OWNER/TRELLIS-image-large/ckpts/...``,
    and are looked for on disk in folders beside: ``OWNER/TRELLIS-image-large`` or ``TRELLIS-image-large``.

    Raises:
        FileNotFoundError: the model is nowhere on disk, and its path begins with no hub id.
        ConnectionError: for one of the hub that is not cached while the hub cannot be reached.
    """
    folder = Path(folder)
    owner, _, name_and_rest = path.partition("/")
    name, _, rest = name_and_rest.partition("/")
    beside = folder.resolve().parent
    for place in (folder / path, beside / path, beside.parent / path, beside / name_and_rest, Path(path)):
        if place.with_name(place.name + ".json").is_file():
            return place
    if not rest or owner in ("ckpts", ".", "..", ""):
        raise FileNotFoundError(f"{folder / path}.json is missing; copy the folder whole")
    wanted = [f"{rest}{suffix}" for suffix in (".json", ".safetensors")]
    try:
        return find_pipeline(f"{owner}/{name}", wanted=wanted) / rest
    except ConnectionError as error:
        raise ConnectionError(
            f"{folder} takes {path} from another repository of the hub, which is neither in its cache nor "
            f"was reached; connect once, or put the folder {name} beside it"
        ) from error
