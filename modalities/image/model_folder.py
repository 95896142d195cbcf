"""Model folders of the image networks: which classes a folder may name, and how they are saved."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, cast

from fewstep.core.checkpoints import CARD, Card, Guidance, load_model, network_config, save_model
from fewstep.modalities.image.codec import ImageCodec, ImageCodecConfig
from fewstep.modalities.image.network import ImageTransformer
from fewstep.modalities.video.transformer import TransformerConfig

NETWORKS = {
    "ImageTransformer": (ImageTransformer, TransformerConfig),
    "ImageCodec": (ImageCodec, ImageCodecConfig),
}

PRESETS = "fewstep.modalities.image.presets"


def preset_part(name: str, part: str) -> Path:
    """A model folder by its path, or that ``part`` of the bundled preset of this name.

    Raises:
        ValueError: for what is neither.
    """
    with as_file(files(PRESETS)) as presets:
        for folder in (Path(name), presets / name / part):
            if (folder / CARD).is_file():
                return folder
        known = sorted(path.parent.parent.name for path in presets.glob(f"*/{part}/{CARD}"))
    raise ValueError(
        f"{part}={name!r} is neither a model folder nor a bundled preset ({', '.join(known) or 'none'})"
    )


def load_transformer(folder: Path) -> ImageTransformer:
    """The transformer of a model folder, in float32."""
    network = load_model(folder, networks=NETWORKS)[0]
    if not isinstance(network, ImageTransformer):
        raise ValueError(f"{folder} holds a {type(network).__name__}; an ImageTransformer is needed here")
    return network


def load_codec(folder: Path) -> ImageCodec:
    """The autoencoder of a model folder, in float32 and evaluation mode."""
    network = load_model(folder, networks=NETWORKS)[0]
    if not isinstance(network, ImageCodec):
        raise ValueError(f"{folder} holds a {type(network).__name__}; an ImageCodec is needed here")
    return network.eval()


def save_transformer(
    folder: Path,
    network: ImageTransformer,
    *,
    training: dict[str, Any],
    metrics: dict[str, int | float],
    step_grids: dict[int, list[float]] | None = None,
    guidance: Guidance | None = None,
    storage_dtype: str = "float32",
) -> Card:
    """Write a model folder of a velocity network on the linear path."""
    card = Card(
        network="ImageTransformer",
        config=network_config(network.config),
        step_grids={str(steps): times for steps, times in (step_grids or {}).items()},
        guidance=guidance or Guidance(),
        training=cast(Any, training),
        metrics=metrics,
        storage_dtype=storage_dtype,
    )
    return save_model(folder, network, card)


def save_codec(
    folder: Path,
    codec: ImageCodec,
    *,
    training: dict[str, Any],
    metrics: dict[str, int | float],
    storage_dtype: str = "float32",
) -> Card:
    """Write a model folder of an autoencoder."""
    card = Card(
        network="ImageCodec",
        config=network_config(codec.config),
        path=None,
        prediction=None,
        training=cast(Any, training),
        metrics=metrics,
        storage_dtype=storage_dtype,
    )
    return save_model(folder, codec, card)
