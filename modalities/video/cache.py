"""The stream's memory: a fixed-size ring of keys and values per layer, and sink tokens that absorb what
the ring forgets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.modalities.video.blocks import Handover, KeysValues, Past
from fewstep.modalities.video.rotary import rotate
from fewstep.modalities.video.transformer import VideoTransformer

SinkMode = Literal["none", "first", "ema"]
SinkPosition = Literal["moving", "fixed"]

MOST_FIXED = 1024  # latent frames that Wan's table of positions has, so no student was trained beyond them


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What a chunk sees: ``sink`` frames, then the most recent frames, itself included; ``window`` frames
    in all.

    Frames are latent frames. ``sink_mode``: ``none`` (no sink, whatever ``sink`` says), ``first`` (static
    attention sinks, Xiao et al., 2023), ``ema`` (Reward Forcing, arXiv 2512.04678: frames that leave the
    window are fused into the sink). ``decay`` is the weight the sink keeps at each fusion; 1 is
    ``first``, 0 replaces it. ``sink_position``: ``moving``, right before the window (Reward Forcing), so that
    a stream never ends, or ``fixed``, where the first frames stood (LongLive, arXiv 2509.22622).
    """

    window: int = 12
    chunk: int = 3
    sink: int = 3
    sink_mode: SinkMode = "ema"
    decay: float = 0.9
    sink_position: SinkPosition = "moving"

    def __post_init__(self) -> None:
        if self.sink_position not in ("moving", "fixed"):
            raise ValueError(f"sink_position={self.sink_position!r}: use 'moving' or 'fixed'")
        if self.sink_mode not in ("none", "first", "ema"):
            raise ValueError(f"sink_mode={self.sink_mode!r}: use 'none', 'first' or 'ema'")
        if self.chunk < 1 or self.sink < 0:
            raise ValueError(f"chunk={self.chunk} must be at least 1 and sink={self.sink} at least 0")
        if self.window < self.sink_frames + self.chunk:
            raise ValueError(
                f"window={self.window} must hold the sink and one chunk: "
                f"at least {self.sink_frames + self.chunk} frames"
            )
        if not 0.0 <= self.decay <= 1.0:
            raise ValueError(f"decay={self.decay} must lie in [0, 1]")

    @property
    def sink_frames(self) -> int:
        return 0 if self.sink_mode == "none" else self.sink

    @property
    def ring_frames(self) -> int:
        """Past frames that the ring holds beside the sink and the chunk being generated."""
        return self.window - self.sink_frames - self.chunk


MOST_WINDOWS = 4  # positions stay below this many windows


@dataclass(frozen=True)
class Succession:
    """What lets a finished chunk enter the cache in the same pass in which the next one begins.

    Args:
        layers: the past of both, for that one pass.
        past: of the next chunk, for the passes after it.
        positions: of the first frame of either half of the batch.
        finished: the half of the finished chunk, 0 or 1.
    """

    layers: list[Handover]
    past: list[Past]
    positions: tuple[int, int]
    finished: int
    sink: Float[Tensor, " layer 2 batch sink token head head_dim"]
    """With the frames fused into it that the finished chunk pushes out."""


class StreamCache:
    """Keys and values of the past, for all layers at once; constant in size however long the stream.

    Keys are kept normed but un-rotated, so that the average over evicted keys is one of like with like, and
    beside them rotated for attention. Rotations see nothing but distances: frames of the ring keep the
    position they came with, the sink moves along, to stand right before the oldest of them, and now and then
    all positions are counted anew, so that they never run out. The sink is kept in float32: in bfloat16 a
    fusion with decay 0.999 rounds to nothing.

    Frame ``j``, on leaving the ring, is fused into sink frame ``j mod sink``; with ``sink == chunk`` that
    is the token-by-token fusion of Reward Forcing.

    Tensors: ring ``[layer, 2, batch, ring_frame, token, head, head_dim]`` (2 is keys and values), sink
        likewise.
    """

    def __init__(
        self, network: VideoTransformer, config: CacheConfig, *, batch: int, height: int, width: int
    ) -> None:
        self.config = config
        self._network = network
        self._size = (height, width)
        sizes = network.config
        rows, columns = sizes.patch_size
        token = (height // rows) * (width // columns)
        device = next(network.parameters()).device

        def room(frames: int, dtype: torch.dtype) -> Tensor:
            shape = (sizes.num_layers, 2, batch, frames, token, sizes.num_heads, sizes.head_dim)
            return torch.zeros(shape, dtype=dtype, device=device)

        dtype = network.dtype
        self._sink = room(config.sink_frames, torch.float64 if dtype == torch.float64 else torch.float32)
        self._sink_before = torch.zeros_like(self._sink)
        self._ring = room(config.ring_frames, dtype)
        # what attention sees: sink, ring, and room for the present chunk, head by head and rotated; of two
        # sides, [layer, 2, side, batch, head, frame, token, head_dim], one is the past of the next chunk
        self._sides = room(config.window, dtype).permute(0, 1, 2, 5, 3, 4, 6).contiguous()[:, :, None]
        self._side = 0
        self._dtype = dtype
        # absolute frame indices, oldest first
        self._ring_ids: list[int] = []
        self._new_ids: list[int] = []  # those whose rotated keys are not written yet
        self._origin = 0  # the absolute frame whose position is 0
        self._ring_start = config.sink_frames  # an absolute frame that stands first in the ring
        self._is_current = False
        self.frames_seen = 0
        self.evicted: list[int] = []
        """Absolute indices of the frames that the last ``commit`` pushed out of the ring."""

    @property
    def position(self) -> int:
        """Temporal position of the next chunk's first frame: everything it can see stands before it."""
        return self.frames_seen - self._origin

    @property
    def past_frames(self) -> int:
        """Latent frames that the next chunk can see beside its own."""
        return self._sink_used + len(self._ring_ids)

    @property
    def sink_ids(self) -> list[int]:
        """The first frames, whose keys and values the sink was initialised with."""
        return list(range(self._sink_used))

    @property
    def window_ids(self) -> list[int]:
        """Absolute indices of the latent frames in the ring, oldest first."""
        return list(self._ring_ids)

    @property
    def sink(self) -> Float[Tensor, " layer 2 batch sink token head head_dim"]:
        """A copy of the sink's keys (index 0) and values (index 1)."""
        return self._sink[:, :, :, : self._sink_used].clone()

    @property
    def _sink_used(self) -> int:
        return min(self.frames_seen, self.config.sink_frames)

    @property
    def sink_drift(self) -> float:
        """1 - cosine between the sink before and after the last ``commit``; 0 while the sink fills."""
        # layer by layer: a product takes at most 2^31 numbers, and Wan's 14B has as many at 832x480
        before, sink = self._sink_before.flatten(1), self._sink.flatten(1)
        if not sink.numel() or self.frames_seen <= self.config.sink_frames:
            return 0.0
        # torch.cosine_similarity takes 11 ms for these sizes on a CPU, longer than a denoising step; dot 0.1
        pairs = ((sink, before), (sink, sink), (before, before))
        both, own, earlier = (sum(map(torch.dot, one, other)) for one, other in pairs)
        return max(0.0, 1.0 - float(both / (own * earlier) ** 0.5))

    @torch.no_grad()
    def past(self) -> list[Past] | None:
        """Rotated keys and values of sink and ring for every layer, with room for the next chunk; the same
        for all passes over it. Valid until the next ``commit``.
        """
        if self.past_frames == 0:
            return None
        if not self._is_current:
            if sink := self._sink_used:
                place = self._sink_place(self.frames_seen)
                self._write(self._sink[:, :, :, :sink].to(self._dtype), range(place, place + sink), 0)
            for frame in self._new_ids:
                slot = self._slot(frame)
                place = frame - self._origin
                entry = self._ring[:, :, :, slot : slot + 1]
                self._write(entry, range(place, place + 1), self.config.sink_frames + slot)
            self._new_ids, self._is_current = [], True
        return self._pasts(self._side)

    def _pasts(self, side: int) -> list[Past]:
        token = self._sides.shape[6]
        return [Past(room, self.past_frames * token) for room in self._sides[:, :, side].flatten(4, 5)]

    def _write(self, entry: Tensor, positions: range, slot: int, side: int | None = None) -> None:
        """Frames ``[layer, 2, batch, frame, token, head, head_dim]``, rotated, from ``slot`` on."""
        keys, values = entry.unbind(1)
        rotation = self._network.rotation(positions, *self._size).unflatten(0, (len(positions), -1))
        side = self._side if side is None else side
        own = self._sides[:, :, side, :, :, slot : slot + len(positions)]
        own[:, 0] = rotate(keys, rotation).movedim(4, 2)
        own[:, 1] = values.movedim(4, 2)

    @torch.no_grad()
    def succession(self, frames: int) -> Succession | None:
        """For one pass over a finished chunk of ``frames`` frames and the next; changes nothing that
        ``state`` holds. None where the two have to pass one after the other: before the window is full,
        where the ring is shorter than a chunk, and where positions are about to be counted anew.
        """
        config, position = self.config, self.position
        slot = config.sink_frames + self._slot(self.frames_seen) if config.ring_frames else 0
        if (
            frames != config.chunk
            or config.ring_frames < frames
            or len(self._ring_ids) < config.ring_frames
            or slot + frames > config.sink_frames + config.ring_frames
            or self._counts_anew(self.frames_seen + frames)
        ):
            return None
        self.past()
        if self._sides.shape[2] == 1:
            self._sides = torch.cat([self._sides, torch.zeros_like(self._sides)], dim=2)
        other, sink = 1 - self._side, self._sink.clone()
        for oldest in self._ring_ids[:frames]:
            self._fuse(sink, oldest, self._ring[:, :, :, self._slot(oldest)])
        here, there = self._sides[:, :, self._side], self._sides[:, :, other]
        for kept in (slice(config.sink_frames, slot), slice(slot + frames, -config.chunk)):
            there[:, :, :, :, kept] = here[:, :, :, :, kept]
        if config.sink_frames:
            place = self._sink_place(self.frames_seen + frames)
            places = range(place, place + config.sink_frames)
            self._write(sink.to(self._dtype), places, 0, other)
        token = self._sides.shape[6]
        tokens = frames * token
        own, arriving = self.past_frames * token, slot * token
        layers = [
            Handover(room, slice(own, own + tokens), slice(arriving, arriving + tokens), self._side)
            for room in self._sides.flatten(2, 3).flatten(4, 5)
        ]
        positions = (position, position + frames) if self._side == 0 else (position + frames, position)
        return Succession(layers, self._pasts(other), positions, self._side, sink)

    def _sink_place(self, frames_seen: int) -> int:
        """Position of the sink's first frame once this many frames were seen."""
        if self.config.sink_position == "moving":
            return frames_seen - self._origin - self.past_frames
        if frames_seen + self.config.chunk > MOST_FIXED:
            raise ValueError(
                f"a sink at a fixed position ends at {MOST_FIXED} latent frames; reset the stream, or use "
                "sink_position='moving'"
            )
        return -self._origin

    def _counts_anew(self, frames_seen: int) -> bool:
        """Whether positions are counted anew once this many frames were seen."""
        return frames_seen - self._origin + self.config.chunk > MOST_WINDOWS * self.config.window

    @torch.no_grad()
    def commit(self, fresh: list[KeysValues], frames: int, succession: Succession | None = None) -> None:
        """Take in the clean-context keys and values of a finished chunk of ``frames`` frames, forgetting
        the oldest. With ``succession`` they come from the pass that it was made for.
        """
        new = torch.stack([torch.stack(layer) for layer in fresh]).detach().unflatten(3, (frames, -1))
        expected = self._sink.shape[:3] + self._sink.shape[4:]
        if new.shape[:3] + new.shape[4:] != expected:
            raise ValueError(
                f"keys and values {tuple(new.shape)} do not fit this cache: without frames {tuple(expected)}"
            )
        # first what may fail for want of memory, which leaves sink and ring alone; then what is only copied
        sink = self._sink_before if succession is None else succession.sink
        if succession is None:
            sink.copy_(self._sink)
        arriving = dict(enumerate(new.unbind(3), self.frames_seen))
        ring_ids, evicted = list(self._ring_ids), []
        for frame, entry in arriving.items():
            if frame < self.config.sink_frames:
                sink[:, :, :, frame] = entry
            elif self.config.ring_frames == 0:
                evicted.append(frame)
                self._fuse(sink, frame, entry)
            else:
                ring_ids.append(frame)
                if len(ring_ids) > self.config.ring_frames:
                    oldest = ring_ids.pop(0)
                    evicted.append(oldest)
                    if succession is None:
                        leaving = arriving.get(oldest, self._ring[:, :, :, self._slot(oldest)])
                        self._fuse(sink, oldest, leaving)
        for frame in ring_ids[-frames:]:
            if frame in arriving:
                self._ring[:, :, :, self._slot(frame)] = arriving[frame]
        self._sink_before, self._sink = self._sink, sink
        self._ring_ids, self.evicted = ring_ids, evicted
        self.frames_seen += frames
        arrived = range(self.frames_seen - frames, self.frames_seen)
        self._new_ids = [frame for frame in self._ring_ids if frame in self._new_ids or frame in arrived]
        self._is_current = False
        if succession is not None:
            self._side, self._new_ids, self._is_current = 1 - self._side, [], True
        if self._counts_anew(self.frames_seen):
            self._origin = self.frames_seen - self.past_frames
            self._new_ids = list(self._ring_ids)

    def forget_ring(self) -> int:
        """Drop the frames in the ring as if they were still to come; the sink stays. Returns their number."""
        count = len(self._ring_ids)
        if count:
            self.frames_seen -= count
            self._ring_start = self.frames_seen
            self._ring_ids, self._new_ids, self.evicted, self._is_current = [], [], [], False
        return count

    def _slot(self, frame: int) -> int:
        """Of the ring: filled from its start, next to the sink, so that what is filled is one piece."""
        return (frame - self._ring_start) % self.config.ring_frames

    def _fuse(self, sink: Tensor, frame: int, entry: Tensor) -> None:
        if self.config.sink_mode == "ema" and self.config.sink > 0:
            sink[:, :, :, frame % self.config.sink].lerp_(entry.to(sink.dtype), 1.0 - self.config.decay)

    def state(self) -> dict:
        """Everything that changes, copied: restoring it undoes a commit."""
        return {
            "sink": self._sink.clone(),
            "ring": self._ring.clone(),
            "ring_ids": list(self._ring_ids),
            "frames_seen": self.frames_seen,
            "origin": self._origin,
            "ring_start": self._ring_start,
            "evicted": list(self.evicted),
        }

    def load_state(self, state: dict) -> None:
        """Go back to a ``state()`` of a cache of the same sizes."""
        self._sink.copy_(state["sink"])
        self._ring.copy_(state["ring"])
        self._ring_ids = list(state["ring_ids"])
        self._new_ids = list(self._ring_ids)
        self.frames_seen, self._origin = state["frames_seen"], state["origin"]
        self._ring_start = state["ring_start"]
        self.evicted = list(state["evicted"])
        self._is_current = False

    def snapshot(self) -> Callable[[], None]:
        """What puts everything back as it is now, to the last bit, in the same memory. ``state`` leaves out
        the rotated keys, which a pass over two chunks rounds otherwise than ``past`` does.
        """
        state, before, side = self.state(), self._sink_before.clone(), self._side
        rotated, new_ids, is_current = self._sides[:, :, side].clone(), list(self._new_ids), self._is_current

        def restore() -> None:
            self.load_state(state)
            self._sink_before.copy_(before)
            self._sides[:, :, side].copy_(rotated)
            self._side, self._new_ids, self._is_current = side, list(new_ids), is_current

        return restore
