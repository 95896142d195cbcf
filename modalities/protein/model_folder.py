"""Model folders of protein networks: which class a folder may name, and how it is saved and loaded."""

from pathlib import Path
from typing import Any, cast

from fewstep.core.checkpoints import Card, Guidance, load_model, network_config, save_model
from fewstep.modalities.protein.networks.transformer import ProteinTransformer, ProteinTransformerConfig

NETWORKS = {"ProteinTransformer": (ProteinTransformer, ProteinTransformerConfig)}


def load_transformer(folder: Path) -> tuple[ProteinTransformer, Card]:
    """The network of a model folder in float32 and evaluation mode, and its card.

    Raises:
        ValueError: the folder holds a network of another class.
    """
    network, card = load_model(folder, networks=NETWORKS)
    assert isinstance(network, ProteinTransformer)
    return network.eval(), card


def save_transformer(
    folder: Path,
    network: ProteinTransformer,
    *,
    training: dict[str, Any],
    metrics: dict[str, int | float],
    step_grids: dict[int, list[float]] | None = None,
    guidance: Guidance | None = None,
    storage_dtype: str = "float32",
) -> Card:
    """Write a model folder.

    Velocities of the network lead from noise to data, in Proteina's time, as in the released files; the
    card's path and prediction are those of the denoiser that `chain_denoiser` makes of it.
    """
    card = Card(
        network="ProteinTransformer",
        config=network_config(network.config),
        step_grids={str(steps): times for steps, times in (step_grids or {}).items()},
        guidance=guidance or Guidance(),
        training=cast(Any, training),
        metrics=metrics,
        storage_dtype=storage_dtype,
    )
    return save_model(folder, network, card)
