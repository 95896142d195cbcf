"""The decoder on a device of its own."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.devices import usable_device
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.streaming_codec import CodecSizes, StreamingCodec


class CodecOn:
    """A codec that lies on ``device``: what it is given goes there, and encoded latents come back to where
    their pixels were. Frames stay, as they are for the host.
    """

    def __init__(self, codec: StreamingCodec, device: torch.device) -> None:
        self._codec, self._device = codec, device

    @property
    def config(self) -> CodecSizes:
        return self._codec.config

    def memory(self, batch: int, height: int, width: int) -> Any:
        return self._codec.memory(batch, height, width)

    def decode_chunk(
        self, latents: Float[Tensor, " batch frame channel h w"], memory: Any
    ) -> tuple[Float[Tensor, " batch pixel_frame 3 height width"], Any]:
        return self._codec.decode_chunk(latents.to(self._device), memory)

    def decode(
        self, latents: Float[Tensor, " batch frame channel h w"]
    ) -> Float[Tensor, " batch pixel_frame 3 height width"]:
        return self._codec.decode(latents.to(self._device))

    def encode(
        self, pixels: Float[Tensor, " batch pixel_frame 3 height width"]
    ) -> Float[Tensor, " batch frame channel h w"]:
        return self._codec.encode(pixels.to(self._device)).to(pixels.device)

    def pixel_frames(self, latent_frames: int) -> int:
        return self._codec.pixel_frames(latent_frames)


def decode_on(model: VideoModel, device: str) -> None:
    """Move a model's codec, for streams begun from now on.

    With ``overlapped_decoding`` the two devices work at the same time, without it in turn.

    Raises:
        ValueError: there is no such device.
    """
    codec = model.codec
    assert isinstance(codec, nn.Module)  # as loaded
    place = usable_device(device)
    model.codec = CodecOn(codec.to(place), place)
    if model.acceleration.compiled:
        model.warm_decoder()
