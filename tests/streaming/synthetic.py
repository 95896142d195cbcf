"""A stand-in for a video model: moving shapes drawn from the prompt's hash, with the same contract."""

import hashlib
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

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

    def step(self) -> SyntheticChunk:
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
        self._memory = hashlib.sha256(self._memory + self._features + str(self._seed).encode()).digest()
        count, first = self._model.chunk_frames, self._index * self._model.chunk_frames
        frames = np.stack([self._draw(first + number) for number in range(count)])
        newest = (self._index + 1) * LATENT_PER_CHUNK
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
        size, time_s = self._model.height, frame / 12.0
        y, x = np.mgrid[0:size, 0:size] / size
        sky, ground, ball = (
            np.frombuffer(self._features[i : i + 3], np.uint8).astype(float) for i in (0, 3, 6)
        )
        mix = np.clip((y - 0.45) * 6 + 0.3 * np.sin(8 * x + time_s), 0, 1)[..., None]
        picture = sky * (1 - mix) + ground * mix
        for number, byte in enumerate(self._memory[:4]):
            phase = 2 * np.pi * byte / 255 * 0.05 + self._features[10 + number] / 20 + self._seed % 7
            centre_x = 0.5 + 0.35 * np.sin(time_s * (0.5 + 0.2 * number) + phase)
            centre_y = 0.5 + 0.3 * np.cos(time_s * (0.7 + 0.1 * number) + phase)
            disc = np.clip((0.08 + 0.02 * number - np.hypot(x - centre_x, y - centre_y)) * size, 0, 1)[
                ..., None
            ]
            picture = picture * (1 - disc) + np.roll(ball, number) * disc
        return picture.astype(np.uint8)
