"""What a stream asks of an autoencoder: pixels of one chunk, going on where the last chunk ended."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


class DecoderMemory(NamedTuple):
    """What a causal decoder keeps between chunks.

    Args:
        tensors: of the layers that look back, in their order.
        started: whether a latent frame was decoded; the very first one gives fewer pixel frames.
    """

    tensors: tuple[Tensor, ...]
    started: bool


@runtime_checkable
class CodecSizes(Protocol):
    """What is known of a codec without calling it."""

    @property
    def frames_per_latent(self) -> int: ...
    @property
    def channels(self) -> int: ...


@runtime_checkable
class StreamingCodec(Protocol):
    """``VideoCodec``, ``WanVAE`` and ``TAEHV``. Latents are as the diffusion transformer wants them, pixels
    in [-1, 1]; ``memory`` is whatever ``decode_chunk`` returned before, and is never changed in place.
    """

    @property
    def config(self) -> CodecSizes: ...

    def memory(self, batch: int, height: int, width: int) -> Any:
        """That before the first chunk, for latents of ``height`` x ``width``."""
        ...

    def decode_chunk(
        self, latents: Float[Tensor, " batch frame channel h w"], memory: Any
    ) -> tuple[Float[Tensor, " batch pixel_frame 3 height width"], Any]: ...

    def decode(
        self, latents: Float[Tensor, " batch frame channel h w"]
    ) -> Float[Tensor, " batch pixel_frame 3 height width"]: ...

    def encode(
        self, pixels: Float[Tensor, " batch pixel_frame 3 height width"]
    ) -> Float[Tensor, " batch frame channel h w"]: ...

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames of a clip of so many latent frames, from its very beginning."""
        ...
