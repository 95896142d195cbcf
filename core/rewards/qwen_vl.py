"""What Qwen's vision-language models read: frames as patches, a chat as tokens, and their positions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MAX_ASPECT = 200
MIN_FRAMES, MAX_FRAMES = 4, 768  # of a sampled clip, as the models were trained
GREY_LEVELS = 255

Grid = tuple[int, int, int]
"""Patches of one sample in time, height and width."""


@dataclass(frozen=True, kw_only=True)
class FrameFormat:
    """How frames become the patches that the vision tower reads, in torch, so that gradients pass.

    Args:
        mean: per channel, taken off.
        std: per channel, divided by.
        patch_size: side of a patch in pixels.
        merge_size: patches per side that form one token.
        temporal_patch_size: frames in a patch.
        min_pixels: smallest area of a resized frame.
        max_pixels: largest.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int

    @classmethod
    def load(cls, model: str | Path) -> "FrameFormat":
        """From the ``preprocessor_config.json`` of a model folder or hub id."""
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(str(model))
        size = processor.size
        return cls(
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
            patch_size=processor.patch_size,
            merge_size=processor.merge_size,
            temporal_patch_size=processor.temporal_patch_size,
            min_pixels=size["shortest_edge"],
            max_pixels=size["longest_edge"],
        )

    def limited(self, *, min_pixels: int, max_pixels: int) -> "FrameFormat":
        """The same with other areas."""
        unit = (self.patch_size * self.merge_size) ** 2
        if not unit <= min_pixels <= max_pixels:
            raise ValueError(f"min_pixels={min_pixels} and max_pixels={max_pixels} must rise from {unit}")
        return replace(self, min_pixels=min_pixels, max_pixels=max_pixels)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing: whole tokens, an area within the limits, about the same aspect."""
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise ValueError(f"frames of {height}x{width} exceed an aspect ratio of {MAX_ASPECT}; crop them")
        unit = self.patch_size * self.merge_size
        rounded = round(height / unit) * unit, round(width / unit) * unit
        area = rounded[0] * rounded[1]
        if area > self.max_pixels:
            shrink = math.sqrt(self.max_pixels / (height * width))
            return (
                max(1, math.floor(height * shrink / unit)) * unit,
                max(1, math.floor(width * shrink / unit)) * unit,
            )
        if area < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            return math.ceil(height * grow / unit) * unit, math.ceil(width * grow / unit) * unit
        return rounded

    def patches(
        self, pixels: Float[Tensor, " batch frame 3 height width"], *, in_bytes: bool = False
    ) -> tuple[Float[Tensor, " patch value"], Grid]:
        """Patches of all samples, in float32 and in the models' order, and the grid of one sample.

        Values outside [0, 1] are shown at the nearest end, as a screen or a file shows them, and their
        gradient passes as if they were not: a clamp would leave saturated pixels where they are for ever.
        Nothing here pulls them back; that is the work of the loss beside the reward.

        Args:
            in_bytes: round to 256 levels before and after resizing, as if read from a file. No gradient.
        """
        batch, count = pixels.shape[:2]
        height, width = self.size(pixels.shape[3], pixels.shape[4])
        frames = _shown(pixels.flatten(0, 1).float(), in_bytes)
        if frames.shape[2:] != (height, width):
            resized = F.interpolate(frames, size=(height, width), mode="bicubic", antialias=True)
            frames = _shown(resized, in_bytes)
        frames = (frames - frames.new_tensor(self.mean)[:, None, None]) / frames.new_tensor(self.std)[
            :, None, None
        ]
        frames = frames.unflatten(0, (batch, count))
        missing = -count % self.temporal_patch_size
        frames = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        grid = (
            frames.shape[1] // self.temporal_patch_size,
            height // self.patch_size,
            width // self.patch_size,
        )
        # Batch, time, frame of the patch, channel; for height and width: token, its patch, the patch's pixel.
        split = frames.reshape(
            batch,
            grid[0],
            self.temporal_patch_size,
            3,
            grid[1] // self.merge_size,
            self.merge_size,
            self.patch_size,
            grid[2] // self.merge_size,
            self.merge_size,
            self.patch_size,
        )
        return split.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).flatten(6).flatten(0, 5), grid

    def num_tokens(self, grid: Grid) -> int:
        """Tokens of the language model that a sample of this grid takes."""
        return math.prod(grid) // self.merge_size**2


def _shown(frames: Tensor, in_bytes: bool) -> Tensor:
    if in_bytes:
        return (frames.clamp(0, 1) * GREY_LEVELS).round() / GREY_LEVELS
    return frames + (frames.clamp(0, 1) - frames).detach()


def sampled_frames(count: int, *, fps: float, sample_fps: float, multiple: int) -> Int[Tensor, " sampled"]:
    """Evenly spaced frames at about ``sample_fps``, first and last among them: a multiple of ``multiple``,
    at least 4 and at most 768, and never more than there are.
    """
    if count < multiple:
        raise ValueError(
            f"pixels have {count} frames, fewer than the {multiple} of one patch; score longer clips"
        )
    if fps <= 0 or sample_fps <= 0:
        raise ValueError(f"fps={fps} and sample_fps={sample_fps} must be positive")
    most = min(MAX_FRAMES, count) // multiple * multiple
    wanted = min(max(count / fps * sample_fps, MIN_FRAMES), most)
    number = min(round(wanted / multiple) * multiple, count)
    return torch.linspace(0, count - 1, number).round().long()


@runtime_checkable
class ChatTokenizer(Protocol):
    """What is asked of transformers' tokenizers."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> Mapping[str, list[int]]: ...

    def apply_chat_template(
        self, conversation: list[dict[str, object]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str: ...

    def get_added_vocab(self) -> Mapping[str, int]: ...

    def add_tokens(self, new_tokens: list[str], special_tokens: bool = False) -> int: ...

    def convert_tokens_to_ids(self, tokens: str) -> int: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """A batch of chats as tokens, padded at the end.

    Args:
        ids: tokens.
        mask: True = real token.
        positions: of each token in time, height and width; the same number three times for words.
    """

    ids: Int[Tensor, " batch token"]
    mask: Bool[Tensor, " batch token"]
    positions: Int[Tensor, " 3 batch token"]

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """Index of each chat's last token."""
        return self.mask.sum(1) - 1

    def to(self, device: torch.device) -> "Prompts":
        """The same on another device."""
        return Prompts(
            ids=self.ids.to(device), mask=self.mask.to(device), positions=self.positions.to(device)
        )


def chat_tokens(
    tokenizer: ChatTokenizer, text: str, *, medium: str, placeholder: int, count: int
) -> list[int]:
    """One user turn that shows a picture or video and says ``text``, up to where the model answers.

    Args:
        medium: "image" or "video".
        placeholder: the token that stands for it, which the chat template writes once.
        count: times it is repeated.
    """
    content: object = [{"type": medium}, {"type": "text", "text": text}]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
    if ids.count(placeholder) != 1:
        raise ValueError(
            f"the chat template shows {ids.count(placeholder)} {medium}s instead of one; "
            "use a tokenizer with the chat template of a vision-language model"
        )
    where = ids.index(placeholder)
    return [*ids[:where], *[placeholder] * count, *ids[where + 1 :]]


def load_tokenizer(model: str | Path) -> ChatTokenizer:
    """The tokenizer of a model folder or hub id."""
    from transformers import AutoTokenizer

    return cast(ChatTokenizer, AutoTokenizer.from_pretrained(str(model)))


def refuse_special_tokens(tokenizer: ChatTokenizer, texts: Sequence[str]) -> None:
    """Raise where a text spells one of the tokens that give a chat its structure."""
    for token in tokenizer.get_added_vocab():
        for text in texts:
            if token in text:
                raise ValueError(
                    f"text {text!r} contains {token}, which means something to the model; remove it"
                )


def batch_prompts(rows: Sequence[Sequence[int]], positions: Sequence[Tensor]) -> Prompts:
    """Pad chats and their positions, [3, L] each, to one length."""
    padding = rows[0][0]  # masked, so any token will do that stands for no picture
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), padding)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    places = torch.zeros(3, len(rows), longest, dtype=torch.long)
    for index, (row, place) in enumerate(zip(rows, positions, strict=True)):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
        places[:, index, : len(row)] = place
    return Prompts(ids=ids, mask=mask, positions=places)


def positions_in_sequence(length: int) -> Int[Tensor, " 3 token"]:
    """Positions that ignore what is vision and what is text."""
    return torch.arange(length).expand(3, -1)


def positions_in_space(
    row: Sequence[int], *, placeholder: int, grid: Grid, merge_size: int, interval: float
) -> Int[Tensor, " 3 token"]:
    """Multimodal rotary positions (Qwen2-VL, section 2.1): vision counts in time, height and width from
    where it starts, text counts on from one past the largest number so far.

    Args:
        interval: numbers per step in time: 1 in Qwen2-VL, tokens per second times seconds in Qwen2.5-VL.
    """
    start = row.index(placeholder)
    time, height, width = torch.meshgrid(
        (torch.arange(grid[0]) * interval).long(),
        torch.arange(grid[1] // merge_size),
        torch.arange(grid[2] // merge_size),
        indexing="ij",
    )
    vision = torch.stack([time, height, width]).flatten(1) + start
    after = len(row) - start - vision.shape[1]
    text = torch.arange(after) + vision.max() + 1
    return torch.cat([positions_in_sequence(start), vision, text.expand(3, -1)], dim=1)


def read_config(model: str | Path, *, kinds: Sequence[str], argument: str) -> "PreTrainedConfig":
    """The configuration of a model folder or hub id, of one of these model types.

    Args:
        argument: what the caller calls ``model``, for errors.
    """
    from transformers import AutoConfig

    path = Path(model)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(
            f"{argument}={str(model)!r} is a folder without config.json; give a transformers model folder"
        )
    if not path.is_dir() and len(path.parts) != 2:
        raise ValueError(f"{argument}={str(model)!r} is neither a folder nor a hub id like owner/name")
    config = AutoConfig.from_pretrained(str(model))
    kind = type(config).model_type  # of the class: in transformers 4 an instance answers for its text part
    if kind not in kinds:
        raise ValueError(f"{argument}={str(model)!r} is a {kind!r}, expected one of {', '.join(kinds)}")
    return config


def refuse_incomplete(info: dict[str, object], where: str) -> None:
    """Raise where weights were missing, left over or of another shape; ``info`` is transformers' account."""
    found = {
        kind: sorted(map(str, _listed(info.get(kind))))
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if any(found.values()):
        told = "; ".join(
            f"{kind.replace('_', ' ')}: {', '.join(keys[:8])}" for kind, keys in found.items() if keys
        )
        raise ValueError(f"{where} does not hold this model: {told}")


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | set | tuple) else []


def place(network: nn.Module, device: str | torch.device) -> None:
    """Move a network to a device, unless it is there."""
    if next(network.parameters()).device != torch.device(device):
        network.to(device)
