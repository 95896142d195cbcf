"""A reward for steady motion that needs no learned model."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.denoisers import Condition
from fewstep.core.rewards.contract import Reward, check_pixels

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
FLOOR = 1e-3  # a quarter of one 8-bit grey level: below it, a clip stands still


@dataclass(frozen=True, kw_only=True)
class MotionReward(Reward):
    r"""Log of the change between frames, averaged over time, less a penalty for flicker.

    Each frame's luminance is blurred in space and split in time: the average of its neighbourhood with
    weights (1, 2, 1) / 4 is motion, the rest, which alternates from frame to frame, is flicker. With
    :math:`m_n` the mean absolute change of the first from frame n to the next, m its mean over the clip, and
    f the mean absolute value of the second,

    .. math:: r = \Big\langle \min\Big(\log\frac{m_n + \delta}{m_{real} + \delta}, c\Big) \Big\rangle_n
        - \lambda \max\Big(\frac{f}{m + f + \delta} - f_{real}, 0\Big)

    The logarithm is taken before the mean over time, so that one cut does not pay for a still clip.
    A still clip scores :math:`\log(\delta / (m_{real} + \delta))`. Sharp edges that move fast flicker too, so
    real clips have a share to spend; noise has a share of 0.54, and pays more for it than motion can earn.

    The defaults are measured on 96-pixel video at 12 frames per second from a car: median change 0.014, share
    of flicker 0.30, 0.39 at its 95th percentile.

    Args:
        typical_change: m_real, the m of a typical real clip, in units of [0, 1] luminance per frame.
        ceiling: c, the largest log ratio that counts.
        tolerated_flicker: f_real, the share of flicker that real clips stay below.
        flicker_penalty: lambda.
        blur: side of the box filter in pixels, odd.
    """

    name = "motion"
    differentiable = True

    typical_change: float = 0.014
    ceiling: float = math.log(2)
    tolerated_flicker: float = 0.4
    flicker_penalty: float = 30.0
    blur: int = 3

    def __post_init__(self) -> None:
        if self.typical_change <= 0:
            raise ValueError(f"typical_change={self.typical_change} must be positive")
        if self.blur < 1 or self.blur % 2 == 0:
            raise ValueError(f"blur={self.blur} must be odd and positive")

    def score(
        self, pixels: Float[Tensor, " batch frame 3 height width"], condition: Condition = None
    ) -> Float[Tensor, " batch"]:
        """One score per clip of at least four frames, in float32; the condition does not enter."""
        check_pixels(pixels, min_frames=4)
        # no matrix product, which autocast would do in bfloat16: its steps are as large as the motion
        weights = pixels.new_tensor(LUMA, dtype=torch.float32)[:, None, None]
        luma = (weights * pixels.float()).sum(2)
        frames = F.avg_pool2d(luma, self.blur, stride=1)
        steady = (frames[:, :-2] + 2 * frames[:, 1:-1] + frames[:, 2:]) / 4
        motion = steady.diff(dim=1).abs().flatten(2).mean(2)
        flicker = (frames[:, 1:-1] - steady).abs().flatten(1).mean(1)
        ratio = torch.log((motion + FLOOR) / (self.typical_change + FLOOR)).clamp(max=self.ceiling)
        share = flicker / (motion.mean(1) + flicker + FLOOR)
        return ratio.mean(1) - self.flicker_penalty * (share - self.tolerated_flicker).clamp(min=0)
