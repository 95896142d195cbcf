"""Model folders of the video networks: which classes a folder may name, and how they are saved."""

from pathlib import Path
from typing import Any, cast

from fewstep.core.checkpoints import Card, Guidance, load_model, network_config, save_model
from fewstep.modalities.video.codec import CodecConfig, VideoCodec
from fewstep.modalities.video.taehv import TAEHV, TAEHVConfig
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer
from fewstep.modalities.video.wan_vae import WanVAE, WanVAEConfig

NETWORKS = {
    "VideoTransformer": (VideoTransformer, TransformerConfig),
    "VideoCodec": (VideoCodec, CodecConfig),
    "WanVAE": (WanVAE, WanVAEConfig),
    "TAEHV": (TAEHV, TAEHVConfig),
}


def load_transformer(folder: Path, *, as_stored: bool = False) -> VideoTransformer:
    """The transformer of a model folder, in float32 or the dtype of its file."""
    network = load_model(folder, networks=NETWORKS, as_stored=as_stored)[0]
    if not isinstance(network, VideoTransformer):
        raise ValueError(f"{folder} holds a {type(network).__name__}; a VideoTransformer is needed here")
    return network


def load_codec(folder: Path) -> VideoCodec:
    """The autoencoder of a model folder, in float32 and evaluation mode."""
    network = load_model(folder, networks=NETWORKS)[0]
    if not isinstance(network, VideoCodec):
        raise ValueError(f"{folder} holds a {type(network).__name__}; a VideoCodec is needed here")
    return network.eval()


def load_streaming_codec(folder: Path, *, as_stored: bool = False) -> VideoCodec | WanVAE | TAEHV:
    """The autoencoder of a model folder, whichever of ours it is, in float32 or the dtype of its file, and
    in evaluation mode.
    """
    network = load_model(folder, networks=NETWORKS, as_stored=as_stored)[0]
    if not isinstance(network, VideoCodec | WanVAE | TAEHV):
        raise ValueError(f"{folder} holds a {type(network).__name__}; an autoencoder is needed here")
    return network.eval()


def save_transformer(
    folder: Path,
    network: VideoTransformer,
    *,
    training: dict[str, Any],
    metrics: dict[str, int | float],
    step_grids: dict[int, list[float]] | None = None,
    guidance: Guidance | None = None,
    licence: str = "Apache-2.0",
    storage_dtype: str = "float32",
) -> Card:
    """Write a model folder of a velocity network on the linear path."""
    card = Card(
        network="VideoTransformer",
        config=network_config(network.config),
        path="linear",
        prediction="velocity",
        step_grids={str(steps): times for steps, times in (step_grids or {}).items()},
        guidance=guidance or Guidance(),
        training=cast(Any, training),
        metrics=metrics,
        licence=licence,
        storage_dtype=storage_dtype,
    )
    return save_model(folder, network, card)


def save_codec(
    folder: Path,
    codec: VideoCodec | WanVAE | TAEHV,
    *,
    training: dict[str, Any],
    metrics: dict[str, int | float],
    storage_dtype: str = "float32",
) -> Card:
    """Write a model folder of an autoencoder."""
    card = Card(
        network=type(codec).__name__,
        config=network_config(codec.config),
        path=None,
        prediction=None,
        training=cast(Any, training),
        metrics=metrics,
        storage_dtype=storage_dtype,
    )
    return save_model(folder, codec, card)
