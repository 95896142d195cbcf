"""Guidance that keeps the length of the velocity (Qwen-Image)."""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoisers import Condition, Denoiser
from fewstep.core.layouts import append_dims
from fewstep.core.paths import Path, Prediction
from fewstep.modalities.image.pretrained.architectures import pack, unpack


class PredictingDenoiser(Denoiser, Protocol):
    """A denoiser that also gives its network's own prediction."""

    @property
    def prediction(self) -> Prediction: ...

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor: ...


class NormKeepingGuidance(nn.Module):
    r"""Classifier-free guidance, rescaled per token to the length of the conditional velocity.

    .. math:: u = u_\varnothing + w (u_c - u_\varnothing), \quad \hat u = u \|u_c\| / \|u\|

    What Qwen-Image's pipeline does; a token is 2x2 latents. Not affine, so it depends on the prediction
    that it acts on, unlike ``fewstep.core.denoisers.Guided``.

    Args:
        denoiser: its network predicts the velocity.
        guidance_scale: w; 1 is off and never calls the null branch.
        null_condition: with batch size 1, or that of ``x_t``.
        interval: times (low, high), ends included, where w applies; outside it w is 1.
    """

    def __init__(
        self,
        denoiser: PredictingDenoiser,
        *,
        guidance_scale: float,
        null_condition: Condition,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError(f"interval={interval} is empty; give (low, high) with low < high")
        self.denoiser = denoiser
        self.guidance_scale = guidance_scale
        self.null_condition = null_condition
        self.interval = interval or (-torch.inf, torch.inf)

    @property
    def path(self) -> Path:
        return self.denoiser.path

    def forward(
        self, x_t: Float[Tensor, " batch c h w"], t: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, " batch c h w"]:
        inside = (t >= self.interval[0]) & (t <= self.interval[1])
        if self.guidance_scale == 1 or not bool(inside.any()):
            return self.denoiser(x_t, t, condition)
        conditional = pack(self.denoiser.predict(x_t, t, condition).float())
        null = pack(self.denoiser.predict(x_t, t, self.null_condition).float())
        combined = null + self.guidance_scale * (conditional - null)
        ratio = conditional.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True)
        guided = torch.where(append_dims(inside, combined), combined * ratio, conditional)
        prediction = unpack(guided, x_t.shape[-2], x_t.shape[-1])
        return self.path.to_x0(prediction, x_t, append_dims(t, x_t), self.denoiser.prediction)
