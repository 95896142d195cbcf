"""One run of one method on the ring: pretraining, distillation by the Distiller, measurement."""

import copy
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fewstep.core.denoisers import Denoiser, NetworkDenoiser
from fewstep.core.objectives.slim_flow import reflow_pairs
from fewstep.core.rollouts import FewStep, FlowMapSteps
from fewstep.core.samplers import euler
from fewstep.core.schedules import step_grid, uniform_grid
from fewstep.core.training.distiller import Distiller
from fewstep.core.training.randomness import SeedEveryBatch
from fewstep.modalities.plane.methods import Method, two_halves
from fewstep.modalities.plane.network import PointNetwork, PointNetworkConfig
from fewstep.modalities.plane.ring import RingTeacher, draw, spread_noise
from fewstep.modalities.plane.roles import PlaneRoles, RingData, RingPoints

PRETRAINING_UPDATES, PRETRAINING_BATCH = 3000, 1024
PAIRS, PAIR_STEPS = 16_384, 32
SMALL_WIDTH = 64  # of a student with a quarter of the teacher's weights
TINY_WIDTH = 24  # of students with a twentieth of them, whom their size limits
LABELLED = ("two tiny students", "one tiny student")  # that are told which half of the ring they are to draw

Points = Float[Tensor, " count 2"]
Progress = Callable[[int, int], None]
"""Called with updates done and in all."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of a full run is made.

    Args:
        updates: factor on every method's updates.
        samples: that are measured.
    """

    updates: float = 1.0
    samples: int = 20_000


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one training gave: the samples of each number of steps, and what it took."""

    samples: dict[int, Points]
    seconds: float
    updates: int
    passes: float


@lru_cache(maxsize=4)
def pretrained(*, width: int = 128, labels: int = 0, updates: int = PRETRAINING_UPDATES) -> PointNetwork:
    """A network that has learned the exact velocity, the start of all students and critics."""
    torch.manual_seed(0)
    network = PointNetwork(PointNetworkConfig(width=width, labels=labels))
    denoiser, teacher = NetworkDenoiser(network), RingTeacher(conditional=bool(labels))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=updates)
    points, halves = draw(65_536, seed=1)
    for _ in range(updates):
        chosen = torch.randint(len(points), (PRETRAINING_BATCH,))
        x0, half = points[chosen], halves[chosen] if labels else None
        t = torch.rand(len(x0)).clamp(min=1e-3)
        x_t = teacher.path.add_noise(x0, torch.randn_like(x0), t[:, None])
        error = (denoiser(x_t, t, half) - teacher(x_t, t, half)) / t[:, None]
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
        decay.step()
    return network


def distil(
    method: Method, steps: tuple[int, ...], scale: Scale, *, seed: int = 0, report: Progress
) -> tuple[Run, PlaneRoles]:
    """Train a student for ``steps`` (one grid, or several from one training) and draw its samples.

    Returns the roles too, with the averaged student.
    """
    updates = max(1, round(method.updates * scale.updates))
    roles, data = _roles_and_data(method, steps, scale, seed=seed, report=report)
    module = Distiller(
        roles,
        method.objective(),
        student_lr=method.student_lr,
        critic_lr=method.critic_lr,
        critic_updates=method.critic_updates,
        betas=method.betas,
        decay_to=method.decay_to,
        ema_decay=method.ema_decay,
        weight_decay=0.0,
        seed=seed,
    )
    cycle = max(1, module.critic_updates)
    passes = CountPasses(roles)
    with TemporaryDirectory() as folder, warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and validation
        trainer = Trainer(
            accelerator="cpu",
            max_steps=updates * cycle,
            max_epochs=-1,
            default_root_dir=Path(folder),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[SeedEveryBatch(), _Report(report)],
        )
        started = time.process_time()
        trainer.fit(module, datamodule=data)
        seconds = time.process_time() - started
    samples = {}
    with module.ema.swapped(roles.student):
        for count in steps:
            samples[count] = generate(
                roles.denoiser(roles.student), method, count, count=scale.samples, seed=seed
            )
        average = copy.deepcopy(roles.student)
    roles.student = average
    took = passes.samples / (updates * method.batch_size)
    return Run(samples=samples, seconds=seconds, updates=updates, passes=took), roles


@torch.no_grad()
def generate(student: Denoiser, method: Method, steps: int, *, count: int, seed: int) -> Points:
    """Samples from fixed noise by the method's own way of generation."""
    noise, halves = spread_noise(count, draws=steps, seed=seed + 2)
    half = halves if method.student in LABELLED else None
    rollout = _rollout(method, steps)
    if isinstance(rollout, FlowMapSteps):
        return rollout.rollout(student, noise[0], half)
    return rollout.rollout(student, noise[0], half, noises=lambda step: noise[step + 1])


@torch.no_grad()
def undistilled(steps: int, *, count: int, network: PointNetwork | None = None) -> Points:
    """What the exact teacher, or the network that students start from, makes of the same noise by Euler's
    method.
    """
    denoiser = RingTeacher() if network is None else NetworkDenoiser(network)
    noise, _ = spread_noise(count, draws=1, seed=2)
    return euler(denoiser, noise[0], uniform_grid(steps), None)


class CountPasses:
    """Counts the samples that student, critic and target networks are called with; the teacher is extra."""

    def __init__(self, roles: PlaneRoles) -> None:
        self.samples = 0
        for network in {id(m): m for m in roles.modules() if isinstance(m, PointNetwork)}.values():
            network.register_forward_pre_hook(self._count)

    def _count(self, network: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.samples += len(arguments[0])


class _Report(Callback):
    def __init__(self, report: Progress) -> None:
        self.report = report

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self.report(trainer.global_step, int(trainer.max_steps))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's lines on devices, for runs of a second that are made by the dozen."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _rollout(method: Method, steps: int) -> FewStep | FlowMapSteps:
    times = step_grid(steps)
    if method.generation == "flow map":
        return FlowMapSteps(times)
    return FewStep(times, renoise="fresh" if method.generation == "fresh noise" else "ddim")


def _roles_and_data(
    method: Method, steps: tuple[int, ...], scale: Scale, *, seed: int, report: Progress
) -> tuple[PlaneRoles, RingData]:
    halves = method.student in LABELLED
    pretraining = max(1, round(PRETRAINING_UPDATES * min(1.0, 2 * scale.updates)))
    start = pretrained(labels=2 if halves else 0, updates=pretraining)
    roles = PlaneRoles(
        start,
        _rollout(replace(method, generation="deterministic"), max(steps))
        if method.generation == "flow map"
        else _rollout(method, max(steps)),
        two_times=method.student == "two times",
        student=_smaller_student(method, pretraining, seed=seed),
        unroll=method.unroll,
    )
    if method.first is not None:
        _, first = distil(method.first, (1,), scale, seed=seed, report=report)
        assert isinstance(first.student, NetworkDenoiser)
        roles.student, roles.teacher = first.student, copy.deepcopy(first.student)
    if method.after is not None:
        _, earlier = distil(method.after, steps, scale, seed=seed, report=report)
        roles.student, roles.critic = earlier.student, earlier.critic
    points = None
    if method.pairs:
        noise = torch.randn(PAIRS, 2, generator=torch.Generator().manual_seed(seed + 4))
        with torch.no_grad():
            pairs = reflow_pairs(RingTeacher(), noise, None, times=uniform_grid(PAIR_STEPS))
        points = RingPoints(pairs.x0, torch.zeros(PAIRS, dtype=torch.int64), noise)
    return roles, RingData(points, batch_size=method.batch_size, seed=seed)


def _smaller_student(method: Method, pretraining: int, *, seed: int) -> nn.Module | None:
    """A student that is no copy of the common start; None where it is one."""
    if method.student == "small":
        torch.manual_seed(seed)
        return NetworkDenoiser(PointNetwork(PointNetworkConfig(width=SMALL_WIDTH)))
    if method.student not in LABELLED:
        return None
    tiny = pretrained(width=TINY_WIDTH, labels=2, updates=pretraining)
    return NetworkDenoiser(copy.deepcopy(tiny)) if method.student == "one tiny student" else two_halves(tiny)
