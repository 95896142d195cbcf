"""Diffusers folders: where one is, on disk or on the hub, and what it says it holds."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX = "model_index.json"
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")  # of no use to a teacher


@dataclass(frozen=True)
class DiffusersFolder:
    """A folder with a ``model_index.json``; ``components`` maps its sub-folders to the classes in them."""

    path: Path
    pipeline: str
    components: dict[str, str]

    def require(self, names: Collection[str]) -> None:
        """ValueError unless the index lists these components and their sub-folders exist."""
        unlisted = [name for name in names if name not in self.components]
        if unlisted:
            raise ValueError(f"{self.path / INDEX} lists no {', '.join(unlisted)}; {self.pipeline} needs it")
        missing = [name for name in names if not (self.path / name).is_dir()]
        if missing:
            raise ValueError(
                f"{self.path} lacks the sub-folder {', '.join(missing)} that its {INDEX} lists; copy it whole"
            )

    def config(self, name: str, file: str) -> dict[str, object]:
        """A component's JSON configuration."""
        path = self.path / name / file
        if not path.is_file():
            raise ValueError(f"{self.path / name} has no {file}; copy the folder whole")
        return json.loads(path.read_text())


def find_folder(
    source: str | Path,
    *,
    supported: Collection[str],
    skip: Collection[str] = (),
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: Path | None = None,
    local_files_only: bool = False,
) -> DiffusersFolder:
    """The folder of a local path, or of a hub id, which is downloaded or found in the cache.

    Args:
        supported: pipeline classes; any other is refused before its weights are downloaded.
        skip: components that are not downloaded.
        variant: of the weight files on the hub, such as ``fp16``.
        revision: branch, tag or commit on the hub.
        cache_dir: of the hub's client; None is its own.
        local_files_only: never ask the hub.

    Raises:
        ValueError: for a path without a pipeline, a hub id that cannot be read, an unsupported pipeline.
        ConnectionError: for a hub id that is not cached while the hub cannot be reached.
    """
    local = Path(source).expanduser()
    if local.is_dir():
        return _read_index(local, supported)
    if isinstance(source, Path) or not _is_hub_id(source):
        raise ValueError(f"source={str(source)!r} is neither a folder nor a hub id such as 'owner/name'")
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    hub: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only}
    _read_index(_fetch_index(source, hub).parent, supported)
    unused = dict.fromkeys([*skip, *LEFT_OUT])
    try:
        snapshot = DiffusionPipeline.download(source, variant=variant, **hub, **unused)
    except OSError as error:
        raise ConnectionError(
            f"{source!r} is not whole in the hub's cache and could not be downloaded "
            f"({_first_line(error)}); connect once, or pass a local folder"
        ) from error
    return _read_index(Path(snapshot), supported)


def _is_hub_id(source: str) -> bool:
    owner, slash, name = source.partition("/")
    return bool(owner and slash and name) and "/" not in name and owner[0] not in ".~"


def _fetch_index(source: str, hub: dict[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(source, INDEX, **hub))
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise ConnectionError(
            f"{source!r} is no local folder, is not in the hub's cache, and the hub was not reached; "
            "connect once, or pass a local folder"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(
            f"source={source!r} is no model that you may read on the hub, at this revision; check the name, "
            "accept its licence there, or log in with `hf auth login`"
        ) from error
    except (EntryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"source={source!r} is no diffusers pipeline on the hub: it has no {INDEX}"
        ) from error


def _read_index(path: Path, supported: Collection[str]) -> DiffusersFolder:
    file = path / INDEX
    if not file.is_file():
        raise ValueError(
            f"source={str(path)!r} is no diffusers folder: it has no {INDEX}; give the folder of the pipeline"
        )
    try:
        index = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); copy the file again") from error
    pipeline = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(pipeline, str) or pipeline not in supported:
        raise ValueError(f"{file} holds a {pipeline}; supported are {', '.join(sorted(supported))}")
    components = {
        name: value[1]
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)
    }
    return DiffusersFolder(path, pipeline, components)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
