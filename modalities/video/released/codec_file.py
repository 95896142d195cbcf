"""Decoders for Wan's latents out of the files they are released in: Wan's own autoencoder, and TAEHV."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.checkpoints import check_names_and_shapes
from fewstep.modalities.video.released.key_maps import AUTOENCODER
from fewstep.modalities.video.released.transformer_file import CONFIG, weights_of
from fewstep.modalities.video.released.weight_files import State, read_state
from fewstep.modalities.video.taehv import TAEHV, TAEHVConfig
from fewstep.modalities.video.wan_vae import WanVAE, WanVAEConfig

DIFFUSERS_SIGN = "quant_conv.weight"
FIXED = {"attn_scales": [], "is_residual": False, "patch_size": None, "in_channels": 3, "out_channels": 3}
FIXED |= {"decoder_base_dim": None}  # values of diffusers' configuration that Wan 2.1 has and we know


def load_wan_vae(path: Path, *, dtype: torch.dtype | None = None) -> WanVAE:
    """Wan's autoencoder from its own `Wan2.1_VAE.pth`, the same tensors as safetensors, or diffusers' folder
    `vae`; names and shapes must be exact.

    Args:
        dtype: of the result; None is the file's own.
    """
    file = weights_of(path) if path.is_dir() else path
    state = read_state(file)
    if DIFFUSERS_SIGN in state:
        state = AUTOENCODER.renamed_to_wan(state, str(file))
    said = path / CONFIG
    if said.is_file():
        config = vae_config(json.loads(said.read_text()), str(said))
    else:
        config = WanVAEConfig(**_vae_sizes(state, str(file)))
    network = _filled(WanVAE, config, state, str(file), dtype)
    assert isinstance(network, WanVAE)
    return network


def vae_config(record: Mapping[str, Any], where: str) -> WanVAEConfig:
    """What diffusers' `config.json` says; a ValueError names what is another autoencoder's."""
    foreign = {name: record[name] for name, value in FIXED.items() if record.get(name, value) != value}
    if foreign:
        raise ValueError(f"{where}: {foreign} is not Wan 2.1's autoencoder; use a Wan 2.1 folder")
    names = {
        "base_dim": "width",
        "z_dim": "channels",
        "dim_mult": "multipliers",
        "num_res_blocks": "blocks",
        "temperal_downsample": "halves_time",
        "latents_mean": "mean",
        "latents_std": "std",
    }
    found = {ours: record[theirs] for theirs, ours in names.items() if theirs in record}
    sizes: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
    return WanVAEConfig(**sizes)


def load_taehv(path: Path, *, dtype: torch.dtype | None = None) -> TAEHV:
    """TAEHV for Wan 2.1's latents (`taew2_1.pth`); names and shapes must be exact.

    Where the file's layers grow time and ours do not, the rows of the last frame are kept, as TAEHV's own
    code does it.
    """
    state = read_state(path)
    config = TAEHVConfig(**_taehv_sizes(state, str(path)))
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in TAEHV(config).state_dict().items()}
    for name, value in state.items():
        rows = shapes[name][0] if name in shapes else len(value)
        if name.startswith("decoder.") and value.shape[2:] == (1, 1) and len(value) == 2 * rows:
            state[name] = value[-rows:].contiguous()
    network = _filled(TAEHV, config, state, str(path), dtype)
    assert isinstance(network, TAEHV)
    return network


def _vae_sizes(state: State, where: str) -> dict[str, Any]:
    """Of Wan's structure, whatever its width."""
    try:
        width, channels = state["encoder.conv1.weight"].shape[0], state["conv2.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"{where} is not Wan 2.1's autoencoder: {error} is missing") from error
    if channels == WanVAEConfig.channels:
        return {"width": width}
    raise ValueError(
        f"{where} has latents of {channels} channels, whose statistics only a diffusers {CONFIG} says; "
        f"Wan 2.1 has {WanVAEConfig.channels}"
    )


def _taehv_sizes(state: State, where: str) -> dict[str, Any]:
    try:
        entry = state["decoder.1.weight"]
        exits = [state[f"decoder.{index}.weight"].shape[0] for index in (8, 14, 20)]
        return {
            "channels": entry.shape[1],
            "widths": (entry.shape[0], *exits),
            "encoder_width": state["encoder.0.weight"].shape[0],
        }
    except KeyError as error:
        raise ValueError(f"{where} is not TAEHV's file for Wan 2.1: {error} is missing") from error


def _filled(
    kind: Any, config: object, state: Mapping[str, Tensor], where: str, dtype: torch.dtype | None
) -> nn.Module:
    with torch.device("meta"):
        network = kind(config)
    check_names_and_shapes(network.state_dict(), state, where)
    wanted = dtype or next(iter(state.values())).dtype
    network.load_state_dict({name: value.to(wanted) for name, value in state.items()}, assign=True)
    return network.eval()
