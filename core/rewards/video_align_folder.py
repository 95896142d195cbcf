"""The files of VideoAlign's reward model, as released."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

Axis = Literal["VQ", "MQ", "TA"]
AXES: tuple[Axis, ...] = get_args(Axis)
TOKENS = tuple(f"<|{axis}_reward|>" for axis in AXES)

CONFIG = "model_config.json"
TEMPLATE_FILES = ("prompt_template.py", "prompt_template.txt")
TEMPLATE_NAME = "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"  # of the constant in VideoAlign's prompt_template.py
CAPTION = "{text_prompt}"
LORA_PARTS = ("lora_A.default.weight", "lora_B.default.weight")
LISTED_NAMES = 8  # of weights in an error message


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What ``model_config.json`` says, as far as scoring needs it.

    Args:
        base: model folder or hub id of the Qwen2-VL it was trained from.
        outputs: of the reward head; 1 is read at each token, of 3 each at its own.
        fps: frames per second that the model looks at.
        max_frame_pixels: largest area of a frame.
        lora_scale: what the product of the LoRA matrices is multiplied by.
        mean: of the scores, visual quality, motion quality, text alignment; None where it is not given.
        std: their standard deviation.
    """

    base: str
    outputs: int
    fps: float
    max_frame_pixels: int
    lora_scale: float
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def find_folder(folder: str | Path) -> Path:
    """A local folder, or the snapshot of a hub id."""
    path = Path(folder)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise ValueError(
                f"folder={str(path)!r} has no {CONFIG}; give the folder of the released reward model"
            )
        return path
    if len(path.parts) != 2:
        raise ValueError(f"folder={str(path)!r} is neither a folder nor a hub id like KwaiVGI/VideoReward")
    from huggingface_hub import snapshot_download

    wanted = [CONFIG, *TEMPLATE_FILES, "checkpoint-*/model.pth"]
    return Path(snapshot_download(str(folder), allow_patterns=wanted))


def _checkpoint(folder: Path) -> Path:
    """The weights of the latest step."""
    found = {
        int(path.parent.name.removeprefix("checkpoint-")): path
        for path in folder.glob("checkpoint-*/model.pth")
    }
    if not found:
        raise ValueError(f"folder={str(folder)!r} has no checkpoint-STEP/model.pth; download the weights too")
    return found[max(found)]


def read_settings(path: Path) -> Settings:
    """From ``model_config.json``; a reward of another kind is a ValueError."""
    record = json.loads(path.read_text())
    try:
        model, data, lora = record["model_config"], record["data_config"], record["peft_lora_config"]
        kind = (model["use_special_tokens"], model["reward_token"], data["prompt_template_type"])
        calibration = record.get("inference_config")
        mean, std = (
            tuple(float(calibration[f"{axis}_{moment}"]) for axis in AXES) if calibration else None
            for moment in ("mean", "std")
        )
        scale = lora["lora_alpha"] / lora["lora_r"] ** (0.5 if lora.get("use_rslora") else 1)
        settings = Settings(
            base=model["model_name_or_path"],
            outputs=model["output_dim"],
            fps=float(data["fps"]),
            max_frame_pixels=data["max_frame_pixels"],
            lora_scale=scale,
            mean=mean,
            std=std,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no configuration of a VideoAlign reward: {error!r}") from error
    if kind != (True, "special", "detailed_special") or settings.outputs not in (1, len(AXES)):
        raise ValueError(
            f"{path} describes a reward with {kind} and output_dim={settings.outputs}; "
            "only the one with special tokens and 1 or 3 outputs is known"
        )
    return settings


def read_template(template: str | Path | None, folder: Path) -> str:
    """The text that asks for the ratings: out of a Python file's constant, a text file, or as it is."""
    if template is None:
        found = [folder / name for name in TEMPLATE_FILES if (folder / name).is_file()]
        if not found:
            raise ValueError(
                f"{folder} has no {' or '.join(TEMPLATE_FILES)}; "
                "copy prompt_template.py of the VideoAlign repository there, or pass template=..."
            )
        template = found[0]
    if isinstance(template, Path) or CAPTION not in template:
        path = Path(template)
        if not path.is_file():
            raise ValueError(f"template={str(template)!r} is neither a file nor a text with {CAPTION}")
        text = path.read_text(encoding="utf-8")
        template = _constant(text, TEMPLATE_NAME, path) if path.suffix == ".py" else text
    for part in (CAPTION, *TOKENS):
        if template.count(part) != 1:
            raise ValueError(f"template holds {part} {template.count(part)} times; it must be there once")
    return template


def _constant(source: str, name: str, path: Path) -> str:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in node.targets
        ):
            return str(ast.literal_eval(node.value))
    raise ValueError(
        f"{path} defines no {name}; give VideoAlign's own prompt_template.py, or the text itself"
    )


def read_weights(folder: Path, lora_scale: float) -> dict[str, Tensor]:
    """The weights of the latest step under transformers' present names, LoRA merged."""
    path = _checkpoint(folder)
    stored: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    adapters = {key for key in stored if ".lora_" in key}
    weights: dict[str, Tensor] = {}
    for key in stored.keys() - adapters:
        value = stored[key]
        if key.endswith(".base_layer.weight"):
            parts = [key.replace("base_layer.weight", part) for part in LORA_PARTS]
            if not adapters.issuperset(parts):
                raise ValueError(f"{path} holds {key} without {' and '.join(LORA_PARTS)}; it is damaged")
            adapters.difference_update(parts)
            down, up = (stored[part].float() for part in parts)
            value = (value.float() + lora_scale * (up @ down)).to(value.dtype)
        weights[_present_name(key)] = value
    if adapters:
        raise ValueError(
            f"{path} holds adapters of a kind unknown here: {', '.join(sorted(adapters)[:LISTED_NAMES])}"
        )
    return weights


def _present_name(key: str) -> str:
    """transformers moved the language model and the vision tower since VideoAlign was saved."""
    name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
    for old, new in (
        ("model.visual.", "visual."),
        ("model.language_model.", "language_model."),
        ("model.", "language_model."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def take_head(weights: dict[str, Tensor], outputs: int) -> Tensor:
    """The reward head, taken out; the language model's own goes too."""
    weights.pop("lm_head.weight", None)
    head = weights.pop("rm_head.weight", None)
    if head is None or len(head) != outputs:
        told = "no rm_head.weight" if head is None else f"rm_head.weight with {len(head)} outputs"
        raise ValueError(f"the checkpoint has {told}, its configuration says output_dim={outputs}")
    return head
