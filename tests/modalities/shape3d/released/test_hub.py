from pathlib import Path

import pytest

from fewstep.modalities.shape3d.released.hub import find_model, find_pipeline

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path) -> Path:
    """A snapshot as the hub's client keeps it."""
    repository = cache / "models--someone--shapes"
    snapshot = repository / "snapshots" / COMMIT
    (snapshot / "ckpts").mkdir(parents=True)
    (snapshot / "pipeline.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert find_pipeline(tmp_path) == tmp_path
    assert find_pipeline(str(tmp_path)) == tmp_path


def test_a_snapshot_in_the_cache_is_found_without_the_hub(tmp_path: Path) -> None:
    snapshot = cached(tmp_path)
    found = find_pipeline("someone/shapes", cache_dir=tmp_path, local_files_only=True)
    assert found == snapshot


def test_an_id_that_is_not_cached_needs_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="'someone/else' is no local folder, is not in the hub's cache"):
        find_pipeline("someone/else", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize("source", ["shapes", "./some/shapes", "a/b/c", Path("nowhere")])
def test_what_is_neither_a_folder_nor_an_id_is_an_error(source: str | Path) -> None:
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        find_pipeline(source)


SHARED = "Someone/shared/ckpts/decoder"


@pytest.mark.parametrize(
    "place",
    ["text/Someone/shared", "Someone/shared", "shared"],
    ids=["within", "beside", "without its owner"],
)
def test_a_model_of_another_repository_is_found_on_disk(tmp_path: Path, place: str) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / place / "ckpts").mkdir(parents=True)
    (tmp_path / place / "ckpts" / "decoder.json").write_text("{}")
    found = find_model(tmp_path / "text", SHARED)
    assert found.with_suffix(".json").samefile(tmp_path / place / "ckpts" / "decoder.json")


def test_else_its_two_files_alone_are_taken_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(source: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.append((source, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_model(tmp_path, SHARED) == tmp_path / "snapshot" / "ckpts" / "decoder"
    assert asked == [("Someone/shared", ["ckpts/decoder.json", "ckpts/decoder.safetensors"])]

    def fail(source: str, **_: object) -> str:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(
        ConnectionError, match=f"takes {SHARED} from another repository .* folder shared beside"
    ):
        find_model(tmp_path, SHARED)
    with pytest.raises(FileNotFoundError, match=r"decoder\.json is missing; copy the folder whole"):
        find_model(tmp_path, "ckpts/decoder")
