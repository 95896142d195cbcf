"""One chunk's tokens over several processes (sequence, or context, parallelism), for generation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist

from fewstep.modalities.video.blocks import KeysValues, Past
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.streaming_codec import CodecSizes, StreamingCodec
from fewstep.modalities.video.transformer import Modulations, Position, VideoTransformer

GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13


class Shards:
    """What every process of a group has of an axis: an equal piece, in the order of their ranks.

    Args:
        group: of `torch.distributed`, whose default group must have begun; None is that one.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def own(self, x: Tensor, dim: int) -> Tensor:
        """This process's piece of what all of them have."""
        if x.shape[dim] % self.size:
            raise ValueError(
                f"{x.shape[dim]} tokens of a frame do not divide among {self.size} processes; start a number "
                "of them that divides it"
            )
        return x.chunk(self.size, dim)[self.rank]

    def whole(self, x: Tensor, dim: int) -> Tensor:
        """All pieces, from every process; all of them must ask at once."""
        parts = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        GATHER(parts, x.contiguous(), group=self._group)
        return parts.unflatten(0, (self.size, -1)).movedim(0, dim).flatten(dim, dim + 1)

    def whole_frames(self, part: KeysValues, frames: int) -> KeysValues:
        """Keys and values of all tokens in their order, from those of a piece of each frame."""
        both = torch.stack(part).unflatten(2, (frames, -1))
        keys, values = self.whole(both, 3).flatten(2, 3).unbind(0)
        return KeysValues(keys, values)


@dataclass(frozen=True)
class SharedPast(Past):
    """The past, whole, which is followed by the whole present chunk wherever its tokens are computed."""

    shards: Shards
    frames: int

    def followed_by(self, current: KeysValues) -> KeysValues:
        """These and then those of the present chunk, of which ``current`` are this process's tokens."""
        return super().followed_by(self.shards.whole_frames(current, self.frames))


class ShardedTransformer(VideoTransformer):
    """A network whose passes over a chunk are shared out: every process computes the same piece of each frame
    and meets the others in self-attention, where keys and values of the chunk are gathered.

    Queries stay where they are and every process keeps the whole cache. The other way, all-to-all from tokens
    to heads and back (Ulysses, arXiv 2309.14509), would also split the cache by heads. With P processes each
    of them receives 2 (P - 1) / P of what a chunk has of keys here, 4 (P - 1) / P^2 there: the same for two,
    half for four. But it wants a P that divides the heads (12 in the 1.3B student, so not 8), a cache that
    knows of it, and two exchanges per layer of which the second waits for attention. Gathering is exact for
    whatever the cache does between passes (EMA-Sink, fixed sink, refresh), which all processes do alike;
    projections, attention of own queries, cross-attention and feed-forward are split: there lies the work.

    For ``forward_chunk`` and ``chunk_keys_values``, without gradients; whole clips are for one process.

    Args:
        network: whose layers these are; they are not copied.
    """

    def __init__(self, network: VideoTransformer, shards: Shards) -> None:
        with torch.device("meta"):
            super().__init__(network.config)
        for name, layers in network.named_children():
            setattr(self, name, layers)
        self.rope, self._shards = network.rope, shards
        self.eval()

    @torch.no_grad()
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
        """The velocity of the whole chunk, in every process; with ``keep`` an exchange per layer more."""
        shared = self._shared(past, x_t)
        velocity, fresh = super().forward_chunk(x_t, t, text, past=shared, position=position, keep=keep)
        return velocity, self._gathered(fresh, x_t)

    @torch.no_grad()
    def chunk_keys_values(
        self,
        x_t: Float[Tensor, " batch frame channel height width"],
        t: Float[Tensor, " batch"] | Float[Tensor, " batch frame"] | Modulations,
        text: list[KeysValues],
        *,
        past: Sequence[KeysValues | Past] | None,
        position: Position,
    ) -> list[KeysValues]:
        """Those of the whole chunk, in every process."""
        shared = self._shared(past, x_t)
        fresh = super().chunk_keys_values(x_t, t, text, past=shared, position=position)
        return self._gathered(fresh, x_t)

    def _shared(self, past: Sequence[KeysValues | Past] | None, x_t: Tensor) -> list[SharedPast]:
        if past is None:
            shape = (2, len(x_t), self.config.num_heads, 0, self.config.head_dim)
            past = [Past(x_t.new_empty(shape, dtype=self.dtype), 0)] * len(self.blocks)
        pasts = [one if isinstance(one, Past) else _roomless(one) for one in past]
        return [SharedPast(one.room, one.length, self._shards, x_t.shape[1]) for one in pasts]

    def _gathered(self, fresh: list[KeysValues], x_t: Tensor) -> list[KeysValues]:
        return [self._shards.whole_frames(layer, x_t.shape[1]) for layer in fresh]

    def _embed(self, x_t: Tensor) -> Tensor:
        return self._shards.own(super()._embed(x_t), 2)

    def _rotation_of(self, x_t: Tensor, position: Position) -> Tensor:
        whole = super()._rotation_of(x_t, position)
        return self._shards.own(whole.unflatten(0, (x_t.shape[1], -1)), 1).flatten(0, 1)

    def _unpatchify(self, x: Tensor, height: int, width: int) -> Tensor:
        return super()._unpatchify(self._shards.whole(x, 2), height, width)


def _roomless(past: KeysValues) -> Past:
    room = torch.stack(past).transpose(2, 3)
    return Past(room, room.shape[3])


class Unseen:
    """In the place of a codec whose frames nobody looks at: as many of them, black, of one pixel each."""

    def __init__(self, codec: StreamingCodec) -> None:
        self._codec = codec

    @property
    def config(self) -> CodecSizes:
        return self._codec.config

    def memory(self, batch: int, height: int, width: int) -> bool:
        """Whether a chunk was decoded."""
        return False

    def decode_chunk(
        self, latents: Float[Tensor, " batch frame channel h w"], memory: bool
    ) -> tuple[Float[Tensor, " batch pixel_frame 3 height width"], bool]:
        frames = latents.shape[1]
        pixels = frames * self.config.frames_per_latent if memory else self.pixel_frames(frames)
        return latents.new_zeros(len(latents), pixels, 3, 1, 1), True

    def decode(
        self, latents: Float[Tensor, " batch frame channel h w"]
    ) -> Float[Tensor, " batch pixel_frame 3 height width"]:
        return self.decode_chunk(latents, False)[0]

    def encode(
        self, pixels: Float[Tensor, " batch pixel_frame 3 height width"]
    ) -> Float[Tensor, " batch frame channel h w"]:
        return self._codec.encode(pixels)

    def pixel_frames(self, latent_frames: int) -> int:
        return self._codec.pixel_frames(latent_frames)


def share_out(model: VideoModel, group: dist.ProcessGroup | None = None) -> None:
    """Let all processes of a group make this model's streams together; each must have the same model, and
    call the same methods of streams with the same arguments. Only the first one decodes.

    Raises:
        ValueError: the model is accelerated by what is not proven over several processes.
    """
    how = model.acceleration
    for name in ("compiled", "cuda_graphs"):
        if getattr(how, name):
            raise ValueError(f"{name} is for one process; leave it off to share a stream out")
    shards = Shards(group)
    # what merges a finished chunk with the next would gather both: nothing saved
    model.acceleration = replace(how, merged_passes=False)
    model.student = ShardedTransformer(model.student, shards)
    if shards.rank:
        model.codec = Unseen(model.codec)
