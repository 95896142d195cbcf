"""The stream's memory: a fixed-size ring of keys and values per layer, and sink tokens that absorb what
the ring forgets.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.modalities.video.transformer import KeysValues, VideoTransformer, rotate

SinkMode = Literal["none", "first", "ema"]


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What a chunk sees: ``sink`` frames, then the most recent frames, itself included; ``window`` frames
    in all.

    Frames are latent frames. ``sink_mode``: ``none`` (no sink, whatever ``sink`` says), ``first`` (static
    attention sinks, Xiao et al., 2023), ``ema`` (Reward Forcing, arXiv 2512.04678: frames that leave the
    window are fused into the sink). ``decay`` is the weight the sink keeps at each fusion; 1 is
    ``first``, 0 replaces it.
    """

    window: int = 12
    chunk: int = 3
    sink: int = 3
    sink_mode: SinkMode = "ema"
    decay: float = 0.9

    def __post_init__(self) -> None:
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


class StreamCache:
    """Keys and values of the past, for all layers at once; constant in size however long the stream.

    Keys are kept normed but un-rotated and are rotated when a chunk begins, at positions counted from the
    sink: positions therefore never exceed ``window`` and the average over evicted keys is one of like
    with like. The sink is kept in float32: in bfloat16 a fusion with decay 0.999 rounds to nothing.

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
        self._ring = room(config.ring_frames, dtype)
        self._dtype = dtype
        # absolute frame indices, oldest first; frame j lies in slot j mod ring size
        self._ring_ids: list[int] = []
        self.frames_seen = 0
        self.evicted: list[int] = []
        """Absolute indices of the frames that the last ``commit`` pushed out of the ring."""
        self._past: list[KeysValues] | None = None

    @property
    def position(self) -> int:
        """Temporal position of the next chunk's first frame: everything it can see stands before it."""
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

    def past(self) -> list[KeysValues] | None:
        """Rotated keys and values of sink and ring for every layer; the same for all passes over one
        chunk.
        """
        if self.position == 0:
            return None
        if self._past is None:
            slots = [frame % self.config.ring_frames for frame in self._ring_ids]
            frames = torch.cat(
                [self._sink[:, :, :, : self._sink_used].to(self._dtype), self._ring[:, :, :, slots]], dim=3
            )
            rotation = self._network.rotation(range(self.position), *self._size)
            layers = frames.flatten(3, 4).unbind(0)
            self._past = [
                KeysValues(rotate(keys, rotation), values)
                for keys, values in (layer.unbind(0) for layer in layers)
            ]
        return self._past

    @torch.no_grad()
    def commit(self, fresh: list[KeysValues], frames: int) -> None:
        """Take in the clean-context keys and values of a finished chunk of ``frames`` frames, forgetting
        the oldest.
        """
        new = torch.stack([torch.stack(layer) for layer in fresh]).detach().unflatten(3, (frames, -1))
        expected = self._sink.shape[:3] + self._sink.shape[4:]
        if new.shape[:3] + new.shape[4:] != expected:
            raise ValueError(
                f"keys and values {tuple(new.shape)} do not fit this cache: without frames {tuple(expected)}"
            )
        self.evicted = []
        for frame, entry in zip(
            range(self.frames_seen, self.frames_seen + frames), new.unbind(3), strict=True
        ):
            if frame < self.config.sink_frames:
                self._sink[:, :, :, frame] = entry
            elif self.config.ring_frames == 0:
                self._evict(frame, entry)
            else:
                if len(self._ring_ids) == self.config.ring_frames:
                    oldest = self._ring_ids.pop(0)
                    self._evict(oldest, self._ring[:, :, :, oldest % self.config.ring_frames])
                self._ring[:, :, :, frame % self.config.ring_frames] = entry
                self._ring_ids.append(frame)
        self.frames_seen += frames
        self._past = None

    def _evict(self, frame: int, entry: Tensor) -> None:
        self.evicted.append(frame)
        if self.config.sink_mode == "ema" and self.config.sink > 0:
            self._sink[:, :, :, frame % self.config.sink].lerp_(
                entry.to(self._sink.dtype), 1.0 - self.config.decay
            )

    def state(self) -> dict:
        """Everything that changes, copied: restoring it undoes a commit."""
        return {
            "sink": self._sink.clone(),
            "ring": self._ring.clone(),
            "ring_ids": list(self._ring_ids),
            "frames_seen": self.frames_seen,
            "evicted": list(self.evicted),
        }

    def load_state(self, state: dict) -> None:
        """Go back to a ``state()`` of a cache of the same sizes."""
        self._sink.copy_(state["sink"])
        self._ring.copy_(state["ring"])
        self._ring_ids = list(state["ring_ids"])
        self.frames_seen = state["frames_seen"]
        self.evicted = list(state["evicted"])
        self._past = None
