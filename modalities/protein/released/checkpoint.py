"""Proteina's ``.ckpt`` files, raw, averaged or with low-rank updates, and files of students made of them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core.checkpoints import check_names_and_shapes
from fewstep.modalities.protein.networks.sequence_features import SequenceFeature
from fewstep.modalities.protein.networks.transformer import ProteinTransformer
from fewstep.modalities.protein.released.archive import open_archive, plain
from fewstep.modalities.protein.released.lora import merged
from fewstep.modalities.protein.released.sizes import config_from_shapes, written_config

log = logging.getLogger(__name__)

LICENCE = "LicenseRef-NVIDIA-Proteina-NonCommercial"
NOTICE = (
    "Proteina's weights are NVIDIA's, for research and evaluation only and not for commercial use; "
    "a model distilled from them inherits these terms"
)
WRAPPERS = ("model.", "module.")  # what training code puts before the names
NETWORK = "nn."
LORA_ALPHA = 32.0  # of the released low-rank updates


def load_released(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    sequence_features: tuple[SequenceFeature, ...] | None = None,
) -> ProteinTransformer:
    """A network in evaluation mode and float32; names and shapes must be exact.

    Proteina's training writes pairs of files, ``X.ckpt`` with the weights and ``X-EMA.ckpt`` with their
    average; both read alike. Nothing in a file is run. The licence of the weights is logged.

    Args:
        path: a ``.ckpt`` or other file of ``torch.save`` with a state dict, bare or under ``state_dict``; or
            ``.safetensors`` with the same names.
        sequence_features: the order of the input's columns, for files that do not say it themselves.

    Raises:
        ValueError: another kind of file, another network, or missing, unexpected or reshaped weights.
    """
    path = Path(path)
    state, written = _read(path)
    alpha = float(_part(written, "lora").get("lora_alpha") or LORA_ALPHA)
    weights = merged(_unwrapped(state, str(path)), alpha, str(path))
    record = _part(_part(written, "model"), "nn")
    if record:
        config = written_config(record, weights, str(path))
    else:
        config = config_from_shapes(weights, str(path), sequence_features)
    with torch.device("meta"):
        network = ProteinTransformer(config)
    check_names_and_shapes(network.state_dict(), weights, str(path))
    weights = {name: value.to(device, torch.float32) for name, value in weights.items()}
    network.load_state_dict(weights, assign=True)
    log.warning("%s: %s", path, NOTICE)
    return network.eval()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict, and the experiment's configuration if the file has one."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path), {}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); copy it again") from error
    archive = open_archive(path)
    if not isinstance(archive.content, Mapping):
        raise ValueError(f"{path} holds a {type(archive.content).__name__}, expected weights by name")
    state = archive.content.get("state_dict", archive.content)
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: state_dict is a {type(state).__name__}, expected weights by name")
    return archive.tensors(state), _part(plain(archive.content.get("hyper_parameters")), "cfg_exp")


def _part(record: Any, name: str) -> dict[str, Any]:
    """A mapping within a mapping; empty if there is none."""
    found = record.get(name) if isinstance(record, Mapping) else None
    return found if isinstance(found, dict) else {}


def _unwrapped(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Names as our network has them.

    Raises:
        ValueError: a name that is not of the network, or two that become one.
    """
    weights: dict[str, Tensor] = {}
    foreign: list[str] = []
    for name, value in state.items():
        bare = name
        while bare.startswith(WRAPPERS):
            bare = bare.partition(".")[2]
        if not bare.startswith(NETWORK):
            foreign.append(name)
            continue
        bare = bare.removeprefix(NETWORK)
        if bare in weights:
            raise ValueError(f"{where} holds {bare} twice, under different prefixes; it is not one network")
        weights[bare] = value
    if foreign:
        raise ValueError(f"{where} does not fit the network; unexpected: {', '.join(foreign[:8])}")
    return weights
