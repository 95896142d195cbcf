"""Model folders of the 3D networks in training: which classes a folder may name, and how they load."""

from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from fewstep.core.checkpoints import Card, Guidance, load_model, network_config, save_model
from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoder, ImageEncoderConfig
from fewstep.modalities.shape3d.networks.latent_flow import LatentFlow, LatentFlowConfig
from fewstep.modalities.shape3d.networks.latent_vae import (
    LatentEncoder,
    LatentEncoderConfig,
    MeshDecoder,
    MeshDecoderConfig,
)
from fewstep.modalities.shape3d.networks.structure_flow import StructureFlow, StructureFlowConfig
from fewstep.modalities.shape3d.networks.structure_vae import (
    StructureDecoder,
    StructureDecoderConfig,
    StructureEncoder,
    StructureEncoderConfig,
)

NETWORKS: dict[str, tuple[Any, type]] = {
    "StructureEncoder": (StructureEncoder, StructureEncoderConfig),
    "StructureDecoder": (StructureDecoder, StructureDecoderConfig),
    "StructureFlow": (StructureFlow, StructureFlowConfig),
    "LatentEncoder": (LatentEncoder, LatentEncoderConfig),
    "MeshDecoder": (MeshDecoder, MeshDecoderConfig),
    "LatentFlow": (LatentFlow, LatentFlowConfig),
    "ImageEncoder": (ImageEncoder, ImageEncoderConfig),
}

Network = TypeVar("Network", bound=nn.Module)


def load_as(kind: type[Network], folder: Path) -> Network:
    """The network of a model folder, in float32 and evaluation mode.

    Raises:
        ValueError: the folder holds a network of another class.
    """
    network = load_model(folder, networks=NETWORKS)[0]
    if not isinstance(network, kind):
        raise ValueError(f"{folder} holds a {type(network).__name__}; a {kind.__name__} is needed here")
    return network.eval()


def save_network(
    folder: Path,
    network: nn.Module,
    *,
    training: dict[str, Any],
    metrics: dict[str, int | float],
    step_grids: dict[int, list[float]] | None = None,
    guidance: Guidance | None = None,
    noised: bool = False,
    storage_dtype: str = "float32",
) -> Card:
    """Write a model folder; `noised` marks velocities on the linear path, other networks have no path."""
    card = Card(
        network=type(network).__name__,
        config=network_config(network.config),
        path="linear" if noised else None,
        prediction="velocity" if noised else None,
        step_grids={str(steps): times for steps, times in (step_grids or {}).items()},
        guidance=guidance or Guidance(),
        training=cast(Any, training),
        metrics=metrics,
        storage_dtype=storage_dtype,
    )
    return save_model(folder, network, card)
