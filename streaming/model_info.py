"""What the live runtime knows of a loaded model: plain data, so that it can come from another process."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewstep.streaming.engine import VideoModel

READ_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Name, rate, size and choices of a model, and which weights it was loaded from."""

    name: str
    fps: float
    width: int
    height: int
    chunk_frames: int
    steps_available: tuple[int, ...]
    default_steps: int
    default_prompt: str
    examples: tuple[str, ...]
    steering: Mapping[str, Any]
    chunks_ahead: int
    """Chunks made before they are handed out: a new prompt shows as many later."""
    weights_sha256: str | None
    """Of the weight files, or None for a model that has none, such as a test's."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ModelInfo":
        """Inverse of `to_dict`, also after a trip through JSON."""
        lists = {name: tuple(fields[name]) for name in ("steps_available", "examples")}
        return cls(**{**fields, **lists})


def describe(model: VideoModel) -> ModelInfo:
    """The facts of a loaded model."""
    folder = getattr(model, "folder", None)
    return ModelInfo(
        name=str(model.card.get("name", "model")),
        fps=model.fps,
        width=model.width,
        height=model.height,
        chunk_frames=model.chunk_frames,
        steps_available=tuple(model.steps_available),
        default_steps=model.default_steps,
        default_prompt=model.default_prompt,
        examples=tuple(str(text) for text in model.card.get("example_prompts", [])),
        steering=model.steering,
        chunks_ahead=chunks_ahead(model),
        weights_sha256=None if folder is None else hash_weights(Path(folder)),
    )


def chunks_ahead(model: VideoModel) -> int:
    """Of its streams; most models make a chunk when it is asked for."""
    return int(getattr(model, "chunks_ahead", 0))


def hash_weights(folder: Path) -> str:
    """SHA-256 over names and contents of a model folder's weights; the teacher is not streamed."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        name = path.relative_to(folder).as_posix()
        if name.startswith("teacher/"):
            continue
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
    return digest.hexdigest()
