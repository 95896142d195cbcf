"""The smallest distillation that can be looked at: four Gaussians in the plane, in two classes."""

import math

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fewstep.core.analytic import MixtureDenoiser
from fewstep.core.denoisers import Guided, NetworkDenoiser
from fewstep.core.objectives.contract import Data, Sample
from fewstep.core.rollouts import FewStep
from fewstep.core.schedules import step_grid
from fewstep.core.training.batches import StepKeyedBatches
from fewstep.core.training.roles import Roles

MODES = 4
RADIUS = 1.5
STD = 0.3
NULL_CLASS = -1
PICTURE = 160  # pixels
HALF_WIDTH = 3.0  # of what a picture shows


def centres() -> Float[Tensor, " mode 2"]:
    """The first half of the modes, above the axis, is class 0, the other class 1."""
    angles = (torch.arange(MODES) + 0.5) * (2 * math.pi / MODES)
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)


class ClusterTeacher(nn.Module):
    """The exact :math:`E[x_0 | x_t, c]`; class -1 is all of them."""

    def forward(
        self, x_t: Float[Tensor, " batch 2"], t: Float[Tensor, " batch"], condition: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch 2"]:
        parts = {NULL_CLASS: centres(), 0: centres()[: MODES // 2], 1: centres()[MODES // 2 :]}
        x0 = torch.zeros_like(x_t)
        for number, means in parts.items():
            exact = MixtureDenoiser(centres=means.to(x_t), std=STD)(x_t, t, None)
            x0 = torch.where((condition == number)[:, None], exact, x0)
        return x0


class Corrected(nn.Module):
    """The teacher plus a small network that starts at zero, and ``spread`` times the noised point."""

    def __init__(self, seed: int, *, spread: float = 0.0, width: int = 64) -> None:
        super().__init__()
        self.teacher = ClusterTeacher()
        self.spread = spread
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(2 + 2 + 4, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, 2),
            )
        nn.init.zeros_(self.layers[-1].weight)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.layers[-1].bias)  # pyright: ignore[reportArgumentType]

    def forward(
        self, x_t: Float[Tensor, " batch 2"], t: Float[Tensor, " batch"], condition: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch 2"]:
        phases = t[:, None] * math.pi * torch.tensor([0.5, 1.0], device=t.device)
        label = condition[:, None].to(x_t)
        features = torch.cat([x_t, t[:, None].to(x_t), label, phases.sin(), phases.cos()], dim=1)
        return self.teacher(x_t, t, condition) + self.spread * x_t + self.layers(features)


class ClusterRoles(Roles):
    """Student, teacher and critic of the clusters; a batch is classes and real points.

    Args:
        steps: of the student.
        guidance_scale: of the teacher (w, 1 is off).
    """

    def __init__(self, steps: int = 1, guidance_scale: float = 1.0) -> None:
        super().__init__()
        self.null_condition = torch.tensor([NULL_CLASS])
        # from pure noise the teacher sees the mean alone: without some spread the student starts as a point
        self.student = NetworkDenoiser(Corrected(0, spread=0.5), prediction="x0")
        self.critic = NetworkDenoiser(Corrected(1), prediction="x0")
        self.teacher = Guided(
            NetworkDenoiser(ClusterTeacher(), prediction="x0"),
            guidance_scale=guidance_scale,
            null_condition=self.null_condition,
        )
        self.rollout = FewStep(step_grid(steps))

    def generate(self, batch: object, *, generator: torch.Generator, with_grad: bool) -> Sample:
        classes = _classes(batch)
        noise = torch.randn(len(classes), 2, generator=generator, device=classes.device)
        exit_step = self.choose(len(self.rollout.times), generator)
        student = self.denoiser(self.student)
        x = self.rollout.rollout(student, noise, classes, exit_step=exit_step, generator=generator)
        return Sample(x=x, condition=classes)

    def data(self, batch: object) -> Data:
        classes = _classes(batch)
        assert isinstance(batch, dict)
        return Data(x0=batch["points"], condition=classes)

    def sample(self, classes: Int[Tensor, " batch"], generator: torch.Generator) -> Float[Tensor, " batch 2"]:
        """The student's points after its last step."""
        noise = torch.randn(len(classes), 2, generator=generator, device=classes.device)
        return self.rollout.rollout(self.denoiser(self.student), noise, classes, generator=generator)

    def validate(self, batch: object, *, generator: torch.Generator) -> dict[str, Tensor]:
        """The share of points within three standard deviations of a mode, and the share of modes reached."""
        x = self.sample(_classes(batch), generator)
        distances = torch.cdist(x, centres().to(x))
        near, mode = distances.min(1)
        inside = near < 3 * STD
        reached = torch.bincount(mode[inside], minlength=MODES) > 0.2 * len(x) / MODES
        return {"precision": inside.float().mean(), "modes": reached.float().mean()}

    def pictures(self, batch: object, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Histograms of the student's points and of real ones, dark where there are many."""
        classes = torch.arange(4096, device=generator.device) % 2
        points = cluster_points(classes, generator)
        return {"student": _histogram(self.sample(classes, generator)), "real": _histogram(points)}


class ClusterData(LightningDataModule):
    """Endless points of the clusters with their classes."""

    def __init__(self, batch_size: int = 256, size: int = 8192, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.batch_size = batch_size
        self.classes = torch.arange(size) % 2
        self.points = cluster_points(self.classes, generator)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        batches = StepKeyedBatches.of_trainer(len(self.classes), self.batch_size, self.trainer)
        return DataLoader(self, batch_sampler=batches, collate_fn=dict)  # pyright: ignore[reportArgumentType]

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self, batch_size=2048, sampler=range(2048), collate_fn=dict)  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        return len(self.classes)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return {"classes": self.classes[indices], "points": self.points[indices]}


def cluster_points(classes: Int[Tensor, " batch"], generator: torch.Generator) -> Float[Tensor, " batch 2"]:
    """Exact samples of the classes."""
    half = MODES // 2
    modes = torch.randint(half, classes.shape, generator=generator, device=generator.device) + half * classes
    noise = torch.randn(len(classes), 2, generator=generator, device=generator.device)
    return centres().to(noise)[modes] + STD * noise


def _classes(batch: object) -> Int[Tensor, " batch"]:
    assert isinstance(batch, dict)
    return batch["classes"]


def _histogram(points: Float[Tensor, " batch 2"]) -> Float[Tensor, " 3 height width"]:
    cells = ((points / HALF_WIDTH + 1) / 2 * PICTURE).long().clamp(0, PICTURE - 1)
    flat = (PICTURE - 1 - cells[:, 1]) * PICTURE + cells[:, 0]
    counts = torch.bincount(flat, minlength=PICTURE**2).float().view(PICTURE, PICTURE)
    shade = 1 - (counts / 3).clamp(0, 1)
    return shade.expand(3, -1, -1)
