"""The Lightning module of every distillation: it says when, the objective says what."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from fewstep.core.denoisers import Denoiser, FlowMap
from fewstep.core.objectives.contract import Data, Need, Objective, Sample, Turn
from fewstep.core.training.ema import EMA
from fewstep.core.training.gradients import average_gradients, clip_gradients, share_buffers, withheld
from fewstep.core.training.randomness import step_generator
from fewstep.core.training.roles import Roles
from fewstep.core.training.schedules import warmup_cosine_factor
from fewstep.core.training.sharding import data_mesh

TEACHER_PREFIX = "roles.teacher."
WRITTEN_BY: dict[Need, str] = {"sample": "generate", "data": "data", "decode": "decode"}


class Distiller(LightningModule):
    """Alternate student and critic: the critic at every update, the student at every `critic_updates`-th.

    Objectives without a critic update the student every time. One update is one optimizer step of the
    trainer (`trainer.max_steps`) and consumes `accumulate_batches` batches. Its random numbers are keyed by
    (seed, batch, rank), so that with `SeedEveryBatch` for the networks' own a resumed run continues bit for
    bit. Checkpoints leave the teacher out.

    Several processes: `strategy: ddp` or FSDP2 (`ModelParallelStrategy` with `data_parallel_size: N`,
    `tensor_parallel_size: 1` and `save_distributed_checkpoint: false`). Under DDP the module averages the
    gradients itself, once per update and only those of the role that is about to step: DDP's own reducer
    would have to search every backward pass for the parameters of the other role and send them all.

    Logged: `loss/student`, `loss/critic`, `grad_norm/student`, `grad_norm/critic`, `diag/...` (objective and
    rollout), all of the first process, and `val/...` (the averaged student).

    Args:
        roles: networks and rollout of a modality.
        objective: losses of student and critic.
        student_lr: learning rate of the student.
        critic_lr: learning rate of the critic.
        critic_updates: critic updates per student update (two time-scale rule of DMD2); 0 leaves the critic
            as it is and updates the student every time.
        critic_warmup: updates of the critic alone before the first one of the student.
        reuse_rollout: on the student's turn train the critic on the very samples of the student's loss
            (DMD2) instead of on a second rollout.
        betas: AdamW's; a first beta of 0 is usual for adversarial pairs.
        weight_decay: AdamW's.
        grad_clip: largest gradient norm, for student and critic apart.
        warmup: updates over which both learning rates rise.
        decay_to: factor on both learning rates at `trainer.max_steps`, along a half cosine; 1 keeps them.
        ema_decay: of the student's average, in student updates.
        target_decay: of the average that objectives with a ``target`` regress on, in student updates.
        ema_start: student updates before the average begins.
        accumulate_batches: batches whose gradients are averaged in one update.
        seed: key of all random numbers.
    """

    batches: Tensor
    student_steps: Tensor

    def __init__(
        self,
        roles: Roles,
        objective: Objective,
        *,
        student_lr: float = 1e-5,
        critic_lr: float = 1e-5,
        critic_updates: int = 5,
        critic_warmup: int = 0,
        reuse_rollout: bool = True,
        betas: tuple[float, float] = (0.0, 0.999),
        weight_decay: float = 0.01,
        grad_clip: float = 10.0,
        warmup: int = 0,
        decay_to: float = 1.0,
        ema_decay: float = 0.99,
        ema_start: int = 0,
        target_decay: float = 0.95,
        accumulate_batches: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if critic_updates < 0 or accumulate_batches < 1:
            raise ValueError(
                f"critic_updates={critic_updates} must be at least 0 and "
                f"accumulate_batches={accumulate_batches} at least 1"
            )
        self.automatic_optimization = False
        self.roles = roles
        self.objective = objective
        self.student_lr = student_lr
        self.critic_lr = critic_lr
        self.critic_updates = critic_updates
        self.critic_warmup = critic_warmup
        self.reuse_rollout = reuse_rollout
        self.betas = betas
        self.weight_decay = weight_decay
        self.grad_clip = grad_clip
        self.warmup = warmup
        self.decay_to = decay_to
        self.accumulate_batches = accumulate_batches
        self.seed = seed
        self._check_needs()
        if roles.teacher is not None:
            _module(roles.teacher, "teacher").requires_grad_(False)
        if roles.critic is not None:
            _module(roles.critic, "critic")
        self._student_parameters: list[nn.Parameter] = []
        self._critic_parameters: list[nn.Parameter] = []
        self._find_parameters()
        if not self._critic_parameters:
            self.critic_updates = 0
        self.target = copy.deepcopy(roles.student).requires_grad_(False) if self._needs("target") else None
        self.target_decay = target_decay
        self.ema = EMA(roles.student, decay=ema_decay, start_step=ema_start)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("student_steps", torch.zeros((), dtype=torch.int64))
        self._latest: dict[str, Tensor] = {}

    def configure_model(self) -> None:
        """Shard the networks where the strategy has a device mesh (FSDP2); nothing to do elsewhere."""
        if self.device_mesh is None or any(isinstance(p, DTensor) for p in self.parameters()):
            return
        mesh = data_mesh(self.device_mesh)
        for network in (self.roles.student, self.target, self.roles.critic, self.roles.teacher):
            if isinstance(network, nn.Module):
                self.roles.shard(network, mesh)
        self._find_parameters()
        self.ema = EMA(self.roles.student, decay=self.ema.decay, start_step=self.ema.start_step)
        # Lightning reads the weights before on_load_checkpoint could add the teacher's
        self.strict_loading = False

    def training_step(self, batch: object, batch_idx: int) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, ParallelStrategy):
            with strategy.block_backward_sync():
                self._train_on(batch)
        else:
            self._train_on(batch)

    def _train_on(self, batch: object) -> None:
        update, place = divmod(int(self.batches), self.accumulate_batches)
        students_turn = self.is_students_turn(update)
        key = (int(self.batches), self.global_rank)
        generator = step_generator(self.seed, *key, device=self.device)
        self.roles.choices = step_generator(self.seed, int(self.batches), "choices")

        sample = self._generate(batch, generator, with_grad=students_turn)
        data = self.roles.data(batch) if self._needs("data") else None
        if students_turn:
            self._student_backward(self._turn(sample, data, generator))
        if self.critic_updates:
            if students_turn and not self.reuse_rollout:
                sample = self._generate(batch, generator, with_grad=False)
            self._critic_backward(self._turn(sample and sample.detach(), data, generator))

        self.batches += 1
        if place == self.accumulate_batches - 1:
            self._step(update, students_turn)
            self.log_dict(self._latest)

    @property
    def latest(self) -> Mapping[str, Tensor]:
        """The newest value of everything that is logged while training."""
        return self._latest

    def is_students_turn(self, update: int) -> bool:
        """Whether this update (from 0) trains the student; in each cycle the critic goes first."""
        cycle = max(1, self.critic_updates)
        return update >= self.critic_warmup and (update - self.critic_warmup) % cycle == cycle - 1

    def validation_step(self, batch: object, batch_idx: int) -> None:
        generator = step_generator(self.seed, "validation", batch_idx, self.global_rank, device=self.device)
        with self.ema.swapped(self.roles.student):
            metrics = self.roles.validate(batch, generator=generator)
            # copied, as a metric may alias a weight that is swapped back
            named = {f"val/{name}": value.clone() for name, value in metrics.items()}
        self.log_dict(named, batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> list[Optimizer]:
        groups = [(self._student_parameters, self.student_lr)]
        if self.critic_updates:
            groups.append((self._critic_parameters, self.critic_lr))
        return [
            AdamW(_by_kind(parameters), lr=lr, betas=self.betas, weight_decay=self.weight_decay)
            for parameters, lr in groups
        ]

    def train(self, mode: bool = True) -> "Distiller":
        super().train(mode)
        self._still()
        return self

    def on_train_start(self) -> None:
        self._still()
        for optimizer in self.trainer.optimizers:  # whose checkpoint brought those that the run began with
            for group in optimizer.param_groups:
                group["betas"], group["weight_decay"] = self.betas, self.weight_decay

    def on_fit_start(self) -> None:
        if str(self.trainer.precision) == "16-mixed":
            raise ValueError("precision 16-mixed is not supported by Distiller; use bf16-mixed or 32-true")
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy):
            raise ValueError("FSDPStrategy is not supported by Distiller; use ModelParallelStrategy (FSDP2)")
        if isinstance(strategy, ModelParallelStrategy) and strategy._save_distributed_checkpoint:
            raise ValueError(
                "ModelParallelStrategy(save_distributed_checkpoint=True) would leave the teacher in every "
                "checkpoint; set it to False"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith(TEACHER_PREFIX)}
        checkpoint["latest_metrics"] = self._latest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._latest = checkpoint.get("latest_metrics", {})  # of another module there are none
        if "state_dict" in checkpoint:
            teacher = {k: v for k, v in self.state_dict().items() if k.startswith(TEACHER_PREFIX)}
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **teacher}

    def _needs(self, what: Need) -> bool:
        return what in self.objective.needs

    def _check_needs(self) -> None:
        """Drop the networks that the objective has no use for, and miss those that it has."""
        for role in ("teacher", "critic"):
            if not self._needs(role):
                setattr(self.roles, role, None)
            elif getattr(self.roles, role) is None:
                names = type(self.objective).__name__, type(self.roles).__name__
                raise ValueError(f"{names[0]} needs a {role}, but {names[1]} has none")
        for need, method in WRITTEN_BY.items():
            if self._needs(need) and getattr(type(self.roles), method) is getattr(Roles, method):
                raise ValueError(
                    f"{type(self.objective).__name__} needs {need}, but {type(self.roles).__name__} has no "
                    f"{method}(); write it"
                )
        if self._needs("student") or self._needs("target"):
            self.roles.denoiser(self.roles.student)
        if self._needs("two_times") and not isinstance(self.roles.denoiser(self.roles.student), FlowMap):
            raise ValueError(
                f"{type(self.objective).__name__} needs a student that takes two times (a FlowMap); "
                f"{type(self.roles).__name__} has one that takes one"
            )

    def _find_parameters(self) -> None:
        """Sort what trains into the student's and the critic's, to which the objective's own belong."""
        self._student_parameters = _trainable(self.roles.student)
        critic = self.roles.critic
        self._critic_parameters = _trainable(critic) if isinstance(critic, nn.Module) else []
        _check_apart(self._student_parameters, None if critic is None else self._critic_parameters)
        if isinstance(self.objective, nn.Module):
            self._critic_parameters = self._critic_parameters + _trainable(self.objective)

    def _generate(self, batch: object, generator: torch.Generator, *, with_grad: bool) -> Sample | None:
        if not self._needs("sample"):
            return None
        with torch.set_grad_enabled(with_grad):
            return self.roles.generate(batch, generator=generator, with_grad=with_grad)

    def _turn(self, sample: Sample | None, data: Data | None, generator: torch.Generator) -> Turn:
        return Turn(
            student=self.roles.denoiser(self.roles.student) if self._needs("student") else None,
            teacher=self.roles.teacher,
            critic=self.roles.critic,
            target=None if self.target is None else self.roles.denoiser(self.target),
            sample=sample,
            data=data,
            null_condition=self.roles.null_condition,
            decode=self.roles.decode if self._needs("decode") else None,
            generator=generator,
            update=int(self.student_steps),
        )

    def _student_backward(self, turn: Turn) -> None:
        # an objective may differentiate through teacher and critic, but only with respect to their input
        with withheld(self._critic_parameters):
            loss, diagnostics = self.objective.student_loss(turn)
            self._backward(loss, "student")
        self._note({**(turn.sample.diagnostics if turn.sample else {}), **diagnostics})

    def _critic_backward(self, turn: Turn) -> None:
        with withheld(self._student_parameters):
            loss, diagnostics = self.objective.critic_loss(turn)
            self._backward(loss, "critic")
        self._note({f"critic_{name}": value for name, value in diagnostics.items()})

    def _backward(self, loss: Tensor, role: str) -> None:
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(
                f"loss/{role} is {float(loss.detach())} at update {self.trainer.global_step}; "
                f"lower {role}_lr or grad_clip, or train in float32"
            )
        self._latest[f"loss/{role}"] = loss.detach()
        self.manual_backward(loss / self.accumulate_batches)

    def _step(self, update: int, students_turn: bool) -> None:
        optimizers = self.optimizers()
        student, *critics = optimizers if isinstance(optimizers, list) else [optimizers]
        # every call of a wrapped optimizer advances trainer.global_step: wrap one per update, not two
        if critics and students_turn:
            student = student.optimizer
        turns = [("student", student, self._student_parameters, self.student_lr)] if students_turn else []
        if critics:
            turns.append(("critic", critics[0], self._critic_parameters, self.critic_lr))
        total = self.trainer.max_steps if self.decay_to < 1 else None
        factor = warmup_cosine_factor(update, warmup=self.warmup, total=total, floor=self.decay_to)
        frozen = self.roles.teacher
        if isinstance(frozen, nn.Module):
            assert all(p.grad is None for p in frozen.parameters()), "the teacher received a gradient"
        for role, optimizer, parameters, lr in turns:
            self._latest[f"grad_norm/{role}"] = self._clip(parameters, role)
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad()
        if students_turn:
            self.student_steps += 1
            self.ema.update(self.roles.student)
            self._move_target()
            critic = self.roles.critic
            self.objective.after_student_step(
                self.roles.student, critic if isinstance(critic, nn.Module) else None
            )
        for module in (self.roles.student, self.roles.critic, self.objective):
            if isinstance(module, nn.Module):
                share_buffers(module)

    def _still(self) -> None:
        """Frozen networks do not drop out."""
        for frozen in (self.roles.teacher, self.target):
            if isinstance(frozen, nn.Module):
                frozen.eval()

    @torch.no_grad()
    def _move_target(self) -> None:
        if self.target is not None:
            pairs = zip(self.target.parameters(), self.roles.student.parameters(), strict=True)
            for average, weight in pairs:
                average.lerp_(weight.to(average), 1.0 - self.target_decay)
            for mine, students in zip(self.target.buffers(), self.roles.student.buffers(), strict=True):
                mine.copy_(students)

    def _clip(self, parameters: list[nn.Parameter], role: str) -> Tensor:
        average_gradients(parameters)
        norm = clip_gradients(parameters, self.grad_clip)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(
                f"gradient of the {role} is {float(norm)}; lower {role}_lr or train in float32"
            )
        return norm

    def _note(self, diagnostics: Mapping[str, Tensor]) -> None:
        self._latest.update({f"diag/{name}": value.detach() for name, value in diagnostics.items()})


def _module(denoiser: Denoiser | None, role: str) -> nn.Module:
    if not isinstance(denoiser, nn.Module):
        raise ValueError(f"roles.{role} is a {type(denoiser).__name__}, not an nn.Module")
    return denoiser


def _check_apart(student: list[nn.Parameter], critic: list[nn.Parameter] | None) -> None:
    shared = len({id(p) for p in student} & {id(p) for p in critic or []})
    if shared or not student or critic == []:
        raise ValueError(
            f"student has {len(student)} trainable parameters, critic {len(critic or [])}, and {shared} are "
            "shared (the teacher's never train); give every role a copy of the network of its own"
        )


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _by_kind(parameters: list[nn.Parameter]) -> list[dict[str, list[nn.Parameter]]]:
    """Sharded and whole parameters in groups of their own: fused updates of both at once do not exist."""
    kinds: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
    for parameter in parameters:
        kinds[isinstance(parameter, DTensor)].append(parameter)
    return [{"params": group} for group in kinds if group]
