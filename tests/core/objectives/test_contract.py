"""What holds for every objective: each network that it calls is told what the sample was made from."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import pytest
import torch
from torch import Tensor

from fewstep.core.analytic import GaussianFlowMap
from fewstep.core.discriminators import PixelDiscriminator, TokenHead
from fewstep.core.objectives.contract import Data, Objective, Sample, Turn
from fewstep.core.objectives.diff_instruct import DiffInstruct
from fewstep.core.objectives.diffusion_gan import DiffusionGAN
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.dmd2 import DMD2
from fewstep.core.objectives.flash_dmd import FlashDMD, FlashDMDPreference
from fewstep.core.objectives.lcm import LCM
from fewstep.core.objectives.mdt import MDT
from fewstep.core.objectives.mean_flow import MeanFlow
from fewstep.core.objectives.multi_student import TeacherScoreMatching
from fewstep.core.objectives.np_edit import NPEdit
from fewstep.core.objectives.rcgm import RCGM
from fewstep.core.objectives.re_dmd import ReDMD
from fewstep.core.objectives.scm import SCM
from fewstep.core.objectives.sid import SiD
from fewstep.core.objectives.sim import SIM
from fewstep.core.objectives.slam import SLAM
from fewstep.core.objectives.slim_flow import AnnealingReflow, FlowGuidedDistillation
from fewstep.core.objectives.split_mean_flow import SplitMeanFlow
from fewstep.core.objectives.tdm import TDM
from fewstep.core.objectives.twin_flow import TwinFlow
from fewstep.core.paths import LinearPath
from fewstep.core.rewards.contract import Reward
from fewstep.core.rollouts import Call

ASKED_FOR, SHOWN = object(), object()  # conditions of the sample and of the data
FAR = 1e6  # where the data lie, so that noised data and samples can be told apart
EXACT = GaussianFlowMap(mean=1.3, std=0.7)


@dataclass(frozen=True)
class Listening:
    """A flow map and denoiser with features that notes its conditions, and whether they came with data."""

    heard: list[tuple[object, bool]] = field(default_factory=list)
    path: LinearPath = field(default_factory=LinearPath)

    def average_velocity(self, x_t: Tensor, t: Tensor, r: Tensor, condition: object) -> Tensor:
        self.heard.append((condition, float(x_t.mean()) > FAR / 1e4))
        return EXACT.average_velocity(x_t, t, r, condition)

    def features(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        self.heard.append((condition, float(x_t.mean()) > FAR / 1e4))
        return x_t.movedim(2, -1)

    def __call__(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        self.heard.append((condition, float(x_t.mean()) > FAR / 1e4))
        return EXACT(x_t, t, condition)


class Pleased:
    """A reward of noisy states that asks what they were to be."""

    def score(self, x_t: Tensor, t: Tensor, condition: object) -> Tensor:
        assert condition is ASKED_FOR
        return x_t.flatten(1).mean(1)


class PleasedByPixels(Reward):
    """The same of finished samples."""

    name = "pleased"
    differentiable = True

    def score(self, pixels: Tensor, condition: object = None) -> Tensor:
        assert condition is ASKED_FOR
        return pixels.flatten(1).mean(1)


def flash() -> FlashDMD:
    return FlashDMD(PixelDiscriminator(channels=(4,), hidden=4))


# without guidance of their own, which calls without a condition on purpose
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "dmd": DMD,
    "diff_instruct": DiffInstruct,
    "dmd2": lambda: DMD2(TokenHead(3, hidden=4, layers=1), r1_weight=1.0),
    "tdm": TDM,
    "sid": lambda: SiD(gan=DiffusionGAN()),
    "sim": SIM,
    "flash_dmd": flash,
    "flash_dmd preference": lambda: FlashDMDPreference(flash(), Pleased()),
    "re_dmd": lambda: ReDMD(PleasedByPixels()),
    "np_edit": lambda: NPEdit(judge=PleasedByPixels(), identity_weight=0.0),
    "mdt": MDT,
    "mdt by jvp": lambda: MDT(derivative="jvp"),
    "mean_flow": lambda: MeanFlow(source="teacher"),
    "split_mean_flow": lambda: SplitMeanFlow(targets="average"),
    "rcgm": lambda: RCGM(source="teacher", enhancement=0.0, split="random"),
    "twin_flow": lambda: TwinFlow(any_step=RCGM(enhancement=0.0)),
    "lcm": LCM,
    "slam": SLAM,
    "slam by level": lambda: SLAM(gamma_input="noise_level"),
    "scm": SCM,
    "annealing": AnnealingReflow,
    "flow guided": lambda: FlowGuidedDistillation(first_leg="teacher"),
    "score matching": TeacherScoreMatching,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_network_is_called_and_told_the_condition(name: str) -> None:
    objective, x = OBJECTIVES[name](), torch.randn(4, 1, 3, 8, 8)
    roles = {role: Listening() for role in ("student", "teacher", "critic", "target")}
    t = torch.full((4,), 0.9)
    turn = Turn(
        student=roles["student"],
        teacher=roles["teacher"],
        critic=roles["critic"],
        target=roles["target"],
        sample=Sample(x=x, condition=ASKED_FOR, call=Call(x_t=x, t=t, t_next=t / 2)),
        data=Data(x0=FAR + x, condition=SHOWN, noise=torch.randn_like(x)),
        decode=lambda x: x.sigmoid(),
    )
    for update in (0, 5):  # the preference's own, and the first that it leaves to stage 1
        objective.student_loss(replace(turn, update=update))
    if "critic" in objective.needs:
        objective.critic_loss(turn)
    for role, network in roles.items():
        for condition, of_data in network.heard:
            assert condition is (ASKED_FOR if "sample" in objective.needs and not of_data else SHOWN), role
        assert bool(network.heard) == (role in objective.needs), role


def test_a_detached_sample_is_the_same_but_for_its_graph() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    t = torch.ones(2)
    sample = Sample(
        x=2 * x, condition=ASKED_FOR, weight=t, call=Call(x_t=x, t=t, t_next=t), diagnostics={"length": t[0]}
    )
    detached = sample.detach()
    assert not detached.x.requires_grad
    assert torch.equal(detached.x, sample.x)
    for name in {entry.name for entry in fields(Sample)} - {"x"}:
        assert getattr(detached, name) is getattr(sample, name)
