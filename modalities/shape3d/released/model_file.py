"""One model of TRELLIS: `X.json` with its class and arguments, `X.safetensors` with its weights; and the
checkpoints that its trainers write.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.core.checkpoints import READABLE, check_names_and_shapes
from fewstep.modalities.shape3d.networks.image_encoder import ImageEncoder, ImageEncoderConfig
from fewstep.modalities.shape3d.networks.latent_flow import LatentFlow, LatentFlowConfig
from fewstep.modalities.shape3d.networks.latent_vae import (
    GaussianDecoder,
    GaussianDecoderConfig,
    LatentEncoder,
    LatentEncoderConfig,
    MeshDecoder,
    MeshDecoderConfig,
    RadianceFieldDecoder,
    RadianceFieldDecoderConfig,
)
from fewstep.modalities.shape3d.networks.structure_flow import StructureFlow, StructureFlowConfig
from fewstep.modalities.shape3d.networks.structure_vae import (
    StructureDecoder,
    StructureDecoderConfig,
    StructureEncoder,
    StructureEncoderConfig,
)
from fewstep.modalities.shape3d.released.representations import (
    Representation,
    gaussian_fields,
    gaussian_representation,
    mesh_fields,
    mesh_representation,
    radiance_fields,
    radiance_representation,
)
from fewstep.modalities.video.released.weight_files import read_weights

Arguments = dict[str, Any]
TRAINING_ONLY = ("use_checkpoint",)  # what an argument changes that no forward pass does
ELASTIC = "Elastic"  # of classes that differ in the memory that their training takes, and in nothing else
REPRESENTATION = "representation_config"
QUIRKS = ("pool_include_self", "reinterpret_pointwise")  # whose values are fixed in TRELLIS

OPTIONAL: Mapping[str, Any] = {
    "num_res_blocks_middle": 2,
    "norm_type": "layer",
    "num_heads": None,
    "num_head_channels": 64,
    "mlp_ratio": 4.0,
    "patch_size": 2,
    "num_io_res_blocks": 2,
    "pe_mode": "ape",
    "attn_mode": "swin",
    "window_size": 8,
    "use_skip_connection": True,
    "share_mod": False,
    "qk_rms_norm": False,
    "qk_rms_norm_cross": False,
    "use_fp16": False,
}  # what TRELLIS's constructors take where a file does not say


@dataclass(frozen=True)
class Kind:
    """A class of TRELLIS: ours in its place, and how its `representation_config` reads."""

    network: Callable[..., nn.Module]
    config: type
    read: Callable[[Representation], dict[str, Any]] | None = None
    write: Callable[[Any], Representation] | None = None


KINDS: Mapping[str, Kind] = {
    "SparseStructureEncoder": Kind(StructureEncoder, StructureEncoderConfig),
    "SparseStructureDecoder": Kind(StructureDecoder, StructureDecoderConfig),
    "SparseStructureFlowModel": Kind(StructureFlow, StructureFlowConfig),
    "SLatFlowModel": Kind(LatentFlow, LatentFlowConfig),
    "SLatEncoder": Kind(LatentEncoder, LatentEncoderConfig),
    "SLatMeshDecoder": Kind(MeshDecoder, MeshDecoderConfig, mesh_fields, mesh_representation),
    "SLatGaussianDecoder": Kind(
        GaussianDecoder, GaussianDecoderConfig, gaussian_fields, gaussian_representation
    ),
    "SLatRadianceFieldDecoder": Kind(
        RadianceFieldDecoder, RadianceFieldDecoderConfig, radiance_fields, radiance_representation
    ),
    # not TRELLIS's, but in the same files: the picture's encoder of a pipeline that brings its own
    "ImageEncoder": Kind(ImageEncoder, ImageEncoderConfig),
}


def build(name: str, arguments: Arguments, where: str) -> nn.Module:
    """A network of one of TRELLIS's classes from the arguments of its constructor, in its storage dtypes.

    Args:
        where: what error messages begin with.

    Raises:
        ValueError: for an unknown class, and for missing, unknown or unsupported arguments.
    """
    kind = KINDS.get(name.removeprefix(ELASTIC))
    if kind is None:
        raise ValueError(f"{where}: class {name!r} is not supported; supported are {', '.join(KINDS)}")
    given = {key: value for key, value in arguments.items() if key not in TRAINING_ONLY}
    representation = given.pop(REPRESENTATION, None) if kind.read else None
    read = kind.read(representation or {}) if kind.read else {}
    known = {field.name for field in fields(kind.config)} - set(QUIRKS) - set(read)
    missing = sorted(known - set(given) - set(OPTIONAL))
    unknown = sorted(set(given) - known)
    if missing or unknown:
        raise ValueError(f"{where}: arguments of {name} do not fit; missing: {missing}, unknown: {unknown}")
    values = {key: OPTIONAL[key] for key in known if key in OPTIONAL} | given | read
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return kind.network(kind.config(**values))
    except TypeError as error:
        raise ValueError(f"{where}: an argument of {name} is of a wrong type ({error})") from error


def load_model_file(path: str | Path, *, device: torch.device | str = "cpu") -> nn.Module:
    """The network of `path`.json and `path`.safetensors in evaluation mode; names and shapes must be exact.

    A torso in half precision stays so on a GPU; on a CPU it is float32.
    """
    path = Path(path)
    record = _read_json(path.with_name(path.name + ".json"))
    weights = path.with_name(path.name + ".safetensors")
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing; copy it beside its .json")
    if set(record) != {"name", "args"} or not isinstance(record["args"], dict):
        raise ValueError(f"{path}.json must hold `name` and an object `args`, it holds {sorted(record)}")
    with torch.device("meta"):
        network = build(record["name"], record["args"], f"{path}.json")
    try:
        state = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"{weights} is not a whole safetensors file ({error}); copy it again") from error
    return _filled(network, state, str(weights), torch.device(device))


def save_model_file(network: nn.Module, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write `path`.json and `path`.safetensors as TRELLIS reads them.

    Args:
        dtype: of all weights; None is those of TRELLIS's own files. Either is loaded into the dtypes that
            the arguments say.

    Raises:
        ValueError: the network has a size or a switch that TRELLIS's classes do not know.
    """
    path = Path(path)
    name, arguments = _arguments(network)
    with torch.device("meta"):
        stored = build(name, arguments, name).state_dict()
    state = {
        key: value.detach().to("cpu", dtype or stored[key].dtype).contiguous().clone()
        for key, value in network.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = path.with_name(path.name + ".safetensors")
    save_file(state, weights)
    weights.chmod(READABLE)
    record = json.dumps({"name": name, "args": arguments}, indent=4)
    path.with_name(path.name + ".json").write_text(record + "\n")


def load_trainer_checkpoint(
    folder: str | Path,
    name: str,
    *,
    step: int,
    ema_rate: float | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A network from the run folder of one of TRELLIS's trainers: `config.json`, and `.pt` files in `ckpts`.

    Args:
        name: of the model in the configuration, such as "denoiser".
        step: of the checkpoint.
        ema_rate: of the averaged weights to take; None for the weights themselves.
    """
    folder = Path(folder)
    models = _read_json(folder / "config.json").get("models", {})
    if name not in models:
        raise ValueError(f"name={name!r} is no model of {folder / 'config.json'}, which has {sorted(models)}")
    average = "" if ema_rate is None else f"_ema{ema_rate}"
    path = folder / "ckpts" / f"{name}{average}_step{step:07d}.pt"
    if not path.is_file():
        found = sorted(file.name for file in folder.glob(f"ckpts/{name}*.pt"))
        raise FileNotFoundError(f"{path} is missing; the folder has {', '.join(found) or 'no checkpoint'}")
    with torch.device("meta"):
        network = build(models[name]["name"], models[name]["args"], str(folder / "config.json"))
    state = read_weights(path)
    return _filled(network, state, str(path), torch.device(device))


def _filled(network: nn.Module, state: Mapping[str, Tensor], where: str, device: torch.device) -> nn.Module:
    expected = network.state_dict()
    check_names_and_shapes(expected, state, where)
    on_cpu = device.type == "cpu"
    # a torso in half precision is only worth its rounding where such products are fast
    values = {
        key: value.to(device, torch.float32 if on_cpu else expected[key].dtype)
        for key, value in state.items()
    }
    network.load_state_dict(values, assign=True)
    return network.eval().requires_grad_(False)


def _arguments(network: nn.Module) -> tuple[str, Arguments]:
    """The name of TRELLIS's class and the arguments of its constructor."""
    names = [name for name, kind in KINDS.items() if type(network) is kind.network]
    if not names:
        raise ValueError(f"network is a {type(network).__name__}, for which the format has no class")
    name, kind = names[0], KINDS[names[0]]
    config: Any = network.config
    changed = [key for key in QUIRKS if not getattr(config, key, True)]
    if changed:
        raise ValueError(f"{', '.join(changed)}=False cannot be written: TRELLIS's classes have it fixed")
    arguments = {key: value for key, value in asdict(config).items() if key not in QUIRKS}
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    if kind.read and kind.write:
        representation = kind.write(config)
        for key in kind.read(representation):
            arguments.pop(key)
        arguments[REPRESENTATION] = representation
    return name, arguments


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the folder whole")
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); the file is damaged") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold an object, it holds a {type(record).__name__}")
    return record
