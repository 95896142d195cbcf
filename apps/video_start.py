"""`fewstep video --start`: the picture or video that a generated one goes on from."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

    from fewstep.modalities.video.pipeline import VideoModel

VIDEOS = (".mp4", ".mov", ".mkv", ".webm")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def start_latents(model: "VideoModel", path: Path) -> "Tensor":
    """What a stream of the model begins from: the picture standing still for a chunk, or the last frames of
    the video, as many whole chunks as the model's window holds.

    Every student can: clean frames enter the cache as its own do. None of them was trained to redraw a
    noised video, which takes other checkpoints.

    Raises:
        FileNotFoundError, ValueError: no such file, or none that can be read.
    """
    most = model.codec.pixel_frames(model.cache_config.window)
    frames = start_frames(path, height=model.height, width=model.width, fps=model.fps, last=most)
    return model.encode_start(frames)


def start_frames(path: Path, *, height: int, width: int, fps: float, last: int) -> "np.ndarray":
    """uint8 ``[N, height, width, 3]``, scaled to cover that size, cut to its centre, at that frame rate; of a
    video the ``last`` ones.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--start: no file {path}")
    suffix = path.suffix.lower()
    if suffix in VIDEOS:
        from fewstep.modalities.video.files import decode_video

        return decode_video(path, height=height, width=width, fps=fps, decoder="auto", last=last)[0]
    if suffix not in PICTURES:
        raise ValueError(
            f"--start: {path.name} is neither a picture nor a video; known are "
            f"{', '.join((*PICTURES, *VIDEOS))}"
        )
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(_in_bytes(picture)).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"--start: {path.name} is no whole picture ({error}); save it again") from error
    return np.asarray(ImageOps.fit(upright, (width, height)))[None]


def _in_bytes(picture: "Image") -> "Image":
    """Of 16 bits per pixel the upper 8, which is their scale; Pillow alone would cut off all above 255."""
    return picture.point(lambda level: level / 256).convert("L") if picture.mode.startswith("I") else picture


def described(path: Path) -> dict[str, Any]:
    """For a video's metadata: without this very file its pixels do not come again."""
    with path.open("rb") as file:
        return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
