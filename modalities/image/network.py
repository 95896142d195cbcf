"""The image transformer of the bundled models: an image is a clip of one frame."""

from jaxtyping import Float
from torch import Tensor

from fewstep.modalities.video.transformer import VideoTransformer


class ImageTransformer(VideoTransformer):
    """Velocity of a noised latent image under the linear path; the layers of ``VideoTransformer``.

    ``r`` is the other end of the interval over which the velocity is averaged, for networks with
    ``two_times``; None is r = t.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # an image has no frames
        self,
        x_t: Float[Tensor, " batch channel height width"],
        t: Float[Tensor, " batch"],
        condition: Float[Tensor, " batch text feature"],
        r: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch channel height width"]:
        return super().forward(x_t[:, None], t, condition, r)[:, 0]

    def features(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x_t: Float[Tensor, " batch channel height width"],
        t: Float[Tensor, " batch"],
        condition: Float[Tensor, " batch text feature"],
    ) -> Float[Tensor, " batch token dim"]:
        """Hidden tokens half-way through the network, for discriminators."""
        return super().features(x_t[:, None], t, condition)[:, 0]
