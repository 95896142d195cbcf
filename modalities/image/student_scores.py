"""What a student's pictures show before training and after it, in the scores of ``fewstep eval image``."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fewstep.core.checkpoints import read_card
from fewstep.core.denoisers import FlowMap
from fewstep.core.rollouts import FlowMapSteps
from fewstep.core.training.distiller import Distiller
from fewstep.core.training.probes import untouched
from fewstep.core.training.report import expected_steps
from fewstep.modalities.image.classifier import AttributeClassifier, load_classifier
from fewstep.modalities.image.distillation import ImageRoles
from fewstep.modalities.image.evaluation import (
    FRECHET,
    REFERENCE,
    Measured,
    Prompt,
    Reference,
    appearance,
    draw_prompts,
    obedience,
)
from fewstep.modalities.image.model_folder import preset_part
from fewstep.modalities.video.noise import chunk_noise
from fewstep.modalities.video.text import TextEncoder

BATCH = 32  # pictures at once
SCORES = ("colour_accuracy", "category_accuracy", "detail_accuracy", FRECHET)
PAIRS = "train"  # prompts and real pictures of the pairs that training shows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exam:
    """Prompts, and what judges the pictures that are made of them."""

    prompts: list[Prompt]
    features: Float[Tensor, " prompt text feature"]
    classifier: AttributeClassifier
    reference: Reference

    @classmethod
    def of(cls, judge: str, *, pictures: int, seed: int) -> "Exam":
        """Of a bundled preset by its name, or of a folder with ``classifier`` and ``reference.json``."""
        folder = preset_part(judge if not Path(judge).is_dir() else f"{judge}/classifier", "classifier")
        reference = Reference.load(folder.parent / REFERENCE, weights=read_card(folder).weights_sha256)
        prompts = draw_prompts(pictures, phrasing="train", heldout_pairs=False, seed=seed)
        features = TextEncoder()([prompt.text for prompt in prompts]).clone()
        return cls(prompts, features, load_classifier(folder), reference)

    def marks(self, pictures: Any) -> dict[str, float]:
        """The scores of one picture for each prompt."""
        measured = Measured.of(pictures, self.classifier)
        scores = obedience(
            measured, [prompt.attributes for prompt in self.prompts], [one.named for one in self.prompts]
        )
        scores |= appearance(measured, self.reference.moments[PAIRS])
        return {name: scores[name] for name in SCORES}


class StudentScores(Callback):
    """Score the averaged student before the first step and after the last, without touching the run.

    At the end ``before/NAME_K_steps``, ``after/NAME_K_steps`` for each of the student's numbers of steps K,
    ``real/NAME`` for other real pictures, and ``cpu_seconds``, the processor time of the whole run, are
    logged, and so stand in ``summary.json``. NAME is as in ``fewstep eval image``: ``colour_accuracy``,
    ``category_accuracy`` and ``detail_accuracy`` in percent of pictures that show what their prompt says,
    and ``frechet_classifier``, the squared Frechet distance to real pictures in a classifier's features.

    Args:
        judge: whose classifier and reference: a bundled preset by its name, or a folder like it.
        pictures: how many are made for each number of steps; the distance falls with it.
        seed: of prompts and noise.
    """

    def __init__(self, judge: str = "objects", pictures: int = 232, seed: int = 0) -> None:
        if pictures < 2:
            raise ValueError(f"pictures={pictures} must be at least 2")
        self.judge, self.pictures, self.seed = judge, pictures, seed
        self._before: dict[str, float] = {}
        self._earlier_seconds = 0.0
        self._exam: Exam | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"before": self._before, "cpu_seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before, self._earlier_seconds = state_dict["before"], state_dict["cpu_seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._before:
            self._before = self._scores(pl_module)
            log.info("before training: %s", _line(self._before))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != expected_steps(trainer):
            return
        after = self._scores(pl_module)
        log.info("after training: %s", _line(after))
        assert self._exam is not None
        floor = self._exam.reference.floor[PAIRS]
        row = {f"before/{name}": value for name, value in self._before.items()}
        row |= {f"after/{name}": value for name, value in after.items()}
        row |= {f"real/{name}": floor[name] for name in SCORES}
        row["cpu_seconds"] = self._seconds()
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)

    def _seconds(self) -> float:
        return self._earlier_seconds + time.process_time()

    def _scores(self, module: LightningModule) -> dict[str, float]:
        if not isinstance(module, Distiller) or not isinstance(module.roles, ImageRoles):
            raise ValueError("StudentScores needs a Distiller with ImageRoles; remove the callback")
        if self._exam is None:
            self._exam = Exam.of(self.judge, pictures=self.pictures, seed=self.seed)
        found: dict[str, float] = {}
        with untouched(module), module.ema.swapped(module.roles.student), torch.no_grad():
            for steps in module.roles.rollouts:
                pictures = sampled(module.roles, self._exam, steps=steps)
                marks = self._exam.marks(pictures.numpy())
                found |= {f"{name}_{steps}_steps": value for name, value in marks.items()}
        return found


def sampled(roles: ImageRoles, exam: Exam, *, steps: int) -> UInt8[Tensor, " prompt height width 3"]:
    """Pictures of the student as it is now, on the CPU; the noise of each follows from its prompt's seed."""
    rollout, student = roles.rollouts[steps], roles.denoiser(roles.student)
    device = next(roles.student.parameters()).device
    made = []
    for start in range(0, len(exam.prompts), BATCH):
        seeds = [prompt.seed for prompt in exam.prompts[start : start + BATCH]]
        features = exam.features[start : start + BATCH].to(device)

        def noise(step: int, seeds: list[int] = seeds, like: Tensor = features) -> Tensor:
            return torch.stack([chunk_noise(seed, 0, step, roles.latent_shape) for seed in seeds]).to(like)

        if isinstance(student, FlowMap):
            x = FlowMapSteps(rollout.times).rollout(student, noise(0), features)
        else:
            x = rollout.rollout(student, noise(0), features, noises=lambda step: noise(step + 1))
        pixels = roles.decode(x)[:, 0].mul(255).round().to(torch.uint8)
        made.append(pixels.permute(0, 2, 3, 1).contiguous().cpu())
    return torch.cat(made)


def _line(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in scores.items())
