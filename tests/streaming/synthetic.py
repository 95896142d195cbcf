"""A stand-in for a video model: moving shapes drawn from the prompt's hash, with the same contract."""

import hashlib
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewstep.streaming.engine import Deliver

MANOEUVRES, SPEEDS, PALETTES = (
    ("left", "centre", "right", "weave"),
    ("slow", "fast"),
    ("meadow", "desert", "snow", "night"),
)
STEERING = {
    "axes": [
        {
            "name": "manoeuvre",
            "values": list(MANOEUVRES),
            "keys": {"ArrowLeft": "left", "ArrowRight": "right"},
        },
        {"name": "speed", "values": list(SPEEDS), "keys": {"ArrowUp": "fast", "ArrowDown": "slow"}},
        {"name": "palette", "values": list(PALETTES), "keys": {}},
    ],
    "prompts": {
        f"{manoeuvre}|{speed}|{palette}": f"a car drives {speed}ly on the {manoeuvre}, {palette}"
        for manoeuvre in MANOEUVRES
        for speed in SPEEDS
        for palette in PALETTES
    },
    "default": {"manoeuvre": "centre", "speed": "slow", "palette": "meadow"},
}
FAULTS = ("raise", "memory", "hang", "die")
WINDOW, SINK, LATENT_PER_CHUNK = 9, 3, 3


@dataclass(frozen=True)
class SyntheticWindow:
    sink_frames: list[int]
    window_frames: list[int]
    evicted: list[int]
    decay: float
    drift: float


@dataclass(frozen=True)
class SyntheticChunk:
    index: int
    frames: np.ndarray
    seconds: dict[str, float]
    window: SyntheticWindow


def refuse() -> "SyntheticModel":
    raise ValueError("no such model")


def never() -> "SyntheticModel":
    time.sleep(3600.0)
    raise AssertionError("an hour is over")


def logged(level: str, as_json: bool, *arguments: Any) -> "SyntheticModel":
    """In a process that logs as the server does."""
    from fewstep.apps.logs import configure

    configure(level, as_json=as_json)
    return SyntheticModel(*arguments)


class SyntheticModel:
    """`chunk_seconds` is slept per chunk; `fail_at`, and prompts with a word of `FAULTS`, inject faults."""

    card: dict[str, Any]
    steering: dict[str, Any]

    def __init__(
        self, fps: float = 60.0, chunk_seconds: float = 0.0, fail_at: int | None = None, size: int = 96
    ) -> None:
        self.fps = fps
        self.height = self.width = size
        self.chunk_frames = 6
        self.card = {"name": "synthetic", "example_prompts": ["a red ball over the sea", "snow at night"]}
        self.steps_available = (1, 2, 4)
        self.default_steps = 2
        self.default_prompt = STEERING["prompts"]["centre|slow|meadow"]
        self.steering = STEERING
        self.encoded: list[str] = []
        self.streams = 0
        self.warmed = 0
        self._textures: dict[bytes, np.ndarray] = {}
        self._chunk_seconds = chunk_seconds
        self._fail_at = fail_at

    def encode_prompt(self, text: str) -> bytes:
        if "refuse me" in text:
            raise ValueError("the text encoder refuses this prompt; write another")
        self.encoded.append(text)
        for fault in FAULTS:
            if fault in text:
                return fault.encode().ljust(32, b"!")
        return hashlib.sha256(text.encode()).digest()

    def texture(self, features: bytes) -> np.ndarray:
        """Two colours and a disc, all from the prompt's hash."""
        if features not in self._textures:
            y, x = np.mgrid[0 : self.height, 0 : self.width] / self.height
            sky, ground, ball = (
                np.frombuffer(features[i : i + 3], np.uint8).astype(float) for i in (0, 3, 6)
            )
            mix = np.clip((y - 0.45) * 6 + 0.3 * np.sin(8 * x), 0, 1)[..., None]
            picture = sky * (1 - mix) + ground * mix
            disc = np.clip((0.2 - np.hypot(x - 0.5, y - 0.4)) * self.height, 0, 1)[..., None]
            self._textures[features] = (picture * (1 - disc) + ball * disc).astype(np.uint8)
        return self._textures[features]

    def warm_text(self) -> None:
        self.warmed += 1

    def stream(self, features: bytes, *, seed: int, steps: int, sink_mode: str) -> "SyntheticStream":
        self.streams += 1
        fail_at = self._fail_at if self.streams == 1 else None
        style = hashlib.sha256(f"{steps}|{sink_mode}".encode()).digest()
        return SyntheticStream(self, features, seed, style, self._chunk_seconds, fail_at)


class SyntheticStream:
    def __init__(
        self,
        model: SyntheticModel,
        features: bytes,
        seed: int,
        style: bytes,
        chunk_seconds: float,
        fail_at: int | None,
    ) -> None:
        self._model, self._features, self._style = model, features, style
        self._chunk_seconds, self._fail_at = chunk_seconds, fail_at
        self.reset(seed)

    def set_prompt(self, features: bytes) -> None:
        self._features = features

    def reset(self, seed: int) -> None:
        self._seed, self._index = seed, 0
        # Depends on the whole past, as a cache does: a lost or doubled chunk changes every later one.
        self._memory = hashlib.sha256(self._style).digest()

    def step(self, deliver: Deliver | None = None) -> SyntheticChunk:
        if self._index == self._fail_at or self._features.startswith(b"raise"):
            raise RuntimeError("injected fault")
        if self._features.startswith(b"memory"):
            raise MemoryError("injected")
        if self._features.startswith(b"hang"):
            time.sleep(60.0)
        if self._features.startswith(b"die"):
            os._exit(9)
        began = time.perf_counter()
        time.sleep(self._chunk_seconds)
        before = self._memory
        self._memory = hashlib.sha256(self._memory + self._features + str(self._seed).encode()).digest()
        count, first = self._model.chunk_frames, self._index * self._model.chunk_frames
        frames = np.stack([self._draw(first + number) for number in range(count)])
        newest = (self._index + 1) * LATENT_PER_CHUNK
        if deliver is not None:
            try:
                deliver(frames)
            except BaseException:
                self._memory = before
                raise
        window = SyntheticWindow(
            sink_frames=list(range(min(SINK, newest))),
            window_frames=list(range(max(SINK, newest - WINDOW), newest)),
            evicted=list(range(max(SINK, newest - WINDOW - LATENT_PER_CHUNK), max(SINK, newest - WINDOW))),
            decay=0.9,
            drift=0.02 + 0.02 * np.sin(self._index / 3).item(),
        )
        index, self._index = self._index, self._index + 1
        seconds = {"denoise": time.perf_counter() - began, "cache": 0.0, "decode": 0.0}
        return SyntheticChunk(index, frames, seconds, window)

    def _draw(self, frame: int) -> np.ndarray:
        """The prompt's texture, moved by an amount that tells frame, seed and past apart; cheap to draw."""
        past = int.from_bytes(self._memory[:4], "little")
        moved = (2 * frame + past % 64 + self._seed % 7, frame + past // 64 % 32)
        return np.roll(self._model.texture(self._features), moved, axis=(1, 0))
