"""An image model ready to use: students, teacher, codec, prompts and their numbers, from one folder."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core.checkpoints import Card, read_card, why_no_model
from fewstep.core.denoisers import Guided, NetworkDenoiser, NetworkFlowMap
from fewstep.core.devices import usable_device
from fewstep.core.precision import fast_dtype
from fewstep.core.rollouts import FewStep, FlowMapSteps
from fewstep.core.samplers import euler
from fewstep.core.schedules import uniform_grid
from fewstep.modalities.image.codec import STRIDE, ImageCodec
from fewstep.modalities.image.model_folder import PRESETS, load_codec, load_transformer
from fewstep.modalities.image.network import ImageTransformer
from fewstep.modalities.video.noise import chunk_noise
from fewstep.modalities.video.pipeline_card import PIPELINE, read_pipeline
from fewstep.modalities.video.text import TextEncoder, check_prompt

PROMPTS = "prompts.safetensors"
TEACHER, CODEC, STUDENTS = "teacher", "codec", "students"
NEEDED = (
    "height",
    "width",
    "students",
    "default_student",
    "default_steps",
    "default_prompt",
    "example_prompts",
    "teacher",
)
BATCH = 16  # pictures at once: wide enough for the processor, small enough for its caches

Rollout = Literal["fresh", "ddim", "flow_map"]
"""How a student goes on between its steps: ``FewStep`` with fresh or reused noise, or ``FlowMapSteps``."""

Pictures = UInt8[np.ndarray, " batch height width 3"]


class ImageModel:
    """Distilled students with their teacher, codec and text encoder.

    The folder holds ``pipeline.json`` (size, students with their rollouts, how the teacher samples),
    the model folders ``codec``, ``teacher`` and ``students/NAME``, and ``prompts.safetensors``: features of
    some prompts, the empty one among them, for which no text encoder is needed. Networks are loaded when they
    are first used.
    """

    def __init__(self, folder: Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        self.folder = folder
        self.card: Mapping[str, Any] = read_pipeline(folder, NEEDED)
        self.device = usable_device(device)
        self.dtype = dtype or fast_dtype(self.device)
        self._known = load_file(folder / PROMPTS) if (folder / PROMPTS).exists() else {}
        self._text = TextEncoder()
        self._students: dict[str, NetworkDenoiser | NetworkFlowMap] = {}
        self._cards: dict[str, Card] = {}

    @classmethod
    def load(cls, name: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> "ImageModel":
        """A bundled preset by name (``objects``), or a folder of the same format by its path."""
        with as_file(files(PRESETS)) as presets:
            for folder in (Path(name), presets / str(name)):
                if (folder / PIPELINE).is_file():
                    return cls(folder, device=device, dtype=dtype)
            known = [path.parent.name for path in presets.glob(f"*/{PIPELINE}")]
        raise ValueError(why_no_model(name, "image", needed=PIPELINE, known=known))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return int(self.card["height"]), int(self.card["width"])

    @property
    def students(self) -> tuple[str, ...]:
        """Names of the students, the default one first."""
        others = sorted(set(self.card["students"]) - {self.default_student})
        return (self.default_student, *others)

    @property
    def default_student(self) -> str:
        return str(self.card["default_student"])

    @property
    def default_steps(self) -> int:
        return int(self.card["default_steps"])

    @property
    def default_prompt(self) -> str:
        return str(self.card["default_prompt"])

    @property
    def example_prompts(self) -> tuple[str, ...]:
        """Prompts that need no text encoder."""
        return tuple(self.card["example_prompts"])

    @property
    def teacher_steps(self) -> int:
        """The teacher's own number of steps."""
        return int(self.card["teacher"]["num_steps"])

    def student_card(self, student: str | None = None) -> Card:
        """What a student is and how it was trained."""
        name = self._student_name(student)
        if name not in self._cards:
            self._cards[name] = read_card(self.folder / STUDENTS / name)
        return self._cards[name]

    def steps_available(self, student: str | None = None) -> tuple[int, ...]:
        """Numbers of steps that a student was distilled to."""
        return tuple(sorted(int(steps) for steps in self.student_card(student).step_grids))

    @cached_property
    def codec(self) -> ImageCodec:
        codec = load_codec(self.folder / CODEC).to(self.device, self.dtype).eval()
        # torch's types lack this overload
        return codec.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, " prompt text feature"]:
        """Token features; at once for the folder's own prompts, else by the text encoder."""
        texts = [_checked(prompt) for prompt in prompts]
        unknown = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = dict(zip(unknown, self._text(unknown), strict=True)) if unknown else {}
        return torch.stack([found[text] if text in found else self._known[text].float() for text in texts])

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        steps: int | None = None,
        student: str | None = None,
    ) -> Pictures:
        """A picture for each prompt and seed, ``[N, H, W, 3]``; a seed's noise depends on nothing else.

        Args:
            steps: of the student's step grids; the model's default where the student has it.
            student: one of ``students``; the first by default.
        """
        check_seeds(prompts, seeds)
        return self.decode(
            self.student_latents(self.encode_prompts(prompts), seeds=seeds, steps=steps, student=student)
        )

    def teacher_samples(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        num_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Pictures:
        """Pictures of the teacher by Euler's method; steps and guidance are its own by default."""
        check_seeds(prompts, seeds)
        features = self.encode_prompts(prompts)
        return self.decode(
            self.teacher_latents(features, seeds=seeds, num_steps=num_steps, guidance_scale=guidance_scale)
        )

    @torch.inference_mode()
    def student_latents(
        self,
        features: Float[Tensor, " batch text feature"],
        *,
        seeds: Sequence[int],
        steps: int | None = None,
        student: str | None = None,
    ) -> Float[Tensor, " batch channel h w"]:
        """Latents of a student from features of prompts."""
        name = self._student_name(student)
        available = self.steps_available(name)
        if steps is None:
            steps = self.default_steps if self.default_steps in available else available[-1]
        if steps not in available:
            raise ValueError(
                f"steps={steps}: student {name} was distilled to {', '.join(map(str, available))} steps"
            )
        times = tuple(self.student_card(name).times(steps))
        kind: Rollout = self.card["students"][name]["rollout"]
        denoiser = self._student(name)
        if kind == "flow_map":
            jumps = FlowMapSteps(times)
            return self._in_batches(
                features,
                seeds,
                lambda noises, rows: jumps.rollout(denoiser, noises(0), rows),
            )
        steps_of = FewStep(times, renoise=kind)
        return self._in_batches(
            features,
            seeds,
            lambda noises, rows: steps_of.rollout(
                denoiser, noises(0), rows, noises=lambda step: noises(step + 1)
            ),
        )

    @torch.inference_mode()
    def teacher_latents(
        self,
        features: Float[Tensor, " batch text feature"],
        *,
        seeds: Sequence[int],
        num_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Float[Tensor, " batch channel h w"]:
        """Latents of the teacher from features of prompts."""
        settings = self.card["teacher"]
        count = self.teacher_steps if num_steps is None else num_steps
        if count < 1:
            raise ValueError(f"num_steps={count} must be at least 1")
        scale = float(settings["guidance_scale"] if guidance_scale is None else guidance_scale)
        guided = Guided(self._teacher, guidance_scale=scale, null_condition=self._null_features)
        times = uniform_grid(count, scale=float(settings["shift"]))
        return self._in_batches(features, seeds, lambda noises, rows: euler(guided, noises(0), times, rows))

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, " batch channel h w"]) -> Pictures:
        """Latents to bytes with channels last."""
        pictures = []
        for rows in latents.split(BATCH):
            pixels = self.codec.decode(rows).float()
            scaled = pixels.add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
            pictures.append(scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy())
        return np.concatenate(pictures)

    def _in_batches(
        self,
        features: Tensor,
        seeds: Sequence[int],
        sample: Callable[[Callable[[int], Tensor], Tensor], Tensor],
    ) -> Tensor:
        height, width = self.size
        shape = (self.codec.config.channels, height // STRIDE, width // STRIDE)
        latents = []
        for start in range(0, len(seeds), BATCH):
            some = seeds[start : start + BATCH]

            def noises(step: int, some: Sequence[int] = some) -> Tensor:
                return torch.stack([chunk_noise(seed, 0, step, shape) for seed in some]).to(self.device)

            latents.append(sample(noises, features[start : start + BATCH].to(self.device)))
        return torch.cat(latents)

    def _student_name(self, student: str | None) -> str:
        name = self.default_student if student is None else student
        if name not in self.card["students"]:
            raise ValueError(f"student={name!r} is unknown; this model has {', '.join(self.students)}")
        return name

    def _student(self, name: str) -> NetworkDenoiser | NetworkFlowMap:
        if name not in self._students:
            network = self._network(self.folder / STUDENTS / name)
            wrap = NetworkFlowMap if network.config.two_times else NetworkDenoiser
            self._students[name] = wrap(network)
        return self._students[name]

    @cached_property
    def _teacher(self) -> NetworkDenoiser:
        return NetworkDenoiser(self._network(self.folder / TEACHER))

    @cached_property
    def _null_features(self) -> Tensor:
        known = self._known[""].float() if "" in self._known else self._text([""])[0]
        return known.to(self.device)[None]

    def _network(self, folder: Path) -> ImageTransformer:
        return cast(ImageTransformer, load_transformer(folder).to(self.device, self.dtype).eval())


def _checked(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError('prompt is empty; say what the picture should show, for example "a blue mug"')
    return check_prompt(prompt)


def check_seeds(prompts: Sequence[str], seeds: Sequence[int]) -> None:
    if isinstance(prompts, str) or not prompts or len(prompts) != len(seeds):
        raise ValueError(f"prompts={prompts!r} and seeds={seeds!r} must be lists of one length, at least 1")
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed} must lie in [0, 2^63)")
