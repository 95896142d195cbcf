"""Wan's transformer out of any file or folder it is released in: original or diffusers layout, plain or
wrapped by the code that distilled it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.checkpoints import check_names_and_shapes
from fewstep.modalities.video.released.key_maps import TRANSFORMER
from fewstep.modalities.video.released.weight_files import INDEX, State, read_adapters, read_generator
from fewstep.modalities.video.transformer import TransformerConfig, VideoTransformer

HEAD_DIM = 128  # of all released sizes
DIFFUSERS_SIGN = "condition_embedder."
IMAGE_SIGNS = ("img_emb.", "condition_embedder.image_embedder.", ".k_img.", ".add_k_proj.")
WEIGHTS = ("diffusion_pytorch_model", "model")  # of a folder, before .safetensors or the index
CONFIG = "config.json"
LORA_A, LORA_B, LORA_PREFIX = ".lora_A.weight", ".lora_B.weight", "base_model.model."
LORA_NAMED = {LORA_A: ".lora_A.default.weight", LORA_B: ".lora_B.default.weight"}  # peft's within a network


def load_transformer_file(
    path: Path,
    *,
    config_folder: Path | None = None,
    ema: bool = True,
    lora: Path | None = None,
    lora_scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> VideoTransformer:
    """The transformer of a file, or of a folder with `config.json`, in evaluation mode; names and shapes must
    be exact.

    Args:
        config_folder: where `config.json` is, for files that come without; None reads the sizes from the
            weights, with heads of 128 as in all released sizes.
        ema: take averaged weights where the file has both.
        lora: a file of adapters to merge into the weights (LongLive's ``lora.pt``).
        lora_scale: alpha over rank; 1 for LongLive, both are 256.
        dtype: of the result; None is the file's own.

    Raises:
        FileNotFoundError, ValueError: whose one line says what is missing or does not fit, and what to do.
    """
    folder = path if path.is_dir() else config_folder
    file = weights_of(path) if path.is_dir() else path
    state = read_generator(file, ema=ema)
    foreign = [name for name in state if any(sign in name for sign in IMAGE_SIGNS)]
    if foreign:
        raise ValueError(
            f"{file} is a transformer that takes pictures ({foreign[0]}); use a text-to-video one, "
            "which continues start frames"
        )
    if any(name.startswith(DIFFUSERS_SIGN) for name in state):
        state = TRANSFORMER.renamed_to_wan(state, str(file))
    known = read_sizes(folder) if folder is not None and (folder / CONFIG).is_file() else {}
    config = config_of(state, known, str(file))
    if lora is not None:
        state = merged_lora(state, read_adapters(lora), str(lora), scale=lora_scale)
    with torch.device("meta"):
        network = VideoTransformer(config)
    check_names_and_shapes(network.state_dict(), state, str(file))
    wanted = dtype or state["patch_embedding.weight"].dtype
    for name, value in state.items():  # one by one, so that there are never two whole sets of them
        state[name] = value.to(wanted)
    network.load_state_dict(state, assign=True)
    return network.eval()


def weights_of(folder: Path) -> Path:
    """The file of weights, or the index of several, in a folder of Wan or of diffusers."""
    for stem in WEIGHTS:
        for name in (f"{stem}{INDEX}", f"{stem}.safetensors"):
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(
        f"{folder} has no {WEIGHTS[0]}.safetensors and no index of several; copy or download the folder whole"
    )


def read_sizes(folder: Path) -> dict[str, Any]:
    """What a `config.json` of Wan or of diffusers says of the sizes, in our names; what it leaves out is left
    out.
    """
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy the file again") from error
    names = {
        "num_layers": "num_layers",
        "ffn_dim": "ffn_dim",
        "freq_dim": "freq_dim",
        "eps": "eps",
        "dim": "dim",
        "num_heads": "num_heads",
        "num_attention_heads": "num_heads",
        "in_dim": "channels",
        "in_channels": "channels",
        "text_dim": "text_dim",
    }
    found = {ours: record[theirs] for theirs, ours in names.items() if theirs in record}
    if "attention_head_dim" in record and "num_heads" in found:
        found["dim"] = record["attention_head_dim"] * found["num_heads"]
    return found


def config_of(state: Mapping[str, Tensor], known: Mapping[str, Any], where: str) -> TransformerConfig:
    """Sizes that the weights (under Wan's names) show; ``known`` gives what they do not, and must agree."""
    try:
        dim, channels, _, rows, columns = state["patch_embedding.weight"].shape
        seen: dict[str, Any] = {
            "dim": dim,
            "channels": channels,
            "patch_size": (rows, columns),
            "ffn_dim": state["blocks.0.ffn.0.weight"].shape[0],
            "num_layers": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
            "freq_dim": state["time_embedding.0.weight"].shape[1],
            "text_dim": state["text_embedding.0.weight"].shape[1],
        }
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{where} is no transformer of Wan: {error} is missing or has another shape; it begins with "
            f"{', '.join(list(state)[:2])}; give the file of a student of Wan 2.1"
        ) from error
    differing = {
        name: (known[name], value) for name, value in seen.items() if known.get(name, value) != value
    }
    if differing:
        raise ValueError(f"{where} does not belong to its {CONFIG}; there and in the weights: {differing}")
    heads = known.get("num_heads") or dim // HEAD_DIM
    if not heads:
        raise ValueError(f"{where}: dim={dim} is no multiple of {HEAD_DIM}; put its {CONFIG} beside it")
    return TransformerConfig(**seen, num_heads=heads, eps=known.get("eps", TransformerConfig.eps))


def merged_lora(
    state: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str, *, scale: float
) -> State:
    r"""Weights with peft's adapters in them, :math:`W + scale \, B A`.

    Raises:
        ValueError: an adapter without its other half, or of no weight of the network.
    """
    adapters = {_adapter_name(name): value for name, value in found.items()}
    if len(adapters) < len(found):
        raise ValueError(f"{where} holds adapters of one layer twice; give those of one network alone")
    downs = {name.removesuffix(LORA_A) for name in adapters if name.endswith(LORA_A)}
    ups = {name.removesuffix(LORA_B) for name in adapters if name.endswith(LORA_B)}
    odd = sorted((downs ^ ups) | {name for name in adapters if not name.endswith((LORA_A, LORA_B))})
    odd += sorted(name for name in downs if f"{name}.weight" not in state)
    if odd or not downs:
        raise ValueError(
            f"{where} does not fit as adapters of this network: {', '.join(odd[:4]) or 'empty'}; give those "
            "that were released with this student"
        )
    merged = dict(state)
    for name in downs:
        weight = state[f"{name}.weight"]
        change = adapters[name + LORA_B].float() @ adapters[name + LORA_A].float()
        merged[f"{name}.weight"] = (weight.float() + scale * change).to(weight.dtype)
    return merged


def _adapter_name(name: str) -> str:
    """As peft writes it to a file; a network's own state also says which of several adapters it is."""
    name = name.removeprefix(LORA_PREFIX).removeprefix("model.")
    for saved, named in LORA_NAMED.items():
        if name.endswith(named):
            return name.removesuffix(named) + saved
    return name
