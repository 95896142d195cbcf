"""What the live runtime asks of a video model; any object of this shape can be streamed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np

Undo = Callable[[], None]
Deliver = Callable[[np.ndarray], None]
"""Takes a chunk's frames, uint8 `[N, H, W, 3]`."""
SinkMode = Literal["ema", "first", "none"]
SINK_MODES: tuple[SinkMode, ...] = get_args(SinkMode)


@runtime_checkable
class WindowState(Protocol):
    """What the cache holds after a chunk, in absolute latent frame numbers."""

    @property
    def sink_frames(self) -> Sequence[int]: ...
    @property
    def window_frames(self) -> Sequence[int]: ...
    @property
    def evicted(self) -> Sequence[int]: ...
    @property
    def decay(self) -> float: ...
    @property
    def drift(self) -> float:
        """1 - cos(sink after this chunk, sink before it)."""
        ...


@runtime_checkable
class Chunk(Protocol):
    """Frames generated together, uint8 `[N, H, W, 3]`, with the seconds each stage took."""

    @property
    def index(self) -> int: ...
    @property
    def frames(self) -> np.ndarray: ...
    @property
    def seconds(self) -> Mapping[str, float]: ...
    @property
    def window(self) -> WindowState: ...


@runtime_checkable
class VideoStream(Protocol):
    """An endless rollout. Noise is keyed by (seed, chunk index), so only the script decides the pixels."""

    def set_prompt(self, features: Any) -> Undo | None:
        """Take effect from the next `step`. What takes it back if that step raises; None where setting the
        old prompt does.
        """
        ...

    def step(self, deliver: Deliver | None = None) -> Chunk:
        """Generate the next chunk, and call `deliver` once its frames are there: beside the denoising of the
        chunk after it, on another thread, if the stream overlaps its stages. When it raises, be it for
        `deliver`, the state is unchanged; the next call delivers that chunk again.
        """
        ...

    def reset(self, seed: int) -> None:
        """Back to chunk 0 under a new seed, same prompt."""
        ...


@runtime_checkable
class VideoModel(Protocol):
    """A loaded model folder."""

    @property
    def fps(self) -> float: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def chunk_frames(self) -> int: ...
    @property
    def card(self) -> Mapping[str, Any]: ...
    @property
    def steps_available(self) -> Sequence[int]: ...
    @property
    def default_steps(self) -> int: ...
    @property
    def default_prompt(self) -> str: ...
    @property
    def steering(self) -> Mapping[str, Any]: ...

    def encode_prompt(self, text: str) -> Any: ...
    def warm_text(self) -> None: ...
    def stream(self, features: Any, *, seed: int, steps: int, sink_mode: SinkMode) -> VideoStream: ...
