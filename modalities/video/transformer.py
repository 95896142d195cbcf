"""The causal video diffusion transformer, in the layout and with the parameter names of Wan 2.1.

Axis names: ``batch``, ``frame`` (latent frames), ``token`` (tokens of one latent frame), ``text``,
``dim``, ``head``, ``head_dim``. The small bundled preset and Wan2.1-T2V-1.3B are the same class with
different numbers (``TransformerConfig``).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar, cast

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.attention import attention

ROPE_THETA = 10_000.0  # Su et al., 2021; the value Wan 2.1 uses on all three axes
TIME_SCALE = 1000.0  # Wan 2.1 embeds 1000 t
MODULATIONS = 6  # shift, scale and gate, for self-attention and for the feed-forward layer


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


class KeysValues(NamedTuple):
    """Keys and values of one layer, ``[batch, token, head, head_dim]``."""

    keys: Tensor
    values: Tensor


class RotaryEmbedding:
    """Rotations for (frame, row, column) positions: interleaved pairs, each axis with its own base.

    Half the head dimension is split as Wan does it: a third (rounded down) for rows, as much for columns,
    the rest for frames.
    """

    def __init__(self, head_dim: int) -> None:
        pairs = head_dim // 2
        spatial = pairs // 3
        self.sizes = (pairs - 2 * spatial, spatial, spatial)
        self._known: dict[tuple, Tensor] = {}

    def __call__(
        self, frames: range, height: int, width: int, *, dtype: torch.dtype, device: torch.device
    ) -> Complex[Tensor, " tokens 1 pairs"]:
        """Rotations of all tokens of ``frames`` in row-major (frame, row, column) order; remembered, a
        stream asks for few.
        """
        key = (frames, height, width, dtype, device)
        if key not in self._known:
            self._known[key] = self._compute(frames, height, width, dtype, device)
        return self._known[key]

    @torch.inference_mode(False)  # remembered, so a training step may be the next to ask
    def _compute(
        self, frames: range, height: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        axes = (range(frames.start, frames.stop), range(height), range(width))
        grids = []
        for axis, (positions, size) in enumerate(zip(axes, self.sizes, strict=True)):
            inverse = ROPE_THETA ** (-torch.arange(size, dtype=torch.float64) / size)
            angles = torch.tensor(list(positions), dtype=torch.float64)[:, None] * inverse
            shape = [1, 1, 1, size]
            shape[axis] = len(positions)
            grids.append(
                torch.polar(torch.ones_like(angles), angles)
                .view(shape)
                .expand(len(frames), height, width, size)
            )
        rotation = torch.cat(grids, dim=-1).reshape(-1, 1, sum(self.sizes))
        return rotation.to(
            device=device, dtype=torch.complex128 if dtype == torch.float64 else torch.complex64
        )


def rotate(
    x: Float[Tensor, " batch tokens head head_dim"], rotation: Complex[Tensor, " tokens 1 pairs"]
) -> Float[Tensor, " batch tokens head head_dim"]:
    """Rotate interleaved pairs of ``x``; computed in float32 (float64 for float64 input), returned in the
    dtype of ``x``.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the whole model dimension, before the split into heads, as Wan
    normalises queries and keys.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, " *batch dim"]) -> Float[Tensor, " *batch dim"]:
        wide = x if x.dtype == torch.float64 else x.float()
        return F.rms_norm(wide, wide.shape[-1:], eps=self.eps).to(x.dtype) * self.weight.to(x.dtype)


class Attention(nn.Module):
    """Projections and query/key norms of one attention layer; who attends to what is the caller's
    business.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def queries(self, x: Float[Tensor, " batch tokens dim"]) -> Float[Tensor, " batch tokens head head_dim"]:
        return self.norm_q(self.q(x)).unflatten(-1, (self.num_heads, -1))

    def keys_values(self, x: Float[Tensor, " batch tokens dim"]) -> KeysValues:
        """Normed, un-rotated keys, and values: averaging evicted keys only means something before
        rotation.
        """
        keys = self.norm_k(self.k(x)).unflatten(-1, (self.num_heads, -1))
        return KeysValues(keys, self.v(x).unflatten(-1, (self.num_heads, -1)))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.o(attention(queries, keys, values, mask=mask).flatten(-2))


class Block(nn.Module):
    """Self-attention, text cross-attention and feed-forward, modulated per frame by the time embedding."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.self_attn = Attention(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = Attention(config)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim),
        )
        self.modulation = nn.Parameter(torch.randn(1, MODULATIONS, config.dim) / config.dim**0.5)

    def _norm(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift

    def forward(
        self,
        x: Float[Tensor, " batch frame token dim"],
        time_modulation: Float[Tensor, " batch frame 6 dim"],
        text: KeysValues,
        rotation: Tensor,
        past: KeysValues | None,
        mask: Bool[Tensor, " 1 1 query key"] | None,
    ) -> tuple[Float[Tensor, " batch frame token dim"], KeysValues]:
        """The new hidden state, and this layer's un-rotated keys and values of the tokens of ``x``.

        ``past`` holds rotated keys and values of earlier tokens; ``text`` those of the prompt, for the
        whole sample (batch equal to that of ``x``) or for each frame (batch times frame).
        """
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (
            (self.modulation[:, None] + time_modulation).to(x.dtype).unsqueeze(3).unbind(2)
        )
        tokens = self._norm(x, shift_a, scale_a).flatten(1, 2)
        current = self.self_attn.keys_values(tokens)
        keys, values = rotate(current.keys, rotation), current.values
        if past is not None:
            keys, values = torch.cat([past.keys, keys], 1), torch.cat([past.values, values], 1)
        queries = rotate(self.self_attn.queries(tokens), rotation)
        x = x + self.self_attn.attend(queries, keys, values, mask).view_as(x) * gate_a

        per_frame = text.keys.shape[0] != x.shape[0]
        tokens = self.norm3(x).flatten(0, 1) if per_frame else self.norm3(x).flatten(1, 2)
        x = x + self.cross_attn.attend(self.cross_attn.queries(tokens), text.keys, text.values).view_as(x)

        return x + self.ffn(self._norm(x, shift_f, scale_f)) * gate_f, current

    def keys_values(
        self, x: Float[Tensor, " batch frame token dim"], time_modulation: Float[Tensor, " batch frame 6 dim"]
    ) -> KeysValues:
        """The un-rotated keys and values that ``forward`` returns, and nothing else."""
        shift, scale = (self.modulation[:, None] + time_modulation).to(x.dtype).unsqueeze(3).unbind(2)[:2]
        return self.self_attn.keys_values(self._norm(x, shift, scale).flatten(1, 2))


class Head(nn.Module):
    """Modulated final norm and the projection back to patches."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        rows, columns = config.patch_size
        self.head = nn.Linear(config.dim, rows * columns * config.channels)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        nn.init.zeros_(self.head.weight)

    def forward(
        self, x: Float[Tensor, " batch frame token dim"], time: Float[Tensor, " batch frame dim"]
    ) -> Tensor:
        shift, scale = (self.modulation[:, None] + time[:, :, None]).to(x.dtype).unsqueeze(3).unbind(2)
        return self.head(F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift)


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
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.rope = RotaryEmbedding(config.head_dim)

    @property
    def _layers(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

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
        return [block.cross_attn.keys_values(embedded) for block in self._layers]

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
        x, _, modulation = self._embed(x_t, t)
        half = len(self.blocks) // 2
        texts = self.text_keys_values(condition)
        for block, text in zip(self._layers[:half], texts[:half], strict=True):
            x = block(x, modulation, text, rotation, None, None)[0]
        return x

    def forward_chunk(
        self,
        x_t: Float[Tensor, " batch frame channel height width"],
        t: Float[Tensor, " batch"] | Float[Tensor, " batch frame"],
        text: list[KeysValues],
        *,
        past: list[KeysValues] | None,
        position: int,
    ) -> tuple[Float[Tensor, " batch frame channel height width"], list[KeysValues]]:
        """Velocity of one chunk whose first frame stands at temporal ``position``, and its un-rotated
        keys and values.
        """
        rotation = self.rotation(range(position, position + x_t.shape[1]), *x_t.shape[3:])
        return self._run(x_t, t, text, rotation, past or [None] * len(self.blocks), None)

    def chunk_keys_values(
        self,
        x_t: Float[Tensor, " batch frame channel height width"],
        t: Float[Tensor, " batch"] | Float[Tensor, " batch frame"],
        text: list[KeysValues],
        *,
        past: list[KeysValues] | None,
        position: int,
    ) -> list[KeysValues]:
        """The second result of ``forward_chunk`` without the work that only the first one needs: most of
        the last block, and the head.
        """
        rotation = self.rotation(range(position, position + x_t.shape[1]), *x_t.shape[3:])
        x, _, modulation = self._embed(x_t, t)
        fresh = []
        pasts = past or [None] * len(text)
        for block, block_text, block_past in zip(self._layers[:-1], text[:-1], pasts[:-1], strict=True):
            x, current = block(x, modulation, block_text, rotation, block_past, None)
            fresh.append(current)
        return [*fresh, self._layers[-1].keys_values(x, modulation)]

    def _run(
        self,
        x_t: Tensor,
        t: Tensor,
        text: list[KeysValues],
        rotation: Tensor,
        past: list[KeysValues] | list[None],
        mask: Tensor | None,
        r: Tensor | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        x, time, modulation = self._embed(x_t, t, r)
        fresh = []
        for block, block_text, block_past in zip(self._layers, text, past, strict=True):
            x, current = block(x, modulation, block_text, rotation, block_past, mask)
            fresh.append(current)
        return self._unpatchify(self.head(x, time), *x_t.shape[-2:]).to(x_t.dtype), fresh

    def _embed(self, x_t: Tensor, t: Tensor, r: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens ``[batch, frame, token, dim]``, the embedded time, and its modulations of the blocks."""
        batch, frames, _, height, width = x_t.shape
        rows, columns = self.config.patch_size
        if height % rows or width % columns:
            raise ValueError(
                f"latents of {height}x{width} do not divide into patches of {rows}x{columns}; crop them"
            )
        t = t if t.ndim == 2 else t[:, None].expand(batch, frames)
        time = self.time_embedding(self._sinusoid(t))
        if self.config.two_times:
            r = t if r is None else r if r.ndim == 2 else r[:, None].expand(batch, frames)
            time = time + self.interval_embedding(self._sinusoid(t - r))
        elif r is not None:
            raise ValueError("r was given to a network of one time; build it with two_times=True")
        modulation = self.time_projection(time).unflatten(-1, (MODULATIONS, -1))
        x = self.patch_embedding(x_t.to(self.dtype).transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)
        return x, time, modulation

    def _sinusoid(self, t: Float[Tensor, " batch frame"]) -> Float[Tensor, " batch frame freq"]:
        half = self.config.freq_dim // 2
        frequencies = ROPE_THETA ** (-torch.arange(half, dtype=torch.float64, device=t.device) / half)
        angles = (TIME_SCALE * t.double())[..., None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.dtype)

    def _unpatchify(self, x: Tensor, height: int, width: int) -> Tensor:
        rows, columns = self.config.patch_size
        batch, frames = x.shape[:2]
        x = x.view(batch, frames, height // rows, width // columns, rows, columns, self.config.channels)
        return x.permute(0, 1, 6, 2, 4, 3, 5).reshape(batch, frames, self.config.channels, height, width)


Transformer = TypeVar("Transformer", bound=VideoTransformer)


def with_two_times(network: Transformer) -> Transformer:
    """A copy that also takes the other end of an interval, and at first does not care about it."""
    student = type(network)(replace(network.config, two_times=True))
    missing = student.load_state_dict(network.state_dict(), strict=False).missing_keys
    assert all(name.startswith("interval_embedding.") for name in missing)
    return student
