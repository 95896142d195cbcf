"""How each objective of the family is run on the ring: one entry per method, numbers and all."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.core.denoisers import Condition, NetworkDenoiser
from fewstep.core.discriminators import PixelDiscriminator, TokenHead
from fewstep.core.objectives.contract import Objective
from fewstep.core.objectives.diff_instruct import DiffInstruct
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.dmd2 import DMD2
from fewstep.core.objectives.flash_dmd import FlashDMD
from fewstep.core.objectives.lcm import LCM
from fewstep.core.objectives.mdt import MDT
from fewstep.core.objectives.mean_flow import MeanFlow
from fewstep.core.objectives.multi_student import ClassRouter, MultiStudent
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
from fewstep.core.objectives.trajectories import TimePairs
from fewstep.core.objectives.twin_flow import TwinFlow
from fewstep.core.rewards.contract import Reward, check_pixels
from fewstep.core.schedules import LogitNormalTimes, UniformTimes
from fewstep.modalities.plane.network import PointNetwork

Student = Literal["one time", "two times", "small", "two tiny students", "one tiny student"]
Generation = Literal["fresh noise", "deterministic", "flow map"]

STEEPNESS = 4.0  # of the judge's log-odds over the right half of the picture
JUDGE_WEIGHT = 0.3  # NP-Edit's released 0.02 moves nothing in 800 updates


class RightHalf(Reward):
    """Log-odds that the picture's blob is in its right half; a reward without a learned model.

    ``certain`` scores 1 or 0 instead, which has no gradient.
    """

    name = "right_half"

    def __init__(self, *, certain: bool = False) -> None:
        self.certain = certain
        self.differentiable = not certain

    def score(self, pixels: Tensor, condition: Condition = None) -> Tensor:
        check_pixels(pixels)
        brightness = pixels.mean(dim=(1, 2, 3))
        axis = torch.linspace(-1, 1, pixels.shape[-1], device=pixels.device)
        log_odds = STEEPNESS * (brightness * axis).sum(1) / brightness.sum(1).clamp(min=1e-6)
        return (log_odds > 0).to(log_odds.dtype) if self.certain else log_odds


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the benchmark.

    Args:
        objective: a new objective for one run.
        steps: numbers of steps it is for. ``one_training`` serves them all with the same weights.
        updates: of the student in a full run.
        student: what it is: the teacher's network with one time, or with a second one; a new network of half
            the width; two tiny ones, one per half of the ring, or a single one of these.
        generation: how it goes on between its steps.
        pairs: train on noise and data paired by the teacher's flow.
        unroll: keep the gradient of all steps.
        first: a method whose student is this one's start and its teacher.
        after: a method whose student and critic this one goes on with.
    """

    name: str
    objective: Callable[[], Objective]
    steps: tuple[int, ...] = (1, 2, 4)
    one_training: bool = False
    updates: int = 800
    student_lr: float = 4e-4
    critic_lr: float = 1e-3
    critic_updates: int = 5
    decay_to: float = 0.1
    betas: tuple[float, float] = (0.0, 0.999)
    ema_decay: float = 0.99
    batch_size: int = 512
    student: Student = "one time"
    generation: Generation = "fresh noise"
    pairs: bool = False
    unroll: bool = False
    first: "Method | None" = None
    after: "Method | None" = None


def trajectory(name: str, objective: Callable[[], Objective], **settings: object) -> Method:
    """Methods without a critic: one training, more but cheaper updates, a falling learning rate."""
    defaults: dict[str, object] = {
        "one_training": True,
        "updates": 4000,
        "student_lr": 1e-3,
        "decay_to": 0.02,
        "betas": (0.9, 0.999),
        "ema_decay": 0.98,
        "student": "two times",
        "generation": "flow map",
    }
    return Method(name=name, objective=objective, **(defaults | settings))  # pyright: ignore[reportArgumentType]


MEAN_FLOW_PAIRS = TimePairs(
    times=UniformTimes(low=1e-3), equal_fraction=0.5, anchor_fraction=0.125, anchors=((1.0, 0.0),)
)
ANY_PAIRS = TimePairs(times=UniformTimes(low=1e-3), equal_fraction=0.25, anchor_fraction=0.25)
ALL_TIMES = UniformTimes(low=1e-3)  # for MDT: matching starts at t = 0, which its released times hardly visit

DMD_ALONE = Method(name="DMD", objective=DMD)


def reflow(name: str, *, annealed: int) -> Method:
    """Reflow of a small, new student; the first updates are ``annealed``."""
    return trajectory(
        name,
        lambda: AnnealingReflow(updates=annealed),
        student="small",
        generation="deterministic",
        pairs=True,
    )


ANNEALED = reflow("SlimFlow, reflow", annealed=500)

METHODS = (
    DMD_ALONE,
    Method(name="Diff-Instruct", objective=DiffInstruct),
    Method(name="DMD2", objective=lambda: DMD2(TokenHead(128, hidden=64))),
    Method(name="TDM", objective=TDM, generation="deterministic"),
    Method(name="TDM, official critic", objective=lambda: TDM(target="official"), generation="deterministic"),
    Method(name="Re-DMD", objective=lambda: ReDMD(RightHalf(certain=True))),
    Method(
        name="Re-DMD, after DMD",
        objective=lambda: ReDMD(RightHalf(certain=True)),
        steps=(1,),
        updates=400,
        after=DMD_ALONE,
    ),
    Method(
        name="Flash-DMD",
        objective=lambda: FlashDMD(PixelDiscriminator(channels=(8, 16), hidden=16)),
        critic_updates=2,
    ),
    Method(name="SiD", objective=SiD),
    Method(name="SIM", objective=lambda: SIM(c=0.3)),
    Method(
        name="NP-Edit",
        objective=lambda: NPEdit(
            judge=RightHalf(), judge_weight=JUDGE_WEIGHT, soft_updates=200, identity_weight=0.0
        ),
        unroll=True,
    ),
    Method(name="Multi-student", objective=DMD, student="two tiny students"),
    Method(name="DMD, one tiny student", objective=DMD, student="one tiny student"),
    trajectory(
        "MDT, VM",
        lambda: MDT(lambda_vd=0.0, derivative="jvp", times=ALL_TIMES),
        student="one time",
        generation="fresh noise",
    ),
    trajectory(
        "MDT, VM + VD",
        lambda: MDT(derivative="jvp", times=ALL_TIMES),
        student="one time",
        generation="fresh noise",
    ),
    trajectory("RCGM", RCGM),
    trajectory("TwinFlow", TwinFlow),
    trajectory("MeanFlow", lambda: MeanFlow(source="teacher", pairs=MEAN_FLOW_PAIRS, power=0.5)),
    trajectory("SplitMeanFlow", lambda: SplitMeanFlow(pairs=ANY_PAIRS, targets="average")),
    # of 20 intervals, as for LCM, or 50, as in the paper, 4000 updates do not reach the last
    trajectory("SLAM", lambda: SLAM(lcm=LCM(num_steps=10)), generation="fresh noise"),
    trajectory("LCM", lambda: LCM(num_steps=20), student="one time", generation="fresh noise"),
    trajectory(
        "sCM",
        lambda: SCM(warmup=2000, sigma_data=1.0, times=LogitNormalTimes(mean=0.0, std=1.4)),
        student="one time",
        generation="fresh noise",
    ),
    ANNEALED,
    reflow("SlimFlow, not annealed", annealed=0),
    trajectory(
        "SlimFlow, distilled",
        FlowGuidedDistillation,
        steps=(1,),
        student="small",
        generation="deterministic",
        pairs=True,
        first=ANNEALED,
    ),
)


def two_halves(start: PointNetwork) -> MultiStudent:
    """Two students, each for one half of the ring; routed by the label."""
    return MultiStudent([NetworkDenoiser(copy.deepcopy(start)) for _ in range(2)], ClassRouter([[0], [1]]))
