"""What video brings to the Distiller: the student's own rollouts over its cache, scored clip by clip."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from fewstep.core.checkpoints import Guidance, student_grids
from fewstep.core.denoisers import Denoiser, Guided, NetworkDenoiser, NetworkFlowMap
from fewstep.core.objectives.contract import Data, Sample
from fewstep.core.training.checkpointing import checkpoint_blocks
from fewstep.core.training.roles import Roles
from fewstep.core.training.sharding import blocks_of, shard_by_layers
from fewstep.modalities.video.blocks import KeysValues
from fewstep.modalities.video.cache import CacheConfig, StreamCache
from fewstep.modalities.video.model_folder import load_codec, load_transformer, save_transformer
from fewstep.modalities.video.rollout import ChunkRollout, roll_out_and_call
from fewstep.modalities.video.text import TextEncoder
from fewstep.modalities.video.transformer import VideoTransformer, with_two_times


class VideoRoles(Roles):
    """Self-Forcing rollouts with a fixed-size cache (arXiv 2506.08009), longer than its window, so that
    frames are evicted.

    The student generates a random number of chunks in a random one of its step grids, takes the
    prediction of a random step, and the last ``score_chunks`` chunks form the clip that teacher and
    critic judge and that receives gradient. Batches give the captions (``features``, per latent frame,
    changes of mind included); their latents are looked at by objectives that need real samples.

    Args:
        teacher: model folder of the bidirectional network; also the critic's first weights.
        student: model folder of the causal initialisation.
        codec: model folder of the autoencoder, for rewards in pixels.
        cache: what the student remembers, in training as in the stream.
        step_grids: number of steps -> times; one is drawn per batch.
        score_chunks: chunks per judged clip; the teacher's clip length.
        guidance_scale: of the teacher (w, 1 is off); the student learns the guided distribution.
        two_times: whether the student is a ``FlowMap``, for objectives on trajectories. They see whole clips;
            the stream's rollout calls such a student with r = t.
        latent_size: height and width in latent pixels.
        gradient_checkpointing: blocks of student and critic keep their input alone for the backward pass.
    """

    def __init__(
        self,
        teacher: str,
        student: str,
        codec: str,
        cache: CacheConfig,
        step_grids: dict[int, list[float]],
        score_chunks: int = 4,
        guidance_scale: float = 2.5,
        latent_size: tuple[int, int] = (12, 12),
        two_times: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        network = load_transformer(Path(teacher))
        frames = score_chunks * cache.chunk
        # cloned: an ordinary tensor, not one of inference mode
        null = TextEncoder()([""])[:, None].expand(-1, frames, -1, -1).clone()
        self.null_condition = null
        self.teacher = Guided(NetworkDenoiser(network), guidance_scale=guidance_scale, null_condition=null)
        self.critic = NetworkDenoiser(copy.deepcopy(network))
        initial = load_transformer(Path(student))
        self.student = with_two_times(initial) if two_times else initial
        if gradient_checkpointing:
            for trained in (self.student, self.critic):
                checkpoint_blocks(blocks_of(trained))
        self.codec = load_codec(Path(codec)).requires_grad_(False)
        self.cache = cache
        self.rollouts = {
            steps: ChunkRollout(self.network, times) for steps, times in student_grids(step_grids).items()
        }
        self.score_chunks = score_chunks
        self.guidance_scale = guidance_scale
        self.latent_size = tuple(latent_size)

    @property
    def network(self) -> VideoTransformer:
        """The student by its class."""
        return cast(VideoTransformer, self.student)

    def generate(self, batch: Any, *, generator: torch.Generator, with_grad: bool) -> Sample:
        captions = batch["features"][:, self.cache.chunk - 1 :: self.cache.chunk]
        size, device = len(captions), captions.device
        if captions.shape[1] < self.score_chunks:
            raise ValueError(
                f"batch has captions of {captions.shape[1]} chunks, but score_chunks={self.score_chunks}; "
                "use longer clips"
            )

        chunks = self.score_chunks + self.choose(captions.shape[1] - self.score_chunks + 1, generator)
        captions = captions[:, :chunks]
        rollout = list(self.rollouts.values())[self.choose(len(self.rollouts), generator)]
        exit_step = self.choose(len(rollout.times), generator)
        shape = (size, self.cache.chunk, self.network.config.channels, *self.latent_size)
        x, call = roll_out_and_call(
            rollout,
            StreamCache(
                self.network, self.cache, batch=size, height=self.latent_size[0], width=self.latent_size[1]
            ),
            self._text(captions),
            lambda chunk, step: torch.randn(shape, generator=generator, device=device),
            exit_step=exit_step,
            gradient_from=chunks - self.score_chunks if with_grad else None,
        )
        frames = self.score_chunks * self.cache.chunk
        x = x[:, -frames:]
        judged = captions[:, -self.score_chunks :].repeat_interleave(self.cache.chunk, dim=1)
        return Sample(
            x=x,
            condition=judged,
            call=replace(call, x_t=call.x_t[:, -frames:]),
            diagnostics={
                "chunks": torch.tensor(float(chunks)),
                "latent_std": x.detach().float().std(),
                "latent_motion": x.detach().float().diff(dim=1).abs().mean(),
            },
        )

    def data(self, batch: Any) -> Data:
        """The first ``score_chunks`` chunks of each clip, captioned frame by frame."""
        frames = self.score_chunks * self.cache.chunk
        return Data(x0=batch["latents"][:, :frames], condition=batch["features"][:, :frames])

    def decode(self, x: Tensor) -> Tensor:
        return (self.codec.decode(x).float() * 0.5 + 0.5).clamp(0.0, 1.0)

    def denoiser(self, student: nn.Module) -> Denoiser:
        return NetworkFlowMap(student) if self.network.config.two_times else NetworkDenoiser(student)

    def save_student(
        self, folder: Path, *, training: dict[str, Any], metrics: dict[str, int | float]
    ) -> None:
        save_transformer(
            folder,
            self.network,
            training=training,
            metrics=metrics,
            step_grids={steps: list(rollout.times) for steps, rollout in self.rollouts.items()},
            guidance=Guidance(scale=self.guidance_scale, baked=True),
        )

    def shard(self, network: nn.Module, mesh: DeviceMesh) -> None:
        """By layers: rollouts enter at the prompts, at a chunk, and at a chunk's keys and values."""
        shard_by_layers(network, mesh)

    def _text(self, captions: Tensor) -> list[list[KeysValues]]:
        """Cross-attention keys and values for each chunk's captions ``[B, chunks, L, D]``, all computed
        in one go.
        """
        size, chunks = captions.shape[:2]
        layers = self.network.text_keys_values(captions)
        split = [tuple(part.unflatten(0, (size, chunks)).unbind(1) for part in layer) for layer in layers]
        return [[KeysValues(keys[chunk], values[chunk]) for keys, values in split] for chunk in range(chunks)]
