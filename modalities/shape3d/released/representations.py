"""TRELLIS's `representation_config`: how a decoder's channels are to be read, as its JSON files say it."""

from collections.abc import Set
from typing import Any

from fewstep.modalities.shape3d.networks.latent_vae import (
    GaussianDecoderConfig,
    MeshDecoderConfig,
    RadianceFieldDecoderConfig,
)

Representation = dict[str, Any]

ROTATION = "_rotation"
RATES = ("_xyz", "_features_dc", "_opacity", "_scaling", ROTATION)
GAUSSIAN_NAMES = {
    "perturb_offset": "perturb_offset",
    "voxel_size": "voxel_size",
    "num_gaussians": "num_gaussians",
    "2d_filter_kernel_size": "kernel_size_2d",
    "3d_filter_kernel_size": "kernel_size_3d",
    "scaling_bias": "scaling_bias",
    "opacity_bias": "opacity_bias",
}
ACTIVATION = "softplus"


def mesh_fields(representation: Representation) -> dict[str, Any]:
    """Fields of a ``MeshDecoderConfig``."""
    _check(representation, {"use_color"}, optional={"use_color"})
    return {"use_color": representation.get("use_color", False)}


def mesh_representation(config: MeshDecoderConfig) -> Representation:
    return {"use_color": config.use_color}


def gaussian_fields(representation: Representation) -> dict[str, Any]:
    """Fields of a ``GaussianDecoderConfig``."""
    _check(representation, {*GAUSSIAN_NAMES, "lr", "scaling_activation"})
    rates, activation = representation["lr"], representation["scaling_activation"]
    if set(rates) != set(RATES) or any(rates[name] != 1 for name in RATES if name != ROTATION):
        raise ValueError(f"representation_config: lr={rates} must be 1 for all but {ROTATION}")
    if activation != ACTIVATION:
        raise ValueError(f"representation_config: scaling_activation={activation!r} must be {ACTIVATION!r}")
    read = {own: representation[theirs] for theirs, own in GAUSSIAN_NAMES.items()}
    return read | {"rotation_rate": rates[ROTATION]}


def gaussian_representation(config: GaussianDecoderConfig) -> Representation:
    rates = {name: config.rotation_rate if name == ROTATION else 1.0 for name in RATES}
    read = {theirs: getattr(config, own) for theirs, own in GAUSSIAN_NAMES.items()}
    return {"lr": rates} | read | {"scaling_activation": ACTIVATION}


def radiance_fields(representation: Representation) -> dict[str, Any]:
    """Fields of a ``RadianceFieldDecoderConfig``."""
    _check(representation, {"rank", "dim"})
    return dict(representation)


def radiance_representation(config: RadianceFieldDecoderConfig) -> Representation:
    return {"rank": config.rank, "dim": config.dim}


def _check(representation: Representation, known: Set[str], *, optional: Set[str] = frozenset()) -> None:
    missing, unknown = sorted(known - set(representation) - optional), sorted(set(representation) - known)
    if missing or unknown:
        raise ValueError(f"representation_config does not fit; missing: {missing}, unknown: {unknown}")
