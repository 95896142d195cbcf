"""Captioned videos as latents and text features, computed once and kept beside the run."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningDataModule
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fewstep.core.training.batches import (
    PhrasedBatches,
    Pick,
    StepKeyedBatches,
    splits_needed,
    spread_batches,
)
from fewstep.modalities.video.codec import VideoCodec
from fewstep.modalities.video.data import Clip, load_clips
from fewstep.modalities.video.model_folder import load_codec
from fewstep.modalities.video.text import TextEncoder

ENCODE_LATENTS = 16  # latent frames per call of the codec; they do not see each other in the encoder
TEXT_BATCH = 64


class LatentClips(Dataset[dict[str, Tensor]]):
    """Every run of ``frames`` latent frames of every video, each frame with one of its captions.

    An item is a pair: the number of a clip, and any non-negative number, which taken modulo the phrasings
    chooses one for the whole clip, so that a caption changes only where the segment does.

    Args:
        latents: ``[frame, C, h, w]``, all videos one after the other.
        lengths: latent frames of each video.
        features: ``[caption, L, D]``; caption 0 is the empty prompt.
        captions: ``[frame, choice]``: indices into ``features`` of the phrasings that describe a frame.
        frames: latent frames per item.
    """

    def __init__(
        self,
        latents: Float[Tensor, " frame channel height width"],
        lengths: Int[Tensor, " video"],
        features: Float[Tensor, " caption text feature"],
        captions: Int[Tensor, " frame choice"],
        *,
        frames: int,
    ) -> None:
        self.latents, self.features, self.captions, self.frames = latents, features, captions, frames
        starts, first = [], 0
        for length in lengths.tolist():
            starts.extend(range(first, first + length - frames + 1))
            first += length
        if not starts:
            raise ValueError(
                f"no video has {frames} latent frames; use longer videos or a smaller clip_frames"
            )
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, pick: Pick) -> dict[str, Tensor]:
        index, draw = pick
        window = slice(self.starts[index], self.starts[index] + self.frames)
        captions = self.captions[window, draw % self.captions.shape[1]]
        return {
            "latents": self.latents[window].float(),
            "features": self.features[captions].float(),
            "null_features": self.features[0].float().expand(self.frames, -1, -1),
        }


class LatentVideoData(LightningDataModule):
    """Latent clips of ``root/train`` and ``root/val``.

    ``root/val`` may be missing where nothing is validated (`trainer.limit_val_batches: 0`).

    The training loader is endless and continues exactly after a resume: set `trainer.max_steps`, and on
    several devices `trainer.use_distributed_sampler: false`.

    Args:
        root: folder with ``train`` and ``val`` folders of videos and captions
            (``fewstep.modalities.video.data``).
        codec: model folder of the autoencoder.
        clip_frames: latent frames per clip.
        batch_size: clips per batch.
        size: height and width of the frames in pixels.
        val_batches: batches of the validation set, evenly spread over it.
    """

    def __init__(
        self,
        root: str,
        codec: str,
        clip_frames: int = 12,
        batch_size: int = 8,
        size: int = 96,
        val_batches: int = 8,
    ) -> None:
        super().__init__()
        self.root, self.codec_folder = Path(root), Path(codec)
        self.clip_frames, self.batch_size, self.size, self.val_batches = (
            clip_frames,
            batch_size,
            size,
            val_batches,
        )
        self._parts: dict[str, dict[str, Tensor]] = {}

    def prepare_data(self) -> None:
        for split in splits_needed(self.root, self.trainer):
            self._load(split)

    def setup(self, stage: str) -> None:
        self._parts = {split: self._load(split) for split in splits_needed(self.root, self.trainer)}

    def train_dataloader(self) -> DataLoader:
        clips = self._clips("train")
        batches = StepKeyedBatches.of_trainer(len(clips), self.batch_size, self.trainer)
        return DataLoader(clips, batch_sampler=PhrasedBatches(batches))

    def val_dataloader(self) -> DataLoader | list[Any]:
        if "val" not in self._parts:
            return []
        clips = self._clips("val")
        batches = spread_batches(len(clips), self.val_batches, self.batch_size)
        return DataLoader(clips, batch_sampler=batches)

    def _clips(self, split: str) -> LatentClips:
        return LatentClips(**self._parts[split], frames=self.clip_frames)

    def _load(self, split: str) -> dict[str, Tensor]:
        folder = self.root / split
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; make it and put videos with captions there")
        weights = hashlib.sha256((self.codec_folder / "model.safetensors").read_bytes()).hexdigest()
        videos = sorted(_state(path) for path in folder.iterdir() if path.is_file())
        key = hashlib.sha256("|".join([weights, str(self.size), *videos]).encode()).hexdigest()[:16]
        cached = self.root / f"latents-{split}-{key}.safetensors"
        if not cached.exists():
            temporary = cached.with_suffix(f".{os.getpid()}.tmp")
            save_file(
                encode_videos(
                    load_clips(folder, size=self.size, cache=self.root), load_codec(self.codec_folder)
                ),
                temporary,
            )
            temporary.replace(cached)
        return load_file(cached)


def _state(path: Path) -> str:
    """What changes with a file: of captions all they say, of videos, which are long, their size."""
    told = path.suffix in (".json", ".txt")
    changing = hashlib.sha256(path.read_bytes()).hexdigest() if told else path.stat().st_size
    return f"{path.name}:{changing}"


@torch.inference_mode()
def encode_videos(videos: list[Clip], codec: VideoCodec) -> dict[str, Tensor]:
    """The tensors of ``LatentClips``, in half precision. A latent frame carries the caption of its last
    pixel frame.
    """
    group = codec.config.frames_per_latent
    texts = [""]
    known: dict[str, int] = {"": 0}
    latents, lengths, captions = [], [], []
    width = max(len(segment.captions) for video in videos for segment in video.segments)
    for video in videos:
        count = len(video.frames) // group
        lengths.append(count)
        pixels = torch.from_numpy(video.frames[: count * group]).permute(0, 3, 1, 2)
        for part in pixels.split(ENCODE_LATENTS * group):
            with torch.autocast(part.device.type, torch.bfloat16):
                latents.append(codec.encode(part[None].float() / 127.5 - 1.0)[0].half())
        for frame in range(count):
            phrasings = video.segment_at((frame + 1) * group - 1).captions
            for text in phrasings:
                if text not in known:
                    known[text] = len(texts)
                    texts.append(text)
            captions.append([known[phrasings[i % len(phrasings)]] for i in range(width)])
    encoder = TextEncoder()
    features = torch.cat(
        [encoder(texts[i : i + TEXT_BATCH]).half() for i in range(0, len(texts), TEXT_BATCH)]
    )
    return {
        "latents": torch.cat(latents),
        "lengths": torch.tensor(lengths),
        "features": features,
        "captions": torch.tensor(captions),
    }
