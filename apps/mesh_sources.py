"""What `fewstep mesh` makes meshes of: files, folders and words on the command line, as models take them."""

import argparse
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from fewstep.modalities.image.pipeline import ImageModel
    from fewstep.modalities.shape3d.conditioning.pictures import Matting
    from fewstep.modalities.shape3d.conditioning.sources import Kind, Source

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LONGEST_PATH = 255

Named = Path | tuple[Path, ...] | str
"""A picture's file, several of one object, or words."""


def named(text: str) -> list[Named]:
    """What one argument stands for; a folder for all the pictures in it."""
    from fewstep.modalities.video.text import check_prompt

    if len(text) > LONGEST_PATH:  # more than a file system takes: these can only be words
        return [check_prompt(text)]
    path = Path(text)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not found:
            raise FileNotFoundError(f"{text} holds no pictures ({', '.join(PICTURES)})")
        return [*found]
    if path.is_file():
        return [path]
    if path.suffix.lower() in PICTURES or "/" in text:
        raise FileNotFoundError(f"no picture {text}")
    if path.suffix and not re.search(r"\s", text):
        raise FileNotFoundError(f"no file {text}; if these are words, say more than one")
    return [check_prompt(text)]


def together(sources: Sequence[Named]) -> tuple[Path, ...]:
    """All of them as one object's."""
    pictures = tuple(source for source in sources if isinstance(source, Path))
    if len(pictures) < 2 or len(pictures) < len(sources):
        raise ValueError("--together needs two pictures or more of one object, and no words")
    return pictures


def file_name(source: Named) -> str:
    """Of the file, without ending; of the first of several."""
    if isinstance(source, tuple):
        source = source[0]
    if isinstance(source, Path):
        return source.stem
    return re.sub(r"[^a-z0-9]+", "-", source.lower()).strip("-")[:60] or "mesh"


def told(source: Named) -> str:
    """For people."""
    return ", ".join(map(str, source)) if isinstance(source, tuple) else str(source)


class Sources:
    """Opens one after another, so that no more than one object's pictures are in memory.

    Args:
        kind: what the mesh model takes. For one of pictures, words are drawn by the image model first.
    """

    def __init__(self, kind: "Kind", args: argparse.Namespace) -> None:
        self.kind, self.args = kind, args

    def check(self, sources: Sequence[Named]) -> None:
        """Raise a ValueError for pictures where the model takes words."""
        other = [source for source in sources if not isinstance(source, str)]
        if self.kind == "words" and other:
            raise ValueError(
                f"{told(other[0])}: {self.args.model} makes meshes of words; say what it should be"
            )

    def of(self, source: Named, seed: int) -> "Source":
        """As the model takes it; a ValueError for a file that is no picture."""
        if isinstance(source, tuple):
            return [self._opened(path) for path in source]
        if isinstance(source, Path):
            return self._opened(source)
        return source if self.kind == "words" else self._drawn(source, seed)

    def _opened(self, path: Path) -> "Image":
        from PIL import Image, UnidentifiedImageError

        from fewstep.modalities.shape3d.conditioning.pictures import cut_out

        try:
            picture = Image.open(path)
            picture.load()
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path.name} cannot be read as a picture ({error})") from error
        return cut_out(picture, self._matting) if self.args.cut_out else picture

    def _drawn(self, words: str, seed: int) -> "Image":
        from PIL import Image

        return Image.fromarray(self._image_model.generate([words], seeds=[seed])[0])

    @cached_property
    def _image_model(self) -> "ImageModel":
        from fewstep.modalities.image.pipeline import ImageModel

        return ImageModel.load(self.args.image_model, device=self.args.device)

    @cached_property
    def _matting(self) -> "Matting":
        from fewstep.modalities.shape3d.conditioning.pictures import rembg_matting

        return rembg_matting()
