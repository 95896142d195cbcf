"""Autoencoder of the contents of active voxels (TRELLIS, arXiv 2412.01506): an encoder, and decoders to the
cells of a mesh, to Gaussians and to local radiance fields.

Axis names: ``voxel`` (rows), ``cell`` (rows at four times the resolution).
"""

from abc import ABC
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.modalities.shape3d.networks.blocks import (
    FINAL_EPS,
    Block,
    VoxelRows,
    attention_window,
    cast_layers,
    check_position_mode,
    head_count,
    initialize,
    plain_norm,
    through,
)
from fewstep.modalities.shape3d.networks.embedding import absolute_positions
from fewstep.modalities.shape3d.sparse.convolution import PointwiseConv3d, SubmanifoldConv3d
from fewstep.modalities.shape3d.sparse.normalization import SparseGroupNorm
from fewstep.modalities.shape3d.sparse.resampling import subdivide
from fewstep.modalities.shape3d.sparse.tensor import SparseTensor

NORM_GROUPS = 32
CELL_CHANNELS = 53  # signed distance 8, deformation 8 x 3, weights 21
COLOUR_CHANNELS = 48  # 8 corners x (3 of colour, 3 of the normal)
CELLS_PER_VOXEL = 4  # along an axis


@dataclass(frozen=True, kw_only=True)
class VoxelTransformerConfig:
    """Sizes that encoder and decoders share; the defaults are those of TRELLIS.

    Args:
        resolution: voxels along an axis.
        num_heads: given as such or, where None, by ``num_head_channels``.
        attn_mode: "swin" for windows, shifted in every second block, or "full".
        window_size: voxels along an axis.
        use_fp16: whether the torso computes and is stored in half precision.
    """

    resolution: int = 64
    model_channels: int = 768
    latent_channels: int = 8
    num_blocks: int = 12
    num_heads: int | None = 12
    num_head_channels: int = 64
    mlp_ratio: int | float = 4.0
    attn_mode: Literal["full", "swin"] = "swin"
    window_size: int = 8
    pe_mode: str = "ape"
    qk_rms_norm: bool = False
    use_fp16: bool = False

    def __post_init__(self) -> None:
        head_count(self.model_channels, self.num_heads, self.num_head_channels)
        check_position_mode(self.pe_mode)
        attention_window(self.attn_mode, self.window_size, 0)


@dataclass(frozen=True, kw_only=True)
class LatentEncoderConfig(VoxelTransformerConfig):
    """Sizes of a ``LatentEncoder``; TRELLIS's input is 1024 channels of DINOv2."""

    in_channels: int = 1024


@dataclass(frozen=True, kw_only=True)
class MeshDecoderConfig(VoxelTransformerConfig):
    """Sizes of a ``MeshDecoder``.

    Args:
        use_color: whether cells have colours and normals beside their geometry.
        reinterpret_pointwise: see ``PointwiseConv3d``; released weights need it.
    """

    use_color: bool = True
    reinterpret_pointwise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model_channels % 8 or any(
            self.model_channels // part % norm_groups(self.model_channels // part) for part in (1, 4, 8)
        ):
            raise ValueError(
                f"model_channels={self.model_channels} must be a power of 2 from 8 on, or a multiple of "
                f"{8 * NORM_GROUPS}: an eighth of them is normalised in up to {NORM_GROUPS} groups"
            )


@dataclass(frozen=True, kw_only=True)
class GaussianDecoderConfig(VoxelTransformerConfig):
    """Sizes of a ``GaussianDecoder``, and how its channels are to be read.

    Args:
        num_gaussians: per voxel.
        voxel_size: how far Gaussians may leave their voxel: 1 not at all, 2 by half a voxel.
        perturb_offset: whether their offsets start spread over the voxel.
        rotation_rate: factor on the rotation's channels; the others' is 1.
        scaling_bias: edge of a Gaussian whose channel is 0.
        opacity_bias: opacity of a Gaussian whose channel is 0.
        kernel_size_3d: edge below which no Gaussian falls.
        kernel_size_2d: in pixels, for renderers.
    """

    num_gaussians: int = 32
    voxel_size: float = 1.5
    perturb_offset: bool = True
    rotation_rate: float = 0.1
    scaling_bias: float = 4e-3
    opacity_bias: float = 0.1
    kernel_size_3d: float = 9e-4
    kernel_size_2d: float = 0.1


@dataclass(frozen=True, kw_only=True)
class RadianceFieldDecoderConfig(VoxelTransformerConfig):
    """Sizes of a ``RadianceFieldDecoder``: ``rank`` products of three vectors of length ``dim`` per voxel."""

    rank: int = 16
    dim: int = 8


class VoxelTransformer(nn.Module, ABC):
    """Features of voxels, their places, and blocks of attention within windows."""

    def __init__(self, config: VoxelTransformerConfig, in_channels: int) -> None:
        super().__init__()
        self.window = [
            attention_window(config.attn_mode, config.window_size, number)
            for number in range(config.num_blocks)
        ]
        heads = head_count(config.model_channels, config.num_heads, config.num_head_channels)
        self.input_layer = nn.Linear(in_channels, config.model_channels)
        self.blocks = nn.ModuleList(
            Block(config.model_channels, heads, config.mlp_ratio, qk_rms_norm=config.qk_rms_norm)
            for _ in range(config.num_blocks)
        )

    def cast_torso(self, dtype: torch.dtype) -> None:
        """Layers between the first and the last in another dtype."""
        cast_layers([self.blocks], dtype)

    def trunk(self, x: SparseTensor) -> SparseTensor:
        """What all blocks make of the input, in the dtype of the torso."""
        h = through(self.input_layer, x.feats)
        h = h + absolute_positions(x.coords[:, 1:], x.resolution, h.shape[1]).to(h.dtype)
        h = h.to(self.get_parameter("blocks.0.attn.to_qkv.weight").dtype)
        for block, window in zip(self.blocks, self.window, strict=True):
            h = block(h, VoxelRows(x.voxels, window))
        return x.replace(h)

    def normed_trunk(self, x: SparseTensor, out_layer: nn.Linear) -> SparseTensor:
        """The same, normalised, through a last layer, in the dtype of the input."""
        h = plain_norm(self.trunk(x).feats.to(x.feats.dtype), FINAL_EPS)
        return x.replace(through(out_layer, h).to(x.feats.dtype))


class LatentEncoder(VoxelTransformer):
    """Features of active voxels to the mean and the log variance of their latents."""

    def __init__(self, config: LatentEncoderConfig) -> None:
        super().__init__(config, config.in_channels)
        self.config = config
        self.out_layer = nn.Linear(config.model_channels, 2 * config.latent_channels)
        initialize(self)
        if config.use_fp16:
            self.cast_torso(torch.float16)

    def forward(self, x: SparseTensor) -> tuple[SparseTensor, SparseTensor]:
        mean, logvar = self.normed_trunk(x, self.out_layer).feats.chunk(2, dim=1)
        return x.replace(mean), x.replace(logvar)


def norm_groups(channels: int) -> int:
    """Groups in which channels are normalised: TRELLIS's 32, or one per channel where there are fewer."""
    return min(NORM_GROUPS, channels)


class SubdivideBlock(nn.Module):
    """A residual block that halves every voxel."""

    def __init__(self, channels: int, out_channels: int, *, reinterpret_pointwise: bool) -> None:
        super().__init__()
        self.act_layers = nn.Sequential(SparseGroupNorm(norm_groups(channels), channels), SparseSiLU())
        self.out_layers = nn.Sequential(
            SubmanifoldConv3d(channels, out_channels),
            SparseGroupNorm(norm_groups(out_channels), out_channels),
            SparseSiLU(),
            SubmanifoldConv3d(out_channels, out_channels),
        )
        nn.init.zeros_(self.get_parameter("out_layers.3.conv.weight"))
        self.skip_connection = PointwiseConv3d(channels, out_channels, reinterpret=reinterpret_pointwise)

    def forward(self, x: SparseTensor) -> SparseTensor:
        first = cast(SubmanifoldConv3d, self.out_layers[0])
        h = self.out_layers[1:](first.subdivided(self.act_layers(x)))
        # a layer without neighbours commutes with subdivision, and has an eighth of the work before it
        return h.replace(h.feats + subdivide(self.skip_connection(x)).feats)


class SparseSiLU(nn.Module):
    """SiLU of sparse features."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.replace(F.silu(x.feats))


class MeshDecoder(VoxelTransformer):
    """Latents to the cells of a grid four times as fine, in the channels that FlexiCubes takes: signed
    distances 0:8, deformations 8:32, weights 32:53 and, where there are colours, 53:101.
    """

    def __init__(self, config: MeshDecoderConfig) -> None:
        super().__init__(config, config.latent_channels)
        self.config = config
        channels, flag = config.model_channels, config.reinterpret_pointwise
        self.upsample = nn.ModuleList(
            [
                SubdivideBlock(channels, channels // 4, reinterpret_pointwise=flag),
                SubdivideBlock(channels // 4, channels // 8, reinterpret_pointwise=flag),
            ]
        )
        out_channels = CELL_CHANNELS + (COLOUR_CHANNELS if config.use_color else 0)
        self.out_layer = nn.Linear(channels // 8, out_channels)
        initialize(self)
        if config.use_fp16:
            self.cast_torso(torch.float16)

    def cast_torso(self, dtype: torch.dtype) -> None:
        """Layers between the first and the last in another dtype."""
        cast_layers([self.blocks, self.upsample], dtype)

    def forward(self, latents: SparseTensor) -> SparseTensor:
        h = self.trunk(latents)
        for block in self.upsample:
            h = block(h)
        return h.replace(through(self.out_layer, h.feats).to(latents.feats.dtype))


class GaussianDecoder(VoxelTransformer):
    """Latents to the channels of each voxel's Gaussians: positions, colours, sizes, rotations, opacities."""

    offset_perturbation: Tensor

    def __init__(self, config: GaussianDecoderConfig) -> None:
        super().__init__(config, config.latent_channels)
        self.config = config
        self.out_layer = nn.Linear(config.model_channels, sum(self.sizes.values()))
        spread = (2 * hammersley(config.num_gaussians) - 1) / config.voxel_size
        self.register_buffer("offset_perturbation", torch.atanh(spread))
        initialize(self)
        if config.use_fp16:
            self.cast_torso(torch.float16)

    @property
    def sizes(self) -> dict[str, int]:
        """Channels of each property of all Gaussians of a voxel, in their order."""
        per_gaussian = {"xyz": 3, "features_dc": 3, "scaling": 3, "rotation": 4, "opacity": 1}
        return {name: size * self.config.num_gaussians for name, size in per_gaussian.items()}

    def forward(self, latents: SparseTensor) -> SparseTensor:
        return self.normed_trunk(latents, self.out_layer)

    def gaussians(self, decoded: SparseTensor) -> list[dict[str, Tensor]]:
        """For each sample ``xyz`` and ``scale`` ``[G, 3]`` in the cube from -0.5 to 0.5, ``colour``
        ``[G, 3]`` of degree 0, ``rotation`` ``[G, 4]`` (w first, of length 1) and ``opacity`` ``[G, 1]``.
        """
        config = self.config
        parts = dict(zip(self.sizes, decoded.feats.split(list(self.sizes.values()), dim=1), strict=True))
        values = {name: part.unflatten(1, (config.num_gaussians, -1)) for name, part in parts.items()}
        offset = values["xyz"] + (self.offset_perturbation if config.perturb_offset else 0)
        reach = 0.5 * config.voxel_size / decoded.resolution
        centre = (decoded.coords[:, None, 1:] + 0.5) / decoded.resolution - 0.5
        identity = decoded.feats.new_tensor([1.0, 0.0, 0.0, 0.0])
        bias = decoded.feats.new_tensor(config.scaling_bias)
        logit = torch.logit(decoded.feats.new_tensor(config.opacity_bias))
        edge = F.softplus(values["scaling"] + bias + torch.log(-torch.expm1(-bias)))
        read = {
            "xyz": centre + reach * torch.tanh(offset),
            "scale": (edge.square() + config.kernel_size_3d**2).sqrt(),
            "colour": values["features_dc"],
            "rotation": F.normalize(config.rotation_rate * values["rotation"] + identity, dim=-1),
            "opacity": torch.sigmoid(values["opacity"] + logit),
        }
        return [{name: value[rows].flatten(0, 1) for name, value in read.items()} for rows in decoded.layout]


class RadianceFieldDecoder(VoxelTransformer):
    """Latents to the channels of each voxel's radiance field: three vectors per rank, densities, colours."""

    def __init__(self, config: RadianceFieldDecoderConfig) -> None:
        super().__init__(config, config.latent_channels)
        self.config = config
        self.out_layer = nn.Linear(config.model_channels, config.rank * (3 * config.dim + 1 + 3))
        initialize(self)
        if config.use_fp16:
            self.cast_torso(torch.float16)

    def forward(self, latents: SparseTensor) -> SparseTensor:
        return self.normed_trunk(latents, self.out_layer)


def hammersley(count: int) -> Tensor:
    """``count`` points ``[count, 3]`` of Hammersley's sequence in the unit cube."""
    points = [[i / count, radical_inverse(i, 2), radical_inverse(i, 3)] for i in range(count)]
    return torch.tensor(points, dtype=torch.float32)


def radical_inverse(number: int, base: int) -> float:
    """The digits of a number mirrored at the point."""
    value, weight = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        weight /= base
        value += digit * weight
    return value
