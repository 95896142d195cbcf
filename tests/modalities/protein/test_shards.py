"""Shards: exact, resumable, divided without overlap, and only ever of one run."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.modalities.protein.lengths import lengths_of, parsed_lengths
from fewstep.modalities.protein.shards import Shard, ShardFolder, seeds_of


def opened(folder: Path, **changed: object) -> ShardFolder:
    return ShardFolder.open(folder, {"seed": 0, "length": "9", **changed}, count=7, size=3)


def made(folder: ShardFolder, shard: int) -> Shard:
    numbers = folder.designs(shard)
    rng = np.random.default_rng(shard)
    chains = [rng.standard_normal((5 + number, 3)) for number in numbers]
    return Shard(chains=chains, rows=[{"design": number, "valid": True} for number in numbers])


def test_a_shard_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = opened(tmp_path / "run")
    assert [list(folder.designs(shard)) for shard in range(len(folder))] == [[0, 1, 2], [3, 4, 5], [6]]
    written = made(folder, 1)
    folder.write(1, written)
    found = folder.read(1)
    assert found.rows == written.rows
    for one, other in zip(found.chains, written.chains, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_what_is_finished_is_not_made_again_and_what_is_not_is(tmp_path: Path) -> None:
    folder = opened(tmp_path / "run")
    for shard in (0, 2):
        folder.write(shard, made(folder, shard))
    again = opened(tmp_path / "run")
    assert again.unfinished() == [1]
    assert not again.write_manifest()
    again.write(1, made(again, 1))
    assert again.unfinished() == []
    assert again.write_manifest()
    assert [row["design"] for _, shard in again.finished() for row in shard.rows] == list(range(7))
    lines = [json.loads(line) for line in (tmp_path / "run" / "manifest.jsonl").read_text().splitlines()]
    assert [line["designs"] for line in lines] == [[0, 3], [3, 6], [6, 7]]


@pytest.mark.parametrize(
    "harm",
    [
        "data cut",
        "data changed",
        "data gone",
        "record gone",
        "record empty",
        "record cut",
        "record of others",
    ],
)
def test_a_shard_that_was_harmed_is_made_again(tmp_path: Path, harm: str) -> None:
    folder = opened(tmp_path / "run")
    folder.write(0, made(folder, 0))
    data, record = (tmp_path / "run" / "shards" / f"shard-000000.{kind}" for kind in ("safetensors", "json"))
    content = data.read_bytes()
    match harm:
        case "data cut":
            data.write_bytes(content[:-1])
        case "data changed":
            data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "data gone":
            data.unlink()
        case "record gone":
            record.unlink()
        case "record empty":
            record.write_bytes(b"")
        case "record cut":
            record.write_text("{}")
        case _:
            record.write_text(json.dumps(json.loads(record.read_text()) | {"settings": "another"}))
    assert folder.unfinished() == [0, 1, 2]


def test_another_run_in_the_same_folder_is_refused_with_what_differs(tmp_path: Path) -> None:
    opened(tmp_path / "run")
    opened(tmp_path / "run")
    with pytest.raises(ValueError, match=r"other settings \(seed was 0, now 1\)"):
        opened(tmp_path / "run", seed=1)
    with pytest.raises(ValueError, match=r"fold was None, now 'mainly alpha'"):
        opened(tmp_path / "run", fold="mainly alpha")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds files but no run\.json"):
        opened(tmp_path / "photos")


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_settings_that_are_damaged_are_said_to_be(tmp_path: Path, content: str) -> None:
    opened(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(content)
    for read in (opened, ShardFolder.existing):
        with pytest.raises(ValueError, match=r"run\.json is damaged"):
            read(tmp_path / "run")


def test_a_worker_that_comes_a_moment_later_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Path.iterdir

    def first_one_begins(folder: Path):  # between the second one's two looks
        monkeypatch.setattr(Path, "iterdir", listed)
        folder.rmdir()
        opened(folder).write(2, made(opened(folder), 2))
        return listed(folder)

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(Path, "iterdir", first_one_begins)
    assert opened(tmp_path / "run").unfinished() == [0, 1]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 60), size=st.integers(1, 9), workers=st.integers(1, 7))
def test_workers_share_all_the_designs_and_none_twice(
    tmp_path_factory: pytest.TempPathFactory, count: int, size: int, workers: int
) -> None:
    folder = ShardFolder(tmp_path_factory.getbasetemp() / "nowhere", count, size, "digest")
    shared = [folder.unfinished(worker=worker, workers=workers) for worker in range(workers)]
    designs = sorted(design for mine in shared for shard in mine for design in folder.designs(shard))
    assert designs == list(range(count))


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 200), low=st.integers(4, 90), wide=st.integers(0, 60))
def test_a_range_is_covered_evenly_and_in_order(count: int, low: int, wide: int) -> None:
    found = lengths_of(parsed_lengths(f"{low}-{low + wide}"), count)
    assert len(found) == count
    assert found == sorted(found)
    counts = np.bincount(found, minlength=low + wide + 1)[low:]
    assert len(counts) == wide + 1
    assert counts.max() - counts.min() <= 1


def test_lists_and_ranges_share_the_designs() -> None:
    assert lengths_of(parsed_lengths("60"), 2) == [60, 60]
    assert lengths_of(parsed_lengths("60, 80"), 5) == [60, 60, 80, 80, 80]
    assert lengths_of(parsed_lengths("10,20-21"), 4) == [10, 10, 20, 21]
    assert lengths_of(parsed_lengths("60,80,90"), 1) == [80]
    assert seeds_of(range(3, 6), 10) == [13, 14, 15]


@pytest.mark.parametrize("text", ["", "a", "60-", "80-60", "60;70", "3", "50-99999", "-5"])
def test_what_is_no_length_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="length"):
        parsed_lengths(text)
