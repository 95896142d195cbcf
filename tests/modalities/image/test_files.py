"""Folders of captioned pictures: anybody's, and shards."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.modalities.image.files import load_pictures, write_shard


def plain(red: int, height: int = 8, width: int = 8) -> np.ndarray:
    """A picture whose red tells which one it is."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = red
    return pixels


def save(path: Path, pixels: np.ndarray, caption: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two loose pictures and a shard of two."""
    root = tmp_path / "pictures"
    save(root / "a.png", plain(10), "a dark\npicture\n")
    save(root / "b.png", plain(20))
    record = {"captions": ["a red one", "one in red"], "attributes": {"colour": "red"}, "more": 1}
    (root / "b.json").write_text(json.dumps(record))
    entries = [(f"{number}", plain(number), {"captions": [f"number {number}"]}) for number in (30, 40)]
    write_shard(root / "c.tar", entries)
    return root


def test_loose_files_and_shards_come_in_the_order_of_their_names(folder: Path):
    pictures = load_pictures(folder, size=8)
    assert pictures.pixels[:, 0, 0, 0].tolist() == [10, 20, 30, 40]
    assert [label.name for label in pictures.labels] == ["a", "b", "30", "40"]
    assert pictures.labels[0].captions == ("a dark picture",)
    assert pictures.labels[1].captions == ("a red one", "one in red")
    assert pictures.labels[1].attributes == {"colour": "red"}
    assert pictures.labels[3].captions == ("number 40",)


def test_the_cache_is_written_once_and_gives_the_same(folder: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    direct, written = load_pictures(folder, size=8), load_pictures(folder, size=8, cache=cache)
    stamps = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    mapped = load_pictures(folder, size=8, cache=cache)
    for other in (written, mapped):
        assert np.array_equal(direct.pixels, other.pixels)
        assert direct.labels == other.labels
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == stamps
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".raw"]


def test_a_changed_picture_caption_or_size_is_read_anew(folder: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    load_pictures(folder, size=8, cache=cache)
    save(folder / "a.png", plain(99), "another caption")
    changed = load_pictures(folder, size=8, cache=cache)
    assert changed.pixels[0, 0, 0, 0] == 99
    assert changed.labels[0].captions == ("another caption",)
    assert load_pictures(folder, size=4, cache=cache).pixels.shape == (4, 4, 4, 3)


def test_other_shapes_are_cut_to_their_middle_and_scaled(tmp_path: Path):
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 8:24] = 200
    save(tmp_path / "wide.png", wide, "a bar")
    tall = wide.transpose(1, 0, 2)
    save(tmp_path / "tall.png", np.ascontiguousarray(tall), "a bar")
    for size in (4, 16):
        assert load_pictures(tmp_path, size=size).pixels.min() == 200


def test_transparency_becomes_white_and_grey_becomes_rgb(tmp_path: Path):
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:4] = (10, 20, 30, 255)
    save(tmp_path / "a.png", clear, "half")
    save(tmp_path / "b.png", np.full((8, 8), 77, np.uint8), "grey")
    half, grey = load_pictures(tmp_path, size=8).pixels
    assert half[0, 0].tolist() == [10, 20, 30]
    assert half[7, 7].tolist() == [255, 255, 255]
    assert (grey == 77).all()


def test_equal_entries_make_equal_shards_and_no_partial_file_stays(tmp_path: Path):
    entries = [("one", plain(1), {"captions": ["one"]})]
    write_shard(tmp_path / "a.tar", entries)
    write_shard(tmp_path / "b.tar", entries)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as shard:
        assert shard.getnames() == ["one.png", "one.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]


def test_a_stopped_writer_leaves_no_shard(tmp_path: Path):
    def entries():
        yield "one", plain(1), {"captions": ["one"]}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a.tar", entries())
    assert not (tmp_path / "a.tar").exists()
    with pytest.raises(ValueError, match="holds no picture"):
        load_pictures(tmp_path, size=8)


@pytest.mark.parametrize("cached", [False, True])
def test_a_broken_picture_is_named(folder: Path, tmp_path: Path, cached: bool):
    cache = tmp_path / "cache" if cached else None
    whole = (folder / "a.png").read_bytes()
    for broken in (b"not a picture", whole[:40]):
        (folder / "a.png").write_bytes(broken)
        with pytest.raises(ValueError, match=r"a.png cannot be decoded; save it anew or remove it"):
            load_pictures(folder, size=8, cache=cache)
    assert cache is None or not list(cache.iterdir())


def test_a_picture_without_captions_is_named(folder: Path):
    (folder / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"a.png has no captions; put a.txt or a.json beside it"):
        load_pictures(folder, size=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no caption"),
        ("{}", "holds no caption"),
        ('{"captions": []}', "holds no caption"),
        ('{"captions": "a red one"}', "holds no caption"),
        ('{"captions": [" "]}', "holds no caption"),
        ('{"captions": [3]}', "holds no caption"),
        ('{"captions": ["a"], "heldout_captions": "b"}', "holds no caption"),
    ],
)
def test_a_broken_sidecar_is_named(folder: Path, text: str, message: str):
    (folder / "b.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_pictures(folder, size=8)
    assert "b.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_or_foreign_text_file_is_named(folder: Path):
    for data in (b"", b"\xff\xfe\xfa"):
        (folder / "a.txt").write_bytes(data)
        with pytest.raises(ValueError, match=r"a.txt"):
            load_pictures(folder, size=8)


def test_a_broken_shard_is_named(folder: Path):
    whole = (folder / "c.tar").read_bytes()
    (folder / "c.tar").write_bytes(b"not a tar file at all")
    with pytest.raises(ValueError, match=r"c.tar is not a readable tar file"):
        load_pictures(folder, size=8)
    (folder / "c.tar").write_bytes(whole[:700])
    with pytest.raises(ValueError, match=r"c.tar"):
        load_pictures(folder, size=8)


def test_a_shard_entry_without_captions_or_a_shard_without_pictures_is_named(tmp_path: Path):
    coded = io.BytesIO()
    Image.fromarray(plain(1)).save(coded, "PNG")
    for name, message in (
        ("x.png", r"s.tar: x.png has no captions; put x.json beside it"),
        ("x.bin", "no picture"),
    ):
        with tarfile.open(tmp_path / "s.tar", "w") as shard:
            member = tarfile.TarInfo(name)
            member.size = len(coded.getvalue())
            shard.addfile(member, io.BytesIO(coded.getvalue()))
        with pytest.raises(ValueError, match=message):
            load_pictures(tmp_path, size=8)


def test_a_folder_without_pictures_none_at_all_or_a_wrong_size_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no picture"):
        load_pictures(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        load_pictures(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="size=0 is not positive"):
        load_pictures(tmp_path, size=0)
