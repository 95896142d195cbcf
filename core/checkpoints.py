"""Model folders: `model.safetensors` and the `card.json` that says what the weights are."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.core.paths import Prediction
from fewstep.core.weightless import weightless

FORMAT = 1
WEIGHTS = "model.safetensors"
CARD = "card.json"
READABLE = 0o644  # safetensors writes files that only their owner may read
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHOICES: dict[str, tuple[str | None, ...]] = {
    "path": ("linear", "vp", "edm", "trigflow", None),
    "prediction": (*get_args(Prediction), None),
    "storage_dtype": tuple(DTYPES),
}
LISTED_NAMES = 8  # of missing or unexpected weights in an error message

Networks = Mapping[str, tuple[Callable[..., nn.Module], type]]
"""What a loader is ready to build: class name -> (network class, its configuration dataclass)."""


def why_no_model(name: str | Path, modality: str, *, needed: str, known: Iterable[str]) -> str:
    """That ``name`` is no preset and no folder with the file ``needed``, and what to do, in a line."""
    if (Path(name) / CARD).is_file():
        return (
            f"{name} holds one network as training leaves it, not a whole {modality} model; "
            "make one of it and its teacher with fewstep pack"
        )
    presets = ", ".join(sorted(known)) or "(none)"
    return f"no {modality} model {str(name)!r}: give a folder with {needed}, or one of {presets}"


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance: the scale w (1 is off), and whether distillation put it in the weights."""

    scale: int | float = 1.0
    baked: bool = False


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything but the weights that is needed to run a model, and where it came from.

    Args:
        network: class name of the network.
        config: the network's configuration, a dataclass as a dict.
        path: noising path of the model's times; None for a codec.
        prediction: what the network returns; None for a codec.
        step_grids: for few-step students, number of steps -> times, descending from 1 or less.
        guidance: how to guide, or that it is done.
        training: the resolved configuration of the training run.
        metrics: name -> value on validation data.
        licence: of the weights, as an SPDX name.
        storage_dtype: of the floating-point weights in the file.
        weights_sha256: of the weights file; filled in by `save_model`.
        training_sha256: of `training`; filled in by `save_model`.
        format: version of this layout.
    """

    network: str
    config: dict[str, object]
    path: str | None = "linear"
    prediction: Prediction | None = "velocity"
    step_grids: dict[str, list[float]] = field(default_factory=dict)
    guidance: Guidance = field(default_factory=Guidance)
    training: dict[str, object] = field(default_factory=dict)
    metrics: dict[str, int | float] = field(default_factory=dict)
    licence: str = "Apache-2.0"
    storage_dtype: str = "float32"
    weights_sha256: str = ""
    training_sha256: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(
                f"format={self.format} of the card is not {FORMAT}; update fewstep or save the model again"
            )
        _check_choices(vars(self), "card")
        for steps, times in self.step_grids.items():
            _check_grid(steps, times)

    def times(self, num_steps: int) -> list[float]:
        """The student's times for this number of steps."""
        if str(num_steps) not in self.step_grids:
            known = ", ".join(self.step_grids) or "none, it is not a few-step student"
            raise ValueError(f"num_steps={num_steps} is not a step grid of this model; it has {known}")
        return self.step_grids[str(num_steps)]

    def nfe(self, num_steps: int) -> int:
        """Network evaluations for one sample (or chunk) at this number of steps."""
        guided = self.guidance.scale not in (0.0, 1.0) and not self.guidance.baked
        return num_steps * (2 if guided else 1)


def student_grids(step_grids: Mapping[int, list[float]]) -> dict[int, tuple[float, ...]]:
    """The grids that a student is distilled to, as its card will take them; wrong ones are a ValueError."""
    if not step_grids:
        raise ValueError("step_grids is empty; give at least one, such as {1: [1.0]}")
    for steps, times in step_grids.items():
        _check_grid(str(steps), list(times))
    return {int(steps): tuple(times) for steps, times in step_grids.items()}


def network_config(config: object) -> dict[str, object]:
    """A configuration dataclass as it stands in a card."""
    if not is_dataclass(config) or isinstance(config, type):
        raise ValueError(f"config is a {type(config).__name__}, expected an instance of a dataclass")
    return json.loads(json.dumps(asdict(config)))


def save_model(folder: str | Path, network: nn.Module, card: Card) -> Card:
    """Write a model folder; an existing one is replaced whole, and an interrupted save leaves it as it was.

    Floating-point weights are stored as `card.storage_dtype`. Returns the card as written, with its digests.
    """
    folder = Path(folder)
    if type(network).__name__ != card.network:
        raise ValueError(f"card.network={card.network!r}, but the network is a {type(network).__name__}")
    if folder.exists() and not (folder / CARD).is_file() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} exists and is no model folder (it has no {CARD}); choose another or delete it"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        partial = Path(scratch) / "new"
        partial.mkdir()
        save_file(_stored(network, DTYPES[card.storage_dtype]), partial / WEIGHTS)
        (partial / WEIGHTS).chmod(READABLE)
        record = asdict(card) | {
            "weights_sha256": _file_sha256(partial / WEIGHTS),
            "training_sha256": _json_sha256(card.training),
        }
        (partial / CARD).write_text(json.dumps(record, indent=2) + "\n")
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        os.replace(partial, folder)
    return read_card(folder)


def read_card(folder: str | Path) -> Card:
    """The card of a model folder; unknown or missing fields are a ValueError."""
    path = Path(folder) / CARD
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no {CARD}")
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); the file is damaged") from error
    guidance = record.get("guidance", {}) if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(guidance, dict):
        raise ValueError(f"{path} must hold an object with an object `guidance`")
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {record.get('format')}, this version reads {FORMAT}; update fewstep"
        )
    _check_fields(Card, record, str(path))
    _check_fields(Guidance, guidance, f"{path}: guidance")
    _check_choices(record, str(path))
    record["guidance"] = Guidance(**guidance)
    card = Card(**record)
    if card.training_sha256 != _json_sha256(card.training):
        raise ValueError(f"{path}: `training` was edited after the model was saved (training_sha256 differs)")
    return card


def load_model(folder: str | Path, *, networks: Networks, as_stored: bool = False) -> tuple[nn.Module, Card]:
    """Build the network of a model folder, load its weights strictly, and return it with its card.

    Nothing is unpickled and no code is imported by name: `networks` lists what may be built. No memory is
    taken but that of the weights.

    Args:
        as_stored: keep the dtype of the file, and leave its numbers there until they are asked for; otherwise
            they become what the network is built in, float32, as training wants it.
    """
    folder = Path(folder)
    card = read_card(folder)
    if card.network not in networks:
        raise ValueError(f"{folder} holds a {card.network}, expected one of {', '.join(networks)}")
    network_class, config_class = networks[card.network]
    # sizes added to a network later have defaults that leave older folders as they were
    _check_fields(config_class, card.config, f"{folder / CARD}: config", optional=_defaulted(config_class))
    # JSON has no tuples; configurations are frozen and have no lists
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in card.config.items()}
    with weightless():
        network = network_class(config_class(**values))
    load_weights(network, folder, sha256=card.weights_sha256, as_stored=as_stored)
    return network, card


def load_weights(network: nn.Module, folder: Path, *, sha256: str, as_stored: bool = False) -> None:
    """Put a model folder's weights into a network that must have exactly these names and shapes."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}; the folder is incomplete")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); copy or train it again"
        ) from error
    expected = network.state_dict()
    check_names_and_shapes(expected, found, str(path))
    if _file_sha256(path) != sha256:
        raise ValueError(f"{path} differs from the weights its card was written for (weights_sha256)")
    if not as_stored:
        # copied even where the dtype is the same: the file's own memory is aligned as the file is
        found = {name: found.pop(name).to(value.dtype, copy=True) for name, value in expected.items()}
    network.load_state_dict(found, assign=True)


def check_names_and_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Raise a ValueError that lists missing, unexpected and reshaped tensors, if there are any."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    reshaped = [
        f"{name} {list(found[name].shape)} instead of {list(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    problems = [
        f"{kind}: {_listed(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("reshaped", reshaped))
        if names
    ]
    if problems:
        raise ValueError(
            f"{where} does not fit the network; {'; '.join(problems)}; copy the file again, or choose another"
        )


def _check_grid(steps: str, times: list[float]) -> None:
    falling = bool(times) and sorted(set(times), reverse=True) == times and 0 < times[-1] <= times[0] <= 1
    if str(len(times)) != steps or not falling:
        raise ValueError(
            f"step_grids[{steps!r}]={times} must be {steps} times that fall from 1 or less, above 0"
        )


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED_NAMES
    return ", ".join(names[:LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")


def _defaulted(kind: type) -> Set[str]:
    return {f.name for f in fields(kind) if f.default is not MISSING or f.default_factory is not MISSING}


def _check_fields(
    kind: type, record: Mapping[str, object], where: str, *, optional: Set[str] = frozenset()
) -> None:
    known = {f.name for f in fields(kind)}
    missing, unknown = sorted(known - set(record) - optional), sorted(set(record) - known)
    if missing or unknown:
        raise ValueError(f"{where} does not fit {kind.__name__}; missing: {missing}, unknown: {unknown}")


def _check_choices(record: Mapping[str, object], where: str) -> None:
    for name, accepted in CHOICES.items():
        if record[name] not in accepted:
            raise ValueError(f"{where}: {name}={record[name]!r} must be one of {accepted}")


def _stored(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    # cloned, as safetensors refuses tensors that share memory (tied weights)
    return {
        name: value.detach()
        .to("cpu", dtype if value.is_floating_point() else value.dtype)
        .contiguous()
        .clone()
        for name, value in network.state_dict().items()
    }


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
