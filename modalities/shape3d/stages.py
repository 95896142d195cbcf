"""The two stages that turn a picture into an object, as their trainings see them.

The structure stage decides which voxels are active, from noise on a dense grid; the latent stage gives every
active voxel its latent. Each looks at the picture through a small image encoder that learned with it: what
tells shapes apart is not what tells colours.
"""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.checkpoints import Guidance
from fewstep.core.denoisers import Guided, NetworkDenoiser
from fewstep.core.objectives.contract import Data
from fewstep.modalities.shape3d.data.shapes import Batch
from fewstep.modalities.shape3d.denoisers import GuidedVoxels, VoxelCondition, voxel_denoiser
from fewstep.modalities.shape3d.model_folder import load_as, save_network
from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoder, ImageEncoderConfig
from fewstep.modalities.shape3d.networks.latent_flow import LatentFlow, LatentFlowConfig
from fewstep.modalities.shape3d.networks.structure_flow import StructureFlow, StructureFlowConfig
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor

FLOW, ENCODER = "flow", "image_encoder"  # folders of a trained stage
NORMALIZATION = "normalization.json"
Interval = tuple[float, float]


class Stage(nn.Module, ABC):
    """A flow, the image encoder it looks through, and what of a batch they are trained on."""

    flow: nn.Module
    image_encoder: ImageEncoder

    @abstractmethod
    def denoiser(self, flow: nn.Module) -> NetworkDenoiser:
        """A network of the flow's class as a denoiser."""

    @abstractmethod
    def guided(self, flow: nn.Module, scale: float, interval: Interval | None) -> nn.Module:
        """The same, guided away from no picture."""

    @abstractmethod
    def data(self, batch: Batch, dropped: Tensor | None = None) -> Data:
        """Latents of a batch and their condition.

        Args:
            dropped: ``[B]``, True for objects whose pictures' tokens become 0.
        """

    @abstractmethod
    def noise(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Noise to begin with, in the shape of the latents."""

    def tokens(self, batch: Batch, dropped: Tensor | None = None) -> Float[Tensor, " batch token dim"]:
        """The pictures of a batch as the flow sees them."""
        tokens = self.image_encoder(batch["pictures"])
        return tokens if dropped is None else torch.where(dropped[:, None, None], 0.0, tokens)

    def save(
        self,
        folder: Path,
        *,
        training: dict[str, Any],
        metrics: dict[str, int | float],
        step_grids: dict[int, list[float]] | None = None,
        guidance: Guidance | None = None,
    ) -> None:
        """Write flow and image encoder as the model folders `flow` and `image_encoder` in a folder."""
        record: dict[str, Any] = {"training": training, "metrics": metrics}
        save_network(
            folder / FLOW, self.flow, **record, step_grids=step_grids, guidance=guidance, noised=True
        )
        save_network(folder / ENCODER, self.image_encoder, **record)


class StructureStage(Stage):
    """Latents ``[B, 8, r, r, r]`` of the structure autoencoder, not normalised, as TRELLIS has them.

    Batches hold ``structure_latents`` and ``pictures``.

    Args:
        flow: sizes of the flow, or the folder of a trained stage.
        image_encoder: sizes of the encoder, where it is to be trained along.
    """

    def __init__(
        self, flow: StructureFlowConfig | str, image_encoder: ImageEncoderConfig | None = None
    ) -> None:
        super().__init__()
        if isinstance(flow, str):
            self.flow = load_as(StructureFlow, Path(flow) / FLOW)
            self.image_encoder = load_as(ImageEncoder, Path(flow) / ENCODER).requires_grad_(False)
        else:
            self.flow = StructureFlow(flow)
            self.image_encoder = ImageEncoder(given_sizes(image_encoder))

    def denoiser(self, flow: nn.Module) -> NetworkDenoiser:
        return NetworkDenoiser(flow)

    def guided(self, flow: nn.Module, scale: float, interval: Interval | None) -> nn.Module:
        null = torch.zeros(1, *self.image_encoder.token_shape)
        return Guided(self.denoiser(flow), guidance_scale=scale, null_condition=null, interval=interval)

    def data(self, batch: Batch, dropped: Tensor | None = None) -> Data:
        return Data(x0=batch["structure_latents"], condition=self.tokens(batch, dropped))

    def noise(self, batch: Batch, generator: torch.Generator) -> Tensor:
        like = batch["structure_latents"]
        return torch.randn(like.shape, generator=generator, device=like.device)


def given_sizes(image_encoder: ImageEncoderConfig | None) -> ImageEncoderConfig:
    """The sizes, or a ValueError that says that they are missing."""
    if image_encoder is None:
        raise ValueError("image_encoder=None: give its sizes, as it is trained along with the structure flow")
    return image_encoder


class LatentStage(Stage):
    """Normalised latents ``[N, C]`` of active voxels.

    Batches hold ``coords``, ``latents`` and ``pictures``.

    Args:
        flow: sizes of the flow, or the folder of a trained stage.
        image_encoder: folder of a trained stage, with whose encoder a new flow begins; it learns along.
        resolution: voxels per axis.
    """

    def __init__(
        self, flow: LatentFlowConfig | str, image_encoder: str | None = None, resolution: int = 16
    ) -> None:
        super().__init__()
        if isinstance(flow, str):
            self.flow = load_as(LatentFlow, Path(flow) / FLOW)
            self.image_encoder = load_as(ImageEncoder, Path(flow) / ENCODER).requires_grad_(False)
        elif image_encoder is None:
            raise ValueError("image_encoder=None: give the folder of a trained structure stage")
        else:
            self.flow = LatentFlow(flow)
            self.image_encoder = load_as(ImageEncoder, Path(image_encoder) / ENCODER)
        self.resolution = resolution
        self.normalization = read_normalization(Path(flow)) if isinstance(flow, str) else None

    def denoiser(self, flow: nn.Module) -> NetworkDenoiser:
        return voxel_denoiser(cast(LatentFlow, flow))

    def guided(self, flow: nn.Module, scale: float, interval: Interval | None) -> nn.Module:
        return GuidedVoxels(self.denoiser(flow), guidance_scale=scale, interval=interval)

    def data(self, batch: Batch, dropped: Tensor | None = None) -> Data:
        condition = VoxelCondition(
            voxels=SparseTensor.of(
                batch["latents"],
                batch["coords"],
                batch_size=len(batch["numbers"]),
                resolution=self.resolution,
            ),
            picture=self.tokens(batch, dropped),
        )
        return Data(x0=batch["latents"], condition=condition, layout=condition.layout)

    def noise(self, batch: Batch, generator: torch.Generator) -> Tensor:
        like = batch["latents"]
        return torch.randn(like.shape, generator=generator, device=like.device)

    def save(self, folder: Path, **record: Any) -> None:
        super().save(folder, **record)
        if self.normalization is None:
            raise ValueError("the latents' mean and std are unknown; set `normalization` before saving")
        write_normalization(folder, *self.normalization)


def read_normalization(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel by which a latent stage's latents were normalised."""
    path = folder / NORMALIZATION
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {NORMALIZATION}; it is not the folder of a latent stage")
    record = json.loads(path.read_text())
    return record["mean"], record["std"]


def write_normalization(folder: Path, mean: list[float], std: list[float]) -> None:
    """The counterpart of `read_normalization`, under the names that TRELLIS's pipeline.json has."""
    (folder / NORMALIZATION).write_text(json.dumps({"mean": mean, "std": std}) + "\n")
