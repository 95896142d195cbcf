"""The layers of the video transformer, with the parameter names of Wan 2.1.

Axis names: ``batch``, ``frame`` (latent frames), ``token`` (tokens of one latent frame), ``tokens`` (of all
frames), ``text``, ``dim``, ``head``, ``head_dim``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.attention import attention
from fewstep.modalities.video.rotary import Rotation, rotate

MODULATIONS = 6  # shift, scale and gate, for self-attention and for the feed-forward layer


class KeysValues(NamedTuple):
    """Keys and values of one layer, ``[batch, tokens, head, head_dim]``."""

    keys: Tensor
    values: Tensor

    def followed_by(self, current: "KeysValues") -> "KeysValues":
        """These and then those of later tokens."""
        return KeysValues(
            torch.cat([self.keys, current.keys], 1), torch.cat([self.values, current.values], 1)
        )

    def beside(self, other: "KeysValues") -> "KeysValues":
        """Those of these samples and of ``other`` in one batch, in memory head by head."""
        pairs = zip(self, other, strict=True)
        return KeysValues(
            *(torch.cat([a.transpose(1, 2), b.transpose(1, 2)]).transpose(1, 2) for a, b in pairs)
        )


@dataclass(frozen=True)
class Past:
    """Keys and values of earlier tokens, in memory that has room for those of the chunk that comes next.

    Without gradients ``followed_by`` writes the chunk's own into that room, as every pass over the chunk
    does anew: what it returns is valid until the next call.

    Args:
        room: keys (0) and values (1), ``[2, batch, head, length + room, head_dim]``.
        length: tokens that are filled in.
    """

    room: Float[Tensor, " 2 batch head tokens head_dim"]
    length: int

    @property
    def keys(self) -> Float[Tensor, " batch past head head_dim"]:
        return self.room[0, :, :, : self.length].transpose(1, 2)

    @property
    def values(self) -> Float[Tensor, " batch past head head_dim"]:
        return self.room[1, :, :, : self.length].transpose(1, 2)

    def followed_by(self, current: KeysValues) -> KeysValues:
        """These and then those of the present chunk."""
        end = self.length + current.keys.shape[1]
        if torch.is_grad_enabled() or end > self.room.shape[3]:
            return KeysValues(self.keys, self.values).followed_by(current)
        # both at once: what compiles two writes makes and copies the whole room for each
        self.room[:, :, :, self.length : end] = torch.stack(current).transpose(2, 3)
        keys, values = self.room[:, :, :, :end].transpose(2, 3).unbind(0)
        return KeysValues(keys, values)


@dataclass(frozen=True)
class Handover:
    """The past of a finished chunk and that of the next one, for one pass over both: samples come in two
    halves, and the next chunk sees the keys and values that the finished one gets in this very pass.

    Args:
        room: keys (0) and values (1), ``[2, 2 * batch, head, tokens, head_dim]``, filled but for what
            follows.
        own: where every sample's own tokens go.
        arriving: where those of the finished chunk go in the past of the next one.
        finished: the half of the finished chunk, 0 or 1.
    """

    room: Float[Tensor, " 2 samples head tokens head_dim"]
    own: slice
    arriving: slice
    finished: int

    def followed_by(self, current: KeysValues) -> KeysValues:
        """What either half attends to; valid until the next call."""
        halves = self.room.unflatten(1, (2, -1))
        for room, part in zip(halves, current, strict=True):
            by_head = part.transpose(1, 2).unflatten(0, (2, -1))
            room[:, :, :, self.own] = by_head
            room[1 - self.finished, :, :, self.arriving] = by_head[self.finished]
        return KeysValues(*self.room.transpose(2, 3).unbind(0))

    def past_with(self, finished: KeysValues) -> Past:
        """The past of the next chunk alone, once the finished one's rotated keys and values have come."""
        room = self.room.unflatten(1, (2, -1))[:, 1 - self.finished]
        for part, own in zip(room, finished, strict=True):
            part[:, :, self.arriving] = own.transpose(1, 2)
        return Past(room, self.own.start)


class Modulation(NamedTuple):
    """What the time does to one block: shift, 1 + scale and gate of either half,
    ``[batch, frame, 1, dim]``.
    """

    attention_shift: Tensor
    attention_scale: Tensor
    attention_gate: Tensor
    feed_forward_shift: Tensor
    feed_forward_scale: Tensor
    feed_forward_gate: Tensor

    def of(self, samples: slice) -> "Modulation":
        """That of some samples."""
        return Modulation(*(part[samples] for part in self))


class RMSNorm(nn.Module):
    """Root-mean-square norm over the whole model dimension, before the split into heads, as Wan
    normalises queries and keys.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, " *batch dim"]) -> Float[Tensor, " *batch dim"]:
        return rms_norm(x, self.weight, self.eps).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float32, or float64 for float64 input; ``weight`` has the last dimensions of ``x``."""
    wide = x if x.dtype == torch.float64 else x.float()
    return F.rms_norm(wide, wide.shape[-1:], eps=eps) * weight.to(wide.dtype)


@runtime_checkable
class Kernels(Protocol):
    """Norms and what follows them in one call; the layers below say in PyTorch what they compute."""

    def norm_modulated(
        self,
        x: Float[Tensor, " batch frame token dim"],
        shift: Float[Tensor, " batch frame 1 dim"],
        scale: Float[Tensor, " batch frame 1 dim"],
        eps: float,
    ) -> Float[Tensor, " batch frame token dim"]: ...

    def norm_rotated(
        self,
        pair: Float[Tensor, " batch tokens 2 dim"],
        weights: Float[Tensor, " 2 dim"],
        rotation: Rotation,
        heads: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def norm_modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float, kernels: Kernels | None) -> Tensor:
    """Layer norm without weights of its own, times ``scale``, plus ``shift``."""
    if kernels is not None:
        return kernels.norm_modulated(x, shift, scale, eps)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), scale)


def _for_pairs(rotation: Tensor) -> Tensor:
    """That of tokens, for queries and keys side by side behind the tokens."""
    return rotation.unsqueeze(-3 if rotation.is_complex() else -4)


class Attention(nn.Module):
    """Projections and query/key norms of one attention layer; who attends to what is the caller's
    business.
    """

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)
        self._fused: tuple[Tensor, Tensor, Tensor] | None = None
        self.kernels: Kernels | None = None

    @torch.no_grad()
    def fuse_projections(self) -> None:
        """Put the weights of queries, keys and values into one matrix, of which each becomes a part: one
        product instead of three. For networks that are no longer trained.
        """
        layers = (self.q, self.k, self.v)
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        for layer, part, own in zip(layers, weight.chunk(3), bias.chunk(3), strict=True):
            layer.weight.data, layer.bias.data = part, own
        self._fused = weight, bias, torch.stack([self.norm_q.weight, self.norm_k.weight])

    def separate_projections(self) -> None:
        """Each of the three its own product again."""
        self._fused = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Attention":
        self._fused = None  # moved or converted, the parameters are no longer parts of one matrix
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fused": None}  # nor in a copy

    def queries(self, x: Float[Tensor, " batch tokens dim"]) -> Float[Tensor, " batch tokens head head_dim"]:
        return self.norm_q(self.q(x)).unflatten(-1, (self.num_heads, -1))

    def keys_values(self, x: Float[Tensor, " batch tokens dim"]) -> KeysValues:
        """Normed, un-rotated keys, and values: averaging evicted keys only means something before
        rotation.
        """
        keys = self.norm_k(self.k(x)).unflatten(-1, (self.num_heads, -1))
        return KeysValues(keys, self.v(x).unflatten(-1, (self.num_heads, -1)))

    def rotated_queries_keys_values(
        self, x: Float[Tensor, " batch tokens dim"], rotation: Rotation
    ) -> tuple[Float[Tensor, " batch tokens head head_dim"], KeysValues, KeysValues]:
        """Rotated queries; keys and values with the keys rotated; and what ``keys_values`` gives."""
        if self._fused is None:
            pair, values = torch.stack([self.q(x), self.k(x)], dim=2), self.v(x)
            weights = torch.stack([self.norm_q.weight, self.norm_k.weight])
        else:
            weight, bias, weights = self._fused
            pair, values = F.linear(x, weight, bias).unflatten(-1, (3, -1)).split((2, 1), dim=2)
        values = values.view(*x.shape[:2], self.num_heads, -1)
        if self.kernels is not None:
            turned = self.kernels.norm_rotated(pair, weights, rotation, self.num_heads, self.norm_q.eps)
            return turned[0], KeysValues(turned[1], values), KeysValues(turned[2], values)
        normed = rms_norm(pair, weights, self.norm_q.eps).unflatten(-1, (self.num_heads, -1))
        queries, keys = rotate(normed, _for_pairs(rotation)).to(values.dtype).unbind(2)
        return queries, KeysValues(keys, values), KeysValues(normed[:, :, 1].to(values.dtype), values)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.o(attention(queries, keys, values, mask=mask).flatten(-2))


class Block(nn.Module):
    """Self-attention, text cross-attention and feed-forward, modulated per frame by the time embedding."""

    def __init__(self, *, dim: int, ffn_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.self_attn = Attention(dim, num_heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps=eps)
        self.cross_attn = Attention(dim, num_heads, eps)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, MODULATIONS, dim) / dim**0.5)
        self.kernels: Kernels | None = None

    def modulate(
        self, time_modulation: Float[Tensor, " batch frame 6 dim"], dtype: torch.dtype
    ) -> Modulation:
        """The block's own modulation at these times; it depends on nothing else."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (
            (self.modulation[:, None] + time_modulation).to(dtype).unsqueeze(3).unbind(2)
        )
        return Modulation(shift_a, 1 + scale_a, gate_a, shift_f, 1 + scale_f, gate_f)

    def forward(
        self,
        x: Float[Tensor, " batch frame token dim"],
        time: Float[Tensor, " batch frame 6 dim"] | Modulation,
        text: KeysValues,
        rotation: Tensor,
        past: KeysValues | Past | Handover | None,
        mask: Bool[Tensor, " 1 1 query key"] | None,
    ) -> tuple[Float[Tensor, " batch frame token dim"], KeysValues]:
        """The new hidden state, and this layer's un-rotated keys and values of the tokens of ``x``.

        ``past`` holds rotated keys and values of earlier tokens; ``text`` those of the prompt, for the
        whole sample (batch equal to that of ``x``) or for each frame (batch times frame).
        """
        own = time if isinstance(time, Modulation) else self.modulate(time, x.dtype)
        tokens = norm_modulated(x, own.attention_shift, own.attention_scale, self.eps, self.kernels).flatten(
            1, 2
        )
        queries, seen, current = self.self_attn.rotated_queries_keys_values(tokens, rotation)
        seen = seen if past is None else past.followed_by(seen)
        attended = self.self_attn.attend(queries, seen.keys, seen.values, mask)
        x = torch.addcmul(x, attended.view_as(x), own.attention_gate)

        per_frame = text.keys.shape[0] != x.shape[0]
        tokens = self.norm3(x).flatten(0, 1) if per_frame else self.norm3(x).flatten(1, 2)
        x = x + self.cross_attn.attend(self.cross_attn.queries(tokens), text.keys, text.values).view_as(x)

        calm = norm_modulated(x, own.feed_forward_shift, own.feed_forward_scale, self.eps, self.kernels)
        change = self.ffn(calm)
        return torch.addcmul(x, change, own.feed_forward_gate), current

    def keys_values(
        self,
        x: Float[Tensor, " batch frame token dim"],
        time: Float[Tensor, " batch frame 6 dim"] | Modulation,
    ) -> KeysValues:
        """The un-rotated keys and values that ``forward`` returns, and nothing else."""
        own = time if isinstance(time, Modulation) else self.modulate(time, x.dtype)
        tokens = norm_modulated(x, own.attention_shift, own.attention_scale, self.eps, self.kernels).flatten(
            1, 2
        )
        return self.self_attn.keys_values(tokens)


class Head(nn.Module):
    """Modulated final norm and the projection back to patches."""

    def __init__(self, *, dim: int, patch_values: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.head = nn.Linear(dim, patch_values)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.kernels: Kernels | None = None
        nn.init.zeros_(self.head.weight)

    def forward(
        self, x: Float[Tensor, " batch frame token dim"], time: Float[Tensor, " batch frame dim"]
    ) -> Tensor:
        shift, scale = (self.modulation[:, None] + time[:, :, None]).to(x.dtype).unsqueeze(3).unbind(2)
        return self.head(norm_modulated(x, shift, 1 + scale, self.eps, self.kernels))
