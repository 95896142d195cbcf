"""Model folders of protein networks: which class a folder may name, and how it is saved and loaded."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from fewstep.core.checkpoints import Card, Guidance, load_model, network_config, save_model
from fewstep.modalities.protein.networks.transformer import ProteinTransformer, ProteinTransformerConfig
from fewstep.modalities.protein.released.checkpoint import LICENCE, NOTICE, load_released

log = logging.getLogger(__name__)

NETWORKS = {"ProteinTransformer": (ProteinTransformer, ProteinTransformerConfig)}


def load_transformer(path: Path) -> tuple[ProteinTransformer, Card]:
    """The network of a model folder or of a released file, in float32 and evaluation mode, and its card.

    A file's card says no more than its sizes and its licence. Weights that are not free for every use say so
    in the log.

    Raises:
        ValueError: the folder holds a network of another class, or the file does not fit (`load_released`).
    """
    if path.is_file():
        network = load_released(path)
        config = network_config(network.config)
        return network, Card(network="ProteinTransformer", config=config, licence=LICENCE)
    network, card = load_model(path, networks=NETWORKS)
    assert isinstance(network, ProteinTransformer)
    if card.licence == LICENCE:
        log.warning("%s: %s", path, NOTICE)
    return network.eval(), card


def save_transformer(
    folder: Path,
    network: ProteinTransformer,
    *,
    training: dict[str, Any],
    metrics: dict[str, int | float],
    step_grids: dict[int, list[float]] | None = None,
    guidance: Guidance | None = None,
    licence: str = "Apache-2.0",
    storage_dtype: str = "float32",
) -> Card:
    """Write a model folder.

    Velocities of the network lead from noise to data, in Proteina's time, as in the released files; the
    card's path and prediction are those of the denoiser that `chain_denoiser` makes of it. A student has
    the licence of its teacher.
    """
    card = Card(
        network="ProteinTransformer",
        config=network_config(network.config),
        step_grids={str(steps): times for steps, times in (step_grids or {}).items()},
        guidance=guidance or Guidance(),
        training=cast(Any, training),
        metrics=metrics,
        licence=licence,
        storage_dtype=storage_dtype,
    )
    return save_model(folder, network, card)


def trained_lengths(card: Card) -> list[int] | None:
    """Residues of the shortest and of the longest chain in training; None where the card does not say."""
    data = _init_args(card.training, "data")
    if not {"min_length", "max_length"} <= set(data):
        return None
    return [int(data["min_length"]), int(data["max_length"])]


def knows_folds(card: Card) -> bool:
    """A teacher is told fold classes by default, a student only where its roles say so."""
    model = _init_args(card.training, "model")
    if "roles" in model:
        return bool(model["roles"].get("init_args", {}).get("folds", False))
    return float(model.get("label_dropout", 1.0)) < 1


def _init_args(training: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found = training.get(part, {})
    return found.get("init_args", {}) if isinstance(found, Mapping) else {}
