"""The layers of Wan 2.1's autoencoder, with its parameter names, causal in time.

Axis names: ``frame`` (at the layer's own rate), ``channel``, ``rows``, ``columns``; most layers change them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.attention import attention

LOOK_BACK = 2  # frames before the first that a kernel of three sees

Frames = Float[Tensor, " batch _channel _frame _rows _columns"]


class History:
    """What the layers saw last, asked for in the order in which they run, and written anew for the next call.

    Args:
        kept: of the call before; None at the very beginning, where the past is zeros.
    """

    def __init__(self, kept: Sequence[Tensor] | None) -> None:
        self.first = kept is None
        self.new: list[Tensor] = []
        self._kept = tuple(kept or ())
        self._asked = 0

    def extend(self, x: Tensor, frames: int, *, beyond_first: bool = False) -> Tensor:
        """``x`` after the last ``frames`` frames before it.

        With ``beyond_first`` the very first call is not remembered: the past of the next one is zeros too.
        """
        before = x.new_zeros(*x.shape[:2], frames, *x.shape[3:]) if self.first else self._last()
        whole = torch.cat([before, x], 2)
        # copied, or a view of two frames would keep all of them
        ends = whole[:, :, -frames:].clone(memory_format=torch.contiguous_format)
        self.new.append(before if self.first and beyond_first else ends)
        return whole

    def exchange(self, x: Tensor) -> Tensor | None:
        """The last frame before ``x``, or None at the very beginning; that of ``x`` is remembered."""
        self.new.append(x[:, :, -1:].clone())
        return None if self.first else self._last()

    def _last(self) -> Tensor:
        self._asked += 1
        return self._kept[self._asked - 1]


class CausalConv3d(nn.Conv3d):
    """A convolution that sees no later frame; ``width`` is its kernel in space, ``frames`` in time."""

    def __init__(self, inputs: int, outputs: int, width: int, *, frames: int, stride: int = 1) -> None:
        pad = width // 2
        super().__init__(
            inputs, outputs, (frames, width, width), stride=(stride, 1, 1), padding=(0, pad, pad)
        )

    def with_past(self, x: Frames, history: History) -> Frames:
        return self(history.extend(x, LOOK_BACK))


class ChannelNorm(nn.Module):
    r"""Each pixel's channels at length :math:`\sqrt C`, times ``gamma``."""

    def __init__(self, dim: int, *, axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * (self.gamma.shape[0] ** 0.5 * self.gamma)


class ResidualBlock(nn.Module):
    """Twice norm, SiLU and a causal convolution on a skip."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ChannelNorm(inputs, axes=3),
            nn.SiLU(),
            CausalConv3d(inputs, outputs, 3, frames=3),
            ChannelNorm(outputs, axes=3),
            nn.SiLU(),
            nn.Identity(),  # a dropout in Wan's file
            CausalConv3d(outputs, outputs, 3, frames=3),
        )
        self.shortcut = CausalConv3d(inputs, outputs, 1, frames=1) if inputs != outputs else nn.Identity()

    def forward(self, x: Frames, history: History) -> Frames:
        return self.shortcut(x) + run(self.residual, x, history)


class FrameAttention(nn.Module):
    """Attention of one head over the pixels of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim, axes=2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Frames) -> Frames:
        frames = x.transpose(1, 2).flatten(0, 1)
        pixels = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2)
        # channels next to each other, or the kernels of a GPU do not take them
        q, k, v = pixels.contiguous()[:, :, None].chunk(3, dim=-1)
        seen = attention(q, k, v)[:, :, 0].transpose(1, 2).unflatten(2, frames.shape[2:])
        return x + self.proj(seen).unflatten(0, (x.shape[0], -1)).transpose(1, 2)


class Upsample(nn.Module):
    """Twice as many rows and columns with half the channels, and with ``time`` twice as many frames, but for
    the very first.
    """

    def __init__(self, dim: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(dim, dim // 2, 3, padding=1)
        )
        self.time_conv = CausalConv3d(dim, 2 * dim, 1, frames=3) if time else None

    def forward(self, x: Frames, history: History) -> Frames:
        if self.time_conv is not None:
            whole = history.extend(x, LOOK_BACK, beyond_first=True)
            if not history.first:
                pairs = self.time_conv(whole).unflatten(1, (2, -1))
                x = pairs.movedim(1, 3).flatten(2, 3)
        return in_space(self.resample, x)


class Downsample(nn.Module):
    """Half as many rows and columns, and with ``time`` half as many frames, but for the very first."""

    def __init__(self, dim: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = CausalConv3d(dim, dim, 1, frames=3, stride=2) if time else None

    def forward(self, x: Frames, history: History) -> Frames:
        x = in_space(self.resample, x)
        if self.time_conv is None:
            return x
        before = history.exchange(x)
        return x if before is None else self.time_conv(torch.cat([before, x], 2))


def in_space(layers: nn.Module, x: Frames) -> Frames:
    """Each frame by itself."""
    return layers(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], -1)).transpose(1, 2)


def run(layers: nn.Module, x: Frames, history: History) -> Frames:
    """One layer after the other, each with its own past where it looks back."""
    for layer in layers.children():
        if isinstance(layer, CausalConv3d):
            x = layer.with_past(x, history)
        elif isinstance(layer, ResidualBlock | Upsample | Downsample):
            x = layer(x, history)
        elif isinstance(layer, nn.Sequential):
            x = run(layer, x, history)
        else:
            x = layer(x)
    return x
