"""What is measured of a run while it trains, without touching it: `Prober` asks, plain functions compute."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.layouts import Dense, Layout, Masked, Packed
from fewstep.core.objectives.contract import Data, Sample, Turn
from fewstep.core.samplers import euler
from fewstep.core.schedules import TimeSampler, uniform_grid
from fewstep.core.training.distiller import Distiller
from fewstep.core.training.randomness import step_generator
from fewstep.core.training.roles import Roles

SKETCH = 64  # numbers that stand for a sample where distances between samples are measured
NEIGHBOURS = 5
LOW, HIGH = 0.05, 0.95  # times at which the critic is asked
DRAWS = 16  # times drawn for each one used, to choose those of a bin from


def coverage(reference: Float[Tensor, " real dim"], samples: Float[Tensor, " fake dim"]) -> float:
    """The share of reference points with a sample among their nearest neighbours (Naeem et al., 2020).

    A point counts when a sample is nearer than its fifth neighbour in the reference. Equal distributions
    and as many samples give 1 - 1/32 on average.
    """
    own = torch.cdist(reference, reference)
    radius = own.kthvalue(
        min(NEIGHBOURS + 1, len(reference)), dim=1
    ).values  # the nearest is the point itself
    nearest = torch.cdist(reference, samples).min(1).values
    return float((nearest <= radius).float().mean())


def spread(samples: Float[Tensor, " batch dim"]) -> float:
    """The mean distance between two samples."""
    return float(torch.pdist(samples).mean())


def sketch(x: Tensor, seed: int) -> Float[Tensor, " batch dim"]:
    """Each sample as at most 64 numbers whose distances are about those of the samples (random signs)."""
    flat = x.detach().float().flatten(1)
    width = flat.shape[1]
    if width <= SKETCH:
        return flat.cpu()
    signs = torch.randint(2, (width,), generator=step_generator(seed, "sketch", width)) * 2.0 - 1.0
    padded = nn.functional.pad(flat * signs.to(flat), (0, -width % SKETCH))
    return padded.unflatten(1, (SKETCH, -1)).sum(2).cpu()


@dataclass(frozen=True, kw_only=True)
class BinnedTurn(Turn):
    """A turn whose times all come from one of ``bins`` equally likely parts of an objective's times."""

    bin: int = 0
    bins: int = 1

    def times(self, sampler: TimeSampler, x: Tensor, layout: Layout) -> Float[Tensor, " batch"]:
        size = layout.batch_size(x)
        drawn = sampler.sample(size * self.bins * DRAWS, generator=self.generator, device=x.device)
        part = drawn.sort().values.chunk(self.bins)[self.bin]
        return part[torch.randperm(len(part), generator=self.generator, device=x.device)[:size]]


def real_values(x: Tensor, layout: Layout, limit: int) -> Float[Tensor, " value"]:
    """At most about ``limit`` of the elements that are no padding, evenly spread over the batch."""
    x = x.detach().float()
    elements = x[layout.mask] if isinstance(layout, Masked) else x
    flat = elements.flatten()
    return flat[:: max(1, len(flat) // limit)].cpu()


def lasting_error(error: Tensor, x_t: Tensor, layout: Layout) -> float:
    r"""The square of what an exact critic's error has none of: a mean, and a correlation with its input.

    The error :math:`x_0 - E[x_0 | x_t]` is uncorrelated with every function of :math:`x_t`. Both moments are
    products of two halves of the batch, so that chance adds nothing on average; the result may be negative.
    """
    scaled = error * x_t / layout.mean(x_t.square()).mean().sqrt().clamp(min=1e-12)
    moments = []
    for moment in (error, scaled):
        rows = moment.flatten(1) if isinstance(layout, Dense) else layout.mean(moment)[:, None]
        half = len(rows) // 2
        moments.append(float((rows[:half].mean(0) * rows[half:].mean(0)).mean()))
    return sum(moments)


class Prober:
    """Measures a distiller with samples of its own: no weight, buffer or random number of the run changes.

    Args:
        seed: of the samples.
        bins: parts of the objective's times in which the student's gradient is measured; 0 for none.
        teacher_steps: of the teacher's samples, where there are no real ones to compare with.
    """

    def __init__(self, *, seed: int, bins: int, teacher_steps: int) -> None:
        self.seed, self.bins, self.teacher_steps = seed, bins, teacher_steps

    def sample(self, distiller: Distiller, batch: object, step: int) -> Sample | None:
        """The student's samples for a batch, or None where it makes none."""
        if type(distiller.roles).generate is Roles.generate:
            return None
        with untouched(distiller), torch.no_grad():
            return self._generate(distiller, batch, step, "sample", with_grad=False)

    def reference(self, distiller: Distiller, batch: object, sample: Sample, step: int) -> Data | None:
        """Real samples for the batch, or else the teacher's for the same conditions, or None."""
        roles, generator = distiller.roles, self._generator(distiller, step, "reference")
        with untouched(distiller), torch.no_grad():
            if type(roles).data is not Roles.data:
                return roles.data(batch)
            if roles.teacher is None or isinstance(sample.layout, Packed):
                return None
            noise = torch.randn(sample.x.shape, generator=generator, device=sample.x.device).to(sample.x)
            start = roles.teacher.path.sigma(noise.new_ones(())) * noise
            x0 = euler(roles.teacher, start, uniform_grid(self.teacher_steps), sample.condition)
            return Data(x0=x0, condition=sample.condition, layout=sample.layout)

    def critic(self, distiller: Distiller, sample: Sample, step: int) -> dict[str, float] | None:
        """Means over a batch that say how good the critic is; None without a critic and a teacher."""
        teacher, critic = distiller.roles.teacher, distiller.roles.critic
        if teacher is None or critic is None or teacher.path != critic.path:
            return None
        x, layout = sample.x.detach(), sample.layout
        generator = self._generator(distiller, step, "critic")
        with untouched(distiller), torch.no_grad():
            size = layout.batch_size(x)
            t = LOW + (HIGH - LOW) * torch.rand(size, generator=generator, device=x.device)
            eps = torch.randn(x.shape, generator=generator, device=x.device).to(x)
            x_t = teacher.path.add_noise(x, eps, layout.expand(t, x))
            precise = torch.promote_types(x.dtype, torch.float32)
            x0_teacher = teacher(x_t, layout.times(t), sample.condition).to(precise)
            x0_critic = critic(x_t, layout.times(t), sample.condition).to(precise)
            direction = x0_critic - x0_teacher
            error = x.to(precise) - x0_critic
            true = layout.mean((x.to(precise) - x0_teacher) * direction).mean()
            return {
                "true": float(true),
                "given": float(layout.mean(direction.square()).mean()),
                "error": float(layout.mean(error.square()).mean()),
                "lasting": lasting_error(error, x_t.to(precise), layout) if size > 1 else 0.0,
            }

    def gradient_shares(self, distiller: Distiller, batch: object, step: int) -> list[float]:
        """How the norm of the student's gradient is shared among equally likely bins of time, early first.

        Empty for objectives that draw no times, and for sharded networks.
        """
        parameters = [p for p in distiller.roles.student.parameters() if p.requires_grad]
        if self.bins < 2 or any(hasattr(p, "device_mesh") for p in parameters):
            return []
        norms = []
        for part in range(self.bins):
            with untouched(distiller), torch.enable_grad():
                turn = self._turn(distiller, batch, step, part)
                loss, _ = distiller.objective.student_loss(turn)
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
            squares = [g.float().square().sum() for g in found if g is not None]
            norms.append(float(torch.stack(squares).sum().sqrt()) if squares else 0.0)
        total = sum(norms)
        return [norm / total for norm in norms] if total > 0 else []

    def _turn(self, distiller: Distiller, batch: object, step: int, part: int) -> BinnedTurn:
        needs = distiller.objective.needs
        sample = None
        if "sample" in needs:
            sample = self._generate(distiller, batch, step, "gradient", with_grad=True)
        data = distiller.roles.data(batch) if "data" in needs else None
        turn = distiller._turn(sample, data, self._generator(distiller, step, "turn"))
        fields = {name: getattr(turn, name) for name in Turn.__dataclass_fields__}
        return BinnedTurn(**fields, bin=part, bins=self.bins)

    def _generate(
        self, distiller: Distiller, batch: object, step: int, purpose: str, *, with_grad: bool
    ) -> Sample:
        distiller.roles.choices = step_generator(self.seed, step, purpose, "choices")
        generator = self._generator(distiller, step, purpose)
        return distiller.roles.generate(batch, generator=generator, with_grad=with_grad)

    def _generator(self, distiller: Distiller, step: int, purpose: str) -> torch.Generator:
        key = (step, purpose, distiller.global_rank)
        return step_generator(self.seed, *key, device=distiller.device)


@contextmanager
def untouched(distiller: Distiller) -> Iterator[None]:
    """Within the block nothing drops out, and afterwards buffers and random states are what they were."""
    parts = (distiller.objective, distiller.roles)
    buffers = [b for part in parts if isinstance(part, nn.Module) for b in part.buffers()]
    kept = [(buffer, buffer.clone()) for buffer in buffers]
    training = distiller.training
    devices = [distiller.device] if distiller.device.type == "cuda" else []
    distiller.eval()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        distiller.train(training)
        with torch.no_grad():
            for buffer, before in kept:
                # most are constants, some of which (of inference mode, expanded) cannot be written to
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
