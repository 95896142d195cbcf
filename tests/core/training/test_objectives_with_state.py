"""Objectives with parameters or buffers in the real Distiller: who trains what, and an exact resume."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fewstep.core.denoisers import NetworkDenoiser
from fewstep.core.discriminators import PixelDiscriminator, TokenHead
from fewstep.core.objectives.contract import Data, Diagnostics, Objective, Sample, Turn
from fewstep.core.objectives.dmd2 import DMD2
from fewstep.core.objectives.flash_dmd import FlashDMD, FlashDMDPreference
from fewstep.core.objectives.re_dmd import ReDMD
from fewstep.core.rewards.contract import Reward
from fewstep.core.rollouts import FewStep
from fewstep.core.training.roles import Roles
from fewstep.core.training.run_folder import read_metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
]

DIM = 4


class Pointwise(nn.Module):
    """x0 of [B, 3, 2] tokens from a hidden layer, which it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(3, DIM)
        self.out = nn.Linear(DIM, 2)

    def features(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return torch.tanh(self.trunk(torch.cat([x_t, t[:, None, None].expand(-1, 3, 1)], dim=-1)))

    def forward(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return self.out(self.features(x_t, t, condition))


def network() -> NetworkDenoiser:
    return NetworkDenoiser(Pointwise(), prediction="x0")


class TokenRoles(Roles):
    """Everything that the objectives of this file need; two steps of the student."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.teacher = network()
        self.student, self.critic = network(), network()
        self.rollout = FewStep((1.0, 0.4))

    def generate(self, batch: object, *, generator: torch.Generator, with_grad: bool) -> Sample:
        assert isinstance(batch, Tensor)
        noise = torch.randn(len(batch), 3, 2, generator=generator)
        exit_step = self.rollout.draw_exit_step(generator)
        assert isinstance(self.student, NetworkDenoiser)
        x, call = self.rollout.rollout_and_call(
            self.student, noise, None, exit_step=exit_step, generator=generator
        )
        return Sample(x=x, call=call)

    def data(self, batch: object) -> Data:
        assert isinstance(batch, Tensor)
        return Data(x0=torch.sin(batch[:, :, None] + torch.arange(6).view(3, 2)))

    def decode(self, x: Tensor) -> Tensor:
        return (0.5 + 0.1 * x.mean((1, 2)))[:, None, None, None, None].expand(-1, 1, 3, 4, 4)


class Bright(Reward):
    name = "bright"
    differentiable = False

    def score(self, pixels: Tensor, condition: object = None) -> Tensor:
        return pixels.mean((1, 2, 3, 4))


class NoisyBright:
    def score(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        return x_t.mean((1, 2))


class Watched(DMD2):
    """DMD2 that writes down whose weights are trainable, and which samples it sees."""

    def __init__(self) -> None:
        super().__init__(TokenHead(DIM, hidden=8))
        self.seen: list[tuple[str, Tensor]] = []
        self.frozen: list[bool] = []

    def student_loss(self, turn: Turn) -> tuple[Tensor, Diagnostics]:
        assert turn.sample is not None
        assert isinstance(turn.critic, nn.Module)
        assert isinstance(turn.teacher, nn.Module)
        self.seen.append(("student", turn.sample.x.detach()))
        networks = [turn.critic, turn.teacher, self]
        self.frozen.append(not any(p.requires_grad for net in networks for p in net.parameters()))
        return super().student_loss(turn)

    def critic_loss(self, turn: Turn) -> tuple[Tensor, Diagnostics]:
        assert turn.sample is not None
        assert not turn.sample.x.requires_grad
        self.seen.append(("critic", turn.sample.x))
        return super().critic_loss(turn)


def test_dmd2_has_two_time_scales_one_rollout_and_a_discriminator_frozen_on_the_students_turn(
    make_distiller: Callable, fit: Callable
) -> None:
    """T-DMD-5: the critic at every update, the student at every third, on the very same samples."""
    objective = Watched()
    distiller = make_distiller(TokenRoles(), objective, critic_updates=3)
    head_before = [p.detach().clone() for p in objective.parameters()]
    fit(distiller, 6)
    assert [role for role, _ in objective.seen] == ["critic", "critic", "student", "critic"] * 2
    assert torch.equal(objective.seen[2][1], objective.seen[3][1])
    assert not torch.equal(objective.seen[1][1], objective.seen[2][1])
    assert objective.frozen == [True, True]
    assert all(
        not torch.equal(now, before) for now, before in zip(objective.parameters(), head_before, strict=True)
    )


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        trainer.should_stop = trainer.global_step >= self.step


def flash() -> FlashDMD:
    return FlashDMD(PixelDiscriminator(channels=(4,), hidden=3))


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "dmd2": lambda: DMD2(TokenHead(DIM, hidden=8), r1_weight=1.0),
    "re_dmd": lambda: ReDMD(Bright()),
    "flash_dmd": flash,
    "flash_dmd preference": lambda: FlashDMDPreference(flash(), NoisyBright(), ratio=1),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    name: str, make_distiller: Callable, fit: Callable, tmp_path: Path, assert_identical: Callable
) -> None:
    def distiller(seed: int) -> LightningModule:
        torch.manual_seed(seed)
        objective = OBJECTIVES[name]()
        return make_distiller(TokenRoles(), objective, critic_updates=2, target_decay=0.9)

    fit(distiller(0), 12, tmp_path / "whole")
    fit(distiller(0), 12, tmp_path / "parts", extra_callbacks=[StopAt(5)])
    fit(distiller(1), 12, tmp_path / "parts")
    expected, found = (torch.load(tmp_path / run / "last.ckpt") for run in ("whole", "parts"))
    assert expected["global_step"] == found["global_step"] == 12
    assert_identical(expected["state_dict"], found["state_dict"])
    assert_identical(expected["optimizer_states"], found["optimizer_states"])
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")
    state = {key for key in expected["state_dict"] if key.startswith("objective.")}
    assert state


def test_flash_dmds_critic_follows_the_student(make_distiller: Callable, fit: Callable) -> None:
    """With a critic that learns nothing by itself, all its way is the student's."""
    roles = TokenRoles()
    start = [p.detach().clone() for p in roles.critic.parameters()]  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    objective = FlashDMD(PixelDiscriminator(channels=(4,), hidden=3), pull=0.5)
    settings = {"critic_updates": 1, "critic_lr": 0.0, "weight_decay": 0.0, "student_lr": 0.0}
    fit(make_distiller(roles, objective, **settings), 3)
    for now, before, leader in zip(
        roles.critic.parameters(),  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        start,
        roles.student.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(now - leader, 0.125 * (before - leader))
