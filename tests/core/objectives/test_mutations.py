"""Equations broken on purpose: for each, some fast test of its objective must fail.

The list is the proof that the tests look: a sign, a constant, a stop-gradient, a weight of every method. `make
test-mutations` runs it, a minute for every ten entries.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OBJECTIVES, TESTS = "core/objectives", "tests/core/objectives"


@dataclass(frozen=True)
class Mutation:
    """Text of `core/objectives/NAME.py` and what takes its place; `test` defaults to the file's own test."""

    name: str
    old: str
    new: str
    test: str = ""

    @property
    def source(self) -> str:
        return f"{OBJECTIVES}/{self.name}.py"

    @property
    def tests(self) -> str:
        return f"{TESTS}/test_{self.test or self.name}.py"


M = Mutation
MUTATIONS = (
    M("dmd", "return (x0_critic - x0_teacher) / layout.expand(", "return (x0_teacher - x0_critic) / layout.expand("),
    M("dmd", "target = (x - direction).detach()", "target = x - direction"),
    M("dmd", "losses = 0.5 * (x - target).square()", "losses = (x - target).square()"),
    M("diff_instruct", "direction = x0_critic - x0_teacher", "direction = x0_teacher - x0_critic"),
    M("diff_instruct", "product = direction.detach() * x", "product = direction * x"),
    M("diff_instruct", "(self.mean + self.std * normal).exp()", "(self.mean + normal).exp()"),
    M("dmd2", "discriminator_losses(real, fake)", "discriminator_losses(fake, real)"),
    M("dmd2", "loss = loss + self.critic_weight * (of_real", "loss = loss + (of_real"),
    M("dmd2", "x = weigh_gradient(sample.x, sample.weight, sample.layout)", "x = sample.x"),
    M("tdm", "gap = x0_critic - x0_teacher", "gap = x0_teacher - x0_critic"),
    M("tdm", "target = (x - gap).detach()", "target = x - gap"),
    M("tdm", "path.score_from_x0(x0_critic, x_t, t) + xi", "path.score_from_x0(x0_critic, x_t, t) - xi"),
    M("tdm", "clamp(max=self.max_snr)", "clamp(min=self.max_snr)"),
    M("re_dmd", "log_weights = self.beta * rewards.double()", "log_weights = -self.beta * rewards.double()"),
    M("re_dmd", "log_weights = log_weights - self.log_mean", "log_weights = log_weights + self.log_mean"),
    M("re_dmd", "weighted_student_loss(turn, weight_of(sample, reward_weight))", "weighted_student_loss(turn, sample.weight)"),
    M("flash_dmd", "gan = ((1 - noisy) * losses).mean()", "gan = losses.mean()"),
    M("flash_dmd", "weight_of(sample, noisy))", "sample.weight)"),
    M("flash_dmd", "return softplus(-beta * (better - worse))", "return softplus(-(better - worse))"),
    M("flow_matching", "return x0_hat.to(precise) - x0.to(precise)", "return x0_hat.to(precise) + x0.to(precise)"),
    M("flow_matching", "(scale * error).square()", "scale * error.square()"),
    M("sid", "layout.mean(gap * ((x0_teacher - x) - alpha * gap))", "layout.mean(gap * ((x0_teacher - x) + alpha * gap))"),
    M("sid", "return (weight * losses).mean(), diagnostics", "return losses.mean(), diagnostics"),
    M("sid", "return cls(teacher=1.0, critic=0.0, critic_training=0.0)", "return cls(teacher=1.0, critic=1.0, critic_training=1.0)", "sid_guidance"),
    M("sim", "loss = -layout.mean(slope", "loss = layout.mean(slope"),
    M("sim", "layout.mean(y.square()) + c**2).sqrt()", "layout.mean(y.square()) + c).sqrt()"),
    M("sim", "            return 2 * y", "            return y"),
    M("np_edit", "return softplus(-temperature * log_odds)", "return softplus(temperature * log_odds)"),
    M("np_edit", "self.dmd_weight * dmd + self.judge_weight * judged", "self.dmd_weight * dmd + judged"),
    M("np_edit", "self.soft + (1 - self.soft) * update", "self.soft * update"),
    M("multi_student", "return torch.cat(parts)[order.argsort()]", "return torch.cat(parts)"),
    M("multi_student", "return self.student_of[labels]", "return 0 * self.student_of[labels]"),
    M("multi_student", "(scale * error).square()", "scale * error.square()", "teacher_score_matching"),
    M("mdt", "return velocity - layout.expand(t, velocity) * derivative", "return velocity + layout.expand(t, velocity) * derivative"),
    M("mdt", "residual - (x_f - x_f.detach())", "residual + (x_f - x_f.detach())", "mdt_distillation"),
    M("mdt", "return average - target", "return average.detach() - target"),
    M("mean_flow", "return velocity - layout.expand(t - r, velocity) * derivative", "return velocity + layout.expand(t - r, velocity) * derivative"),
    M("mean_flow", "return squared_error / (squared_error + offset).detach() ** power", "return squared_error / (squared_error + offset) ** power"),
    M("mean_flow", "return torch.where(data.layout.expand(inside, x_t), guided, velocity)", "return velocity"),
    M("split_mean_flow", "return weight * first + (1 - weight) * second", "return (1 - weight) * first + weight * second"),
    M("split_mean_flow", "target = torch.where(layout.expand(boundary, x0), velocity, split)", "target = split"),
    M("lcm", "return layout.mean((error.square() + huber**2).sqrt() - huber)", "return layout.mean((error.square() + huber).sqrt() - huber)"),
    M("lcm", "layout.expand(c_skip, x_t) * x_t.to(precise) + layout", "layout.expand(c_out, x_t) * x_t.to(precise) + layout"),
    M("lcm", "target = self.consistency(x0_hat, ends.x_s, ends.s, layout)", "target = self.consistency(x0_hat, ends.x_s, ends.t, layout)"),
    M("scm", "return angle.cos * (first + warmup * (derivative / angle.dot - first))", "return angle.cos * (first - warmup * (derivative / angle.dot - first))"),
    M("scm", "target = network_output(x0_hat, x, angle) + step", "target = network_output(x0_hat, x, angle) - step"),
    M("scm", "return g / layout.expand(norm + offset, g)", "return g / layout.expand(norm - offset, g)"),
    M("slam", "carried.square() + gamma.square() * (sigma - carried)", "carried.square() + gamma * (sigma - carried)"),
    M("slam", "return gamma * sigma + (1 - gamma) * carried", "return (1 - gamma) * sigma + gamma * carried"),
    M("rcgm", "whole * average - share * rest - velocity", "whole * average - share * rest + velocity"),
    M("rcgm", "residual.clamp(-self.clamp, self.clamp)", "residual"),
    M("rcgm", "self.losses(squared_error) * interval_weight(t, r)", "self.losses(squared_error)"),
    M("twin_flow", "flow.average_velocity(x_t, -time, -time, condition)", "flow.average_velocity(x_t, time, time, condition)", "twin_flow_rectification"),
    M("twin_flow", "loss + self.weight * torch", "loss - self.weight * torch", "twin_flow_rectification"),
    M("twin_flow", "(average - (average - clamped).detach())", "(average.detach() - (average - clamped))", "twin_flow_rectification"),
    M("slim_flow", "math.sqrt(1 - rate**2) * noise + rate * fresh", "math.sqrt(1 - rate) * noise + rate * fresh"),
    M("slim_flow", "return 1 - min(1.0, done)", "return min(1.0, done)"),
    M("slim_flow", "pairs + self.weight * guidance", "pairs - self.weight * guidance"),
    M("diffusion_gan", "softplus(-", "softplus("),
    M("dmd", "layout.expand(weight, x) * losses)", "layout.expand(weight, x).square() * losses)"),
    M("dmd", "path.eta(time).square().reciprocal()", "path.eta(time).reciprocal()"),
    M("diffusion_gan", "sample.x.detach(), sample.condition", "sample.x, sample.condition"),
    M("flash_dmd", "mean = alpha * weigh_gradient(sample.x, sample.weight, layout)", "mean = alpha * sample.x"),
    M("mdt", "path.sigma_min + (self.step if", "(self.step if"),
    M("mean_flow", "(t >= self.interval[0])", "(t > self.interval[0])"),
    M("mean_flow", "step=self.difference_step", "step=None"),
    M("scm", "step=self.difference_step", "step=None"),
    M("rcgm", "middle = torch.maximum(t - step, r)", "middle = t - step"),
    M("slim_flow", "(teacher.path.sigma(start) * noise)", "noise"),
    M("trajectories", "HALF_DIFFERENCE_STEP = 0.1", "HALF_DIFFERENCE_STEP = 5e-3"),
    M("trajectories", "            with _same_dropout(x_t):\n                values", "            if True:\n                values"),
    M("sid", "turn, guided, sample.x,", "turn, guided, -sample.x,", "critics"),
    M("sim", "turn, critic, sample.x,", "turn, critic, -sample.x,", "critics"),
    M("dmd2", "eps, t, data.condition, data.layout)", "eps, t, sample.condition, data.layout)", "contract"),
    M("re_dmd", "decode(sample.x), sample.condition)", "decode(sample.x), None)", "contract"),
    M("multi_student", "target = teacher(x_t, layout.times(t), data.condition)", "target = teacher(x_t, layout.times(t), None)", "contract"),
    M("contract", "return replace(self, x=self.x.detach())", "return Sample(x=self.x.detach())"),
)  # fmt: skip


def test_every_mutation_applies_and_every_objective_has_two() -> None:
    for mutation in MUTATIONS:
        assert mutation.old in (ROOT / mutation.source).read_text(), mutation
        assert mutation.old != mutation.new
        assert (ROOT / mutation.tests).is_file(), mutation
    counts = Counter(mutation.name for mutation in MUTATIONS)
    shared = {"__init__", "contract", "gradient_weights", "trajectories", "diffusion_gan"}
    methods = {path.stem for path in (ROOT / OBJECTIVES).glob("*.py")} - shared
    assert methods <= set(counts)
    assert min(counts[method] for method in methods) >= 2


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tests of core need, where it can be broken."""
    folder = tmp_path_factory.mktemp("mutated")
    skip = shutil.ignore_patterns("__pycache__")
    for part in ("core", "tests/core"):
        shutil.copytree(ROOT / part, folder / part, ignore=skip)
    (folder / "fewstep").mkdir()
    shutil.copy2(ROOT / "fewstep" / "__init__.py", folder / "fewstep")
    (folder / "fewstep" / "core").symlink_to(folder / "core")
    for file in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy2(ROOT / file, folder / file)
    return folder


def run_tests(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-o", "pythonpath=.", "-m", "not slow and not gpu"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*command, *options, tests], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.mutation
@pytest.mark.parametrize(
    "mutation", MUTATIONS, ids=lambda m: f"{m.name}: {' '.join(m.old.split())} -> {' '.join(m.new.split())}"
)
def test_a_broken_equation_fails_a_test(mutation: Mutation, copied: Path) -> None:
    path = copied / mutation.source
    whole = path.read_text()
    try:
        path.write_text(whole.replace(mutation.old, mutation.new, 1))
        done = run_tests(copied, mutation.tests)
    finally:
        path.write_text(whole)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert " failed" in done.stdout


@pytest.mark.slow
@pytest.mark.mutation
@pytest.mark.parametrize("tests", sorted({mutation.tests for mutation in MUTATIONS}))
def test_unbroken_the_same_tests_pass(tests: str, copied: Path) -> None:
    done = run_tests(copied, tests)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
