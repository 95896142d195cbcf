"""The causal video diffusion transformer, in the layout and with the parameter names of Wan 2.1.

Axis names: ``batch``, ``frame`` (latent frames), ``token`` (tokens of one latent frame), ``text``,
``dim``, ``head``, ``head_dim``. The small bundled preset and Wan2.1-T2V-1.3B are the same class with
different numbers (``TransformerConfig``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar, cast

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn

from fewstep.modalities.video.blocks import (
    MODULATIONS,
    Attention,
    Block,
    Handover,
    Head,
    Kernels,
    KeysValues,
    Modulation,
    Past,
)
from fewstep.modalities.video.rotary import RotaryEmbedding, rotate

SINUSOID_THETA = 10_000.0  # of the embedding of times
TIME_SCALE = 1000.0  # Wan 2.1 embeds 1000 t

Position = int | Int[Tensor, ""]
"""Temporal, of a chunk's first frame; as a tensor where no Python number may enter a pass."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of a ``VideoTransformer``; the defaults are those of Wan2.1-T2V-1.3B.

    ``two_times`` adds an embedding of the length t - r of an interval, for students that predict average
    velocities; it starts at zero, so that such a student begins as the network it is copied from.
    """

    dim: int = 1536
    ffn_dim: int = 8960
    num_layers: int = 30
    num_heads: int = 12
    channels: int = 16
    patch_size: tuple[int, int] = (2, 2)
    freq_dim: int = 256
    text_dim: int = 4096
    eps: float = 1e-6
    two_times: bool = False

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(f"dim={self.dim} must be an even multiple of num_heads={self.num_heads}")
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim={self.freq_dim} must be even: one half is cosine, one half sine")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


class Modulations(NamedTuple):
    """What given times do to every layer: they depend on nothing else and may be kept."""

    blocks: list[Modulation]
    time: Float[Tensor, " batch frame dim"]

    def then(self, other: "Modulations") -> "Modulations":
        """Those of these samples and of ``other`` in one batch."""
        pairs = zip(self.blocks, other.blocks, strict=True)
        blocks = [Modulation(*map(torch.cat, zip(*pair, strict=True))) for pair in pairs]
        return Modulations(blocks, torch.cat([self.time, other.time]))


class VideoTransformer(nn.Module):
    """Velocity of a noised latent video under the linear path (Wan 2.1, arXiv 2503.20314; Self-Forcing,
    arXiv 2506.08009).

    Parameters carry the names of the original Wan checkpoints. ``forward`` sees a whole clip,
    bidirectional or under a frame mask; ``forward_chunk`` sees one chunk and the rotated keys and values
    of its past, which is how both the streaming student and its training rollout run.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        patch = (1, *config.patch_size)
        self.patch_embedding = nn.Conv3d(config.channels, config.dim, kernel_size=patch, stride=patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, config.dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.dim, config.dim),
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        if config.two_times:
            last = nn.Linear(config.dim, config.dim)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.interval_embedding = nn.Sequential(nn.Linear(config.freq_dim, config.dim), nn.SiLU(), last)
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, MODULATIONS * config.dim))
        self.blocks = nn.ModuleList(
            Block(dim=config.dim, ffn_dim=config.ffn_dim, num_heads=config.num_heads, eps=config.eps)
            for _ in range(config.num_layers)
        )
        rows, columns = config.patch_size
        self.head = Head(dim=config.dim, patch_values=rows * columns * config.channels, eps=config.eps)
        self.rope = RotaryEmbedding(config.head_dim)

    @property
    def _layers(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    def fuse_projections(self) -> None:
        """One product for queries, keys and values of every layer, for networks no longer trained."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.fuse_projections()

    def separate_projections(self) -> None:
        """Undo ``fuse_projections``, for whoever replaces the weights."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.separate_projections()

    def use_kernels(self, kernels: Kernels | None) -> None:
        """Compute norms and what follows them through ``kernels``; without gradients."""
        for module in self.modules():
            if isinstance(module, (Attention, Block, Head)):
                module.kernels = kernels

    def compile_blocks(self) -> None:
        """Let torch compile the layers, all of them as one: a pass takes the time of one compilation. For the
        passes of a stream, whose shapes are few.
        """
        for block in self._layers:
            block.compile(dynamic=False)

    def rotation(self, frames: range, height: int, width: int) -> Complex[Tensor, " tokens 1 pairs"]:
        """Rotations for latent frames of ``height`` x ``width`` latent pixels at temporal positions
        ``frames``.
        """
        rows, columns = self.config.patch_size
        return self.rope(
            frames,
            height // rows,
            width // columns,
            dtype=self.dtype,
            device=self.patch_embedding.weight.device,
        )

    def text_keys_values(
        self, context: Float[Tensor, " batch text feature"] | Float[Tensor, " batch frame text feature"]
    ) -> list[KeysValues]:
        """Cross-attention keys and values of every layer; they depend on the prompt alone, so a stream
        computes them once.

        Zero-padded text is attended to without a mask, as Wan does it.
        """
        embedded = self.text_embedding(context.to(self.dtype))
        embedded = embedded.flatten(0, 1) if embedded.ndim == 4 else embedded
        return [_by_heads(block.cross_attn.keys_values(embedded)) for block in self._layers]

    def modulations(self, t: Float[Tensor, " batch frame"]) -> Modulations:
        """What ``forward_chunk`` makes of times; for those that come again while the weights stay."""
        time, modulation = self._embed_time(t)
        return Modulations([block.modulate(modulation, self.dtype) for block in self._layers], time)

    def forward(
        self,
        x_t: Float[Tensor, " batch frame channel height width"],
        t: Float[Tensor, " batch"] | Float[Tensor, " batch frame"],
        condition: Float[Tensor, " batch text feature"] | Float[Tensor, " batch frame text feature"],
        r: Float[Tensor, " batch"] | Float[Tensor, " batch frame"] | None = None,
        *,
        frame_mask: Bool[Tensor, " frame frame"] | None = None,
        copies: int = 1,
    ) -> Float[Tensor, " batch frame channel height width"]:
        """Velocity of a whole clip. ``frame_mask[i, j]`` lets frame i attend to frame j; None is full
        attention.

        ``r`` is the other end of the interval over which the velocity is averaged, for networks of two times;
        None is r = t. ``copies`` clips may stand one after the other at the same temporal positions (teacher
        forcing: clean, then noised).
        """
        frames, height, width = x_t.shape[1], *x_t.shape[3:]
        rotation = self.rotation(range(frames // copies), height, width).repeat(copies, 1, 1)
        mask = None
        if frame_mask is not None:
            tokens = rotation.shape[0] // frames
            mask = frame_mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)[None, None]
        nothing = [None] * len(self.blocks)
        return self._run(x_t, t, self.text_keys_values(condition), rotation, nothing, mask, r)[0]

    def features(
        self,
        x_t: Float[Tensor, " batch frame channel height width"],
        t: Float[Tensor, " batch"] | Float[Tensor, " batch frame"],
        condition: Float[Tensor, " batch text feature"] | Float[Tensor, " batch frame text feature"],
    ) -> Float[Tensor, " batch frame token dim"]:
        """Hidden tokens half-way through the network, for discriminators; the upper half does not run."""
        rotation = self.rotation(range(x_t.shape[1]), *x_t.shape[3:])
        x, modulation = self._embed(x_t), self._embed_time(_per_frame(t, x_t))[1]
        half = len(self.blocks) // 2
        texts = self.text_keys_values(condition)
        for block, text in zip(self._layers[:half], texts[:half], strict=True):
            x = block(x, modulation, text, rotation, None, None)[0]
        return x

    def forward_chunk(
        self,
        x_t: Float[Tensor, " batch frame channel height width"],
        t: Float[Tensor, " batch"] | Float[Tensor, " batch frame"] | Modulations,
        text: list[KeysValues],
        *,
        past: Sequence[KeysValues | Past] | None,
        position: Position,
        keep: bool = True,
    ) -> tuple[Float[Tensor, " batch frame channel height width"], list[KeysValues]]:
        """Velocity of one chunk whose first frame stands at temporal ``position``, and its un-rotated
        keys and values; without ``keep`` an empty list, and no memory for those of all layers.
        """
        rotation = self._rotation_of(x_t, position)
        return self._run(x_t, t, text, rotation, past or [None] * len(self.blocks), None, keep=keep)

    def forward_successive(
        self,
        x: Float[Tensor, " samples frame channel height width"],
        t: Modulations,
        text: list[KeysValues],
        *,
        past: Sequence[Handover],
        positions: tuple[int, int],
    ) -> tuple[Float[Tensor, " batch frame channel height width"], list[KeysValues]]:
        """``chunk_keys_values`` of a finished chunk and ``forward_chunk`` of the one after it, in one pass.

        One half of the samples is the finished chunk (``past`` says which), the other half the next;
        ``positions`` are of either half's first frame. Returns the velocity of the next chunk, and the
        un-rotated keys and values of the finished one.
        """
        frames, size, batch = x.shape[1], x.shape[3:], len(x) // 2
        ranges = [range(position, position + frames) for position in positions]
        halves = [self.rotation(places, *size) for places in ranges]
        rotation = torch.stack(halves).repeat_interleave(batch, 0) if batch > 1 else torch.stack(halves)
        finished = past[0].finished
        done, new = (slice(batch * half, batch * (half + 1)) for half in (finished, 1 - finished))

        hidden, fresh = self._embed(x), []
        for block, time, words, layer in zip(self._layers[:-1], t.blocks, text, past, strict=False):
            hidden, current = block(hidden, time, words, rotation, layer, None)
            fresh.append(KeysValues(current.keys[done], current.values[done]))
        last, time, words = self._layers[-1], t.blocks[-1], text[-1]
        keys, values = last.keys_values(hidden[done], time.of(done))
        fresh.append(KeysValues(keys, values))
        seen = past[-1].past_with(KeysValues(rotate(keys, halves[finished]), values))
        words = KeysValues(words.keys[new], words.values[new])
        out = last(hidden[new], time.of(new), words, halves[1 - finished], seen, None)[0]
        return self._unpatchify(self.head(out, t.time[new]), *size).to(x.dtype), fresh

    def chunk_keys_values(
        self,
        x_t: Float[Tensor, " batch frame channel height width"],
        t: Float[Tensor, " batch"] | Float[Tensor, " batch frame"] | Modulations,
        text: list[KeysValues],
        *,
        past: Sequence[KeysValues | Past] | None,
        position: Position,
    ) -> list[KeysValues]:
        """The second result of ``forward_chunk`` without the work that only the first one needs: most of
        the last block, and the head.
        """
        rotation = self._rotation_of(x_t, position)
        x, times = self._embed(x_t), self._of_blocks(t, x_t)[0]
        fresh = []
        pasts = past or [None] * len(text)
        lower = zip(self._layers[:-1], times[:-1], text[:-1], pasts[:-1], strict=True)
        for block, block_time, block_text, block_past in lower:
            x, current = block(x, block_time, block_text, rotation, block_past, None)
            fresh.append(current)
        return [*fresh, self._layers[-1].keys_values(x, times[-1])]

    def _rotation_of(self, x_t: Tensor, position: Position) -> Tensor:
        frames, size = x_t.shape[1], x_t.shape[3:]
        if isinstance(position, int):
            return self.rotation(range(position, position + frames), *size)
        rows, columns = self.config.patch_size
        return self.rope.at(position, frames, size[0] // rows, size[1] // columns, dtype=self.dtype)

    def _run(
        self,
        x_t: Tensor,
        t: Tensor | Modulations,
        text: list[KeysValues],
        rotation: Tensor,
        past: Sequence[KeysValues | Past | None],
        mask: Tensor | None,
        r: Tensor | None = None,
        *,
        keep: bool = False,
    ) -> tuple[Tensor, list[KeysValues]]:
        x = self._embed(x_t)
        times, time = self._of_blocks(t, x_t, r)
        fresh = []
        for block, block_time, block_text, block_past in zip(self._layers, times, text, past, strict=True):
            x, current = block(x, block_time, block_text, rotation, block_past, mask)
            if keep:
                fresh.append(current)
        return self._unpatchify(self.head(x, time), *x_t.shape[-2:]).to(x_t.dtype), fresh

    def _of_blocks(
        self, t: Tensor | Modulations, x_t: Tensor, r: Tensor | None = None
    ) -> tuple[Sequence[Tensor | Modulation], Tensor]:
        """What each block takes as its time, and what the head does."""
        if isinstance(t, Modulations):
            return t.blocks, t.time
        time, modulation = self._embed_time(_per_frame(t, x_t), None if r is None else _per_frame(r, x_t))
        return [modulation] * len(self.blocks), time

    def _embed(self, x_t: Tensor) -> Tensor:
        """Tokens ``[batch, frame, token, dim]``."""
        height, width = x_t.shape[3:]
        rows, columns = self.config.patch_size
        if height % rows or width % columns:
            raise ValueError(
                f"latents of {height}x{width} do not divide into patches of {rows}x{columns}; crop them"
            )
        return self.patch_embedding(x_t.to(self.dtype).transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)

    def _embed_time(self, t: Tensor, r: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The embedded time ``[batch, frame, dim]``, and its modulations of the blocks."""
        time = self.time_embedding(self._sinusoid(t))
        if self.config.two_times:
            time = time + self.interval_embedding(self._sinusoid(t - (t if r is None else r)))
        elif r is not None:
            raise ValueError("r was given to a network of one time; build it with two_times=True")
        return time, self.time_projection(time).unflatten(-1, (MODULATIONS, -1))

    def _sinusoid(self, t: Float[Tensor, " batch frame"]) -> Float[Tensor, " batch frame freq"]:
        half = self.config.freq_dim // 2
        frequencies = SINUSOID_THETA ** (-torch.arange(half, dtype=torch.float64, device=t.device) / half)
        angles = (TIME_SCALE * t.double())[..., None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.dtype)

    def _unpatchify(self, x: Tensor, height: int, width: int) -> Tensor:
        rows, columns = self.config.patch_size
        batch, frames = x.shape[:2]
        x = x.view(batch, frames, height // rows, width // columns, rows, columns, self.config.channels)
        return x.permute(0, 1, 6, 2, 4, 3, 5).reshape(batch, frames, self.config.channels, height, width)


def _per_frame(t: Tensor, x_t: Tensor) -> Tensor:
    return t if t.ndim == 2 else t[:, None].expand(x_t.shape[:2])


def _by_heads(text: KeysValues) -> KeysValues:
    """The same numbers, in memory head by head, as the products of attention want them."""
    return KeysValues(*(part.transpose(1, 2).contiguous().transpose(1, 2) for part in text))


Transformer = TypeVar("Transformer", bound=VideoTransformer)


def with_two_times(network: Transformer) -> Transformer:
    """A copy that also takes the other end of an interval, and at first does not care about it."""
    student = type(network)(replace(network.config, two_times=True))
    missing = student.load_state_dict(network.state_dict(), strict=False).missing_keys
    assert all(name.startswith("interval_embedding.") for name in missing)
    return student
