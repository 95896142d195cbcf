"""A released pipeline of TRELLIS, from the tokens of a picture or a text to latents and what decoders make of
them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.samplers import Progress
from fewstep.modalities.shape3d.denoisers import VoxelCondition, VoxelVelocity
from fewstep.modalities.shape3d.networks.latent_flow import LatentFlow
from fewstep.modalities.shape3d.networks.structure_flow import StructureFlow
from fewstep.modalities.shape3d.released.hub import find_model, find_pipeline
from fewstep.modalities.shape3d.released.model_file import load_model_file, save_model_file
from fewstep.modalities.shape3d.released.pipeline_json import PipelineFile, read_pipeline, write_pipeline
from fewstep.modalities.shape3d.several_pictures import Several
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor, Voxels

STRUCTURE_FLOW, STRUCTURE_DECODER = "sparse_structure_flow_model", "sparse_structure_decoder"
LATENT_FLOW, MESH_DECODER = "slat_flow_model", "slat_decoder_mesh"
GAUSSIAN_DECODER = "slat_decoder_gs"
IMAGE_ENCODER = "image_cond_model"
LATENT_IMAGE_ENCODER = (
    "slat_image_cond_model"  # of bundled folders, where each stage has its own; not TRELLIS's
)

Tokens = Float[Tensor, " batch token dim"]


class NothingMade(ValueError):
    """An object came out without a voxel, or without a surface; other noise may give one."""


@dataclass(frozen=True, eq=False)
class ReleasedPipeline:
    """Models by their role, and how they are sampled.

    Args:
        file: what `pipeline.json` says.
        models: role -> network; roles that were not loaded are missing.
    """

    file: PipelineFile
    models: Mapping[str, nn.Module]

    def model(self, role: str) -> nn.Module:
        if role not in self.models:
            raise ValueError(f"role={role!r} was not loaded; loaded are {', '.join(self.models)}")
        return self.models[role]

    @torch.no_grad()
    def tokens(self, pictures: Float[Tensor, " batch 3 height width"]) -> Tokens:
        """What the folder's own image encoder makes of pictures in 0 to 1, prepared by `centred_on_black`.

        Raises:
            ValueError: the folder has none; for released models use `load_dinov2`.
        """
        if self.file.own_condition_model is None:
            raise ValueError(
                f"the pipeline's encoder is {self.file.condition_model!r}, which is not in its folder; "
                "load it by itself, with load_dinov2 or load_clip_text, and pass on its tokens"
            )
        return self.model(IMAGE_ENCODER)(pictures)

    def structure(
        self,
        condition: Tokens | Several,
        null_condition: Tokens,
        *,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> Voxels:
        """The first stage: which voxels are active.

        Args:
            condition: tokens of each object; or several of each, one picture's after another's.
            null_condition: tokens of nothing; zeros for pictures, those of an empty text for texts.

        Raises:
            NothingMade: an object came out without a voxel.
            ValueError: the tokens are of another encoder.
        """
        flow = self.model(STRUCTURE_FLOW)
        assert isinstance(flow, StructureFlow)
        self._check_tokens(null_condition, flow.config.cond_channels)
        shape = (len(null_condition), flow.config.in_channels, *[flow.config.resolution] * 3)
        noise = _noise(shape, generator, null_condition.device)
        latents = self.file.structure_sampling.sample(
            flow, noise, condition, null_condition=null_condition, progress=progress
        )
        with torch.no_grad():
            active = self.model(STRUCTURE_DECODER)(latents)[:, 0] > 0
        empty = (~active.flatten(1).any(1)).nonzero().flatten().tolist()
        if empty:
            raise NothingMade(f"objects {empty} came out without an active voxel; try other noise")
        return Voxels(active.nonzero().int().contiguous(), len(active), active.shape[-1])

    def latents(
        self,
        voxels: Voxels,
        condition: Tokens | Several,
        null_condition: Tokens,
        *,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> SparseTensor:
        """The second stage: a latent for every active voxel, as decoders take them."""
        flow = self.model(LATENT_FLOW)
        assert isinstance(flow, LatentFlow)
        self._check_tokens(null_condition, flow.config.cond_channels)
        shape = (len(voxels), flow.config.in_channels)
        noise = _noise(shape, generator, null_condition.device)
        carrier = SparseTensor(noise, voxels)

        def on_voxels(tokens: Any) -> VoxelCondition:
            return VoxelCondition(voxels=carrier, picture=tokens)

        normalised = self.file.latent_sampling.sample(
            VoxelVelocity(flow),
            noise,
            condition.map(on_voxels) if isinstance(condition, Several) else on_voxels(condition),
            null_condition=on_voxels(null_condition),
            progress=progress,
        )
        return carrier.replace(
            normalised * normalised.new_tensor(self.file.latent_std)
            + normalised.new_tensor(self.file.latent_mean)
        )

    def _check_tokens(self, tokens: Tokens, channels: int) -> None:
        if tokens.shape[-1] != channels:
            raise ValueError(
                f"the encoder gives tokens of {tokens.shape[-1]} channels, the flow takes {channels}; give "
                f"the encoder that it was trained with, {self.file.condition_model}"
            )

    @torch.no_grad()
    def decode(self, latents: SparseTensor, role: str = MESH_DECODER) -> SparseTensor:
        """A decoder's channels: cells for the mesh decoder, one row per voxel for the others."""
        return self.model(role)(latents)

    def save(self, folder: str | Path) -> None:
        """Write a folder that TRELLIS's loader reads, but for its condition model.

        Raises:
            ValueError: a model of the file was not loaded.
        """
        for role, path in self.file.paths.items():
            save_model_file(self.model(role), Path(folder) / path)
        write_pipeline(self.file, folder)


def _noise(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Drawn where the generator is, so that a seed means the same on every device."""
    source = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=source).to(device)


def load_pipeline(
    folder: str | Path, *, roles: Collection[str] | None = None, device: torch.device | str = "cpu"
) -> ReleasedPipeline:
    """A TRELLIS folder from disk, or from the hub.

    Args:
        folder: its path, or a hub id.
        roles: models to load; None for all. A mesh needs the two flows and two decoders.
        device: where to.
    """
    folder = find_pipeline(folder)
    file = read_pipeline(folder)
    wanted = list(file.paths) if roles is None else list(roles)
    unknown = [role for role in wanted if role not in file.paths]
    if unknown:
        raise ValueError(f"roles={unknown} are not in {folder}, which has {', '.join(file.paths)}")
    models = {role: load_model_file(find_model(folder, file.paths[role]), device=device) for role in wanted}
    return ReleasedPipeline(file, models)
