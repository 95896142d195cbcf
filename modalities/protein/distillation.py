"""What proteins bring to the Distiller: CA chains, and students that make them in a few steps."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fewstep.core.checkpoints import Guidance, student_grids
from fewstep.core.objectives.contract import Data, Sample
from fewstep.core.rollouts import FewStep
from fewstep.core.training.roles import Roles
from fewstep.modalities.protein.centring import CentredDenoiser, centred_noise
from fewstep.modalities.protein.denoisers import ChainCondition, GuidedChains, chain_denoiser
from fewstep.modalities.protein.flow_training import labels_of
from fewstep.modalities.protein.model_folder import load_transformer, save_transformer
from fewstep.modalities.protein.networks.transformer import ProteinTransformer
from fewstep.modalities.protein.pictures import chain_picture, distance_maps, sheet
from fewstep.modalities.protein.quality import ANGSTROM_PER_NANOMETRE, quality
from fewstep.modalities.protein.student_sampling import StudentSampling
from fewstep.modalities.protein.times import student_grid

PICTURES = 12


class ProteinRoles(Roles):
    """Teacher, student and critic that all start as the teacher of a model folder.

    The student generates in a random one of its step grids and gives the prediction of a random step, with
    noise as strong as it is told; ``StudentSampling`` weakens it in use. None of the networks is given a
    self-condition. Of a batch of ``ProteinDataModule`` the lengths are used, the folds if ``folds``, and the
    chains only by objectives that want real samples.

    Args:
        teacher: model folder, or a released file of Proteina, whose licence the student then has.
        steps: numbers of steps that the student learns, each on its ``student_grid``.
        step_grids: number of steps -> times, in place of those grids.
        guidance_scale: of the teacher towards the fold (w, 1 is off), which needs ``folds``; the student
            learns the guided distribution.
        folds: whether the networks are told the class of the fold where the batch knows it.
        renoise: how the student goes on between its steps (``FewStep``).
    """

    def __init__(
        self,
        teacher: str,
        steps: Sequence[int] = (8, 16),
        step_grids: dict[int, list[float]] | None = None,
        guidance_scale: float = 1.0,
        folds: bool = False,
        renoise: Literal["fresh", "ddim"] = "fresh",
    ) -> None:
        super().__init__()
        if guidance_scale != 1 and not folds:
            raise ValueError(f"guidance_scale={guidance_scale} guides towards a fold; set folds to true")
        network, card = load_transformer(Path(teacher))
        self.licence = card.licence
        self.student = copy.deepcopy(network)
        self.teacher = GuidedChains(self.denoiser(network), guidance_scale=guidance_scale)  # pyright: ignore[reportAttributeAccessIssue] # a denoiser of chains
        self.critic = self.denoiser(copy.deepcopy(network))
        grids = student_grids(step_grids or {number: list(student_grid(number)) for number in steps})
        self.rollouts = {number: FewStep(grid, renoise=renoise) for number, grid in grids.items()}
        self.guidance_scale, self.folds = guidance_scale, folds

    @property
    def network(self) -> ProteinTransformer:
        """The student by its class."""
        return cast(ProteinTransformer, self.student)

    def condition(self, batch: Any) -> ChainCondition:
        """Lengths and, if asked for, folds of a batch."""
        labels = None
        if self.folds:
            labels = labels_of(batch["fold_class"], self.network.config.fold_classes)
        return ChainCondition(batch["mask"], labels=labels)

    def generate(self, batch: Any, *, generator: torch.Generator, with_grad: bool) -> Sample:
        condition = self.condition(batch)
        rollout = list(self.rollouts.values())[self.choose(len(self.rollouts), generator)]
        x, call = rollout.rollout_and_call(
            self.denoiser(self.student),
            centred_noise(condition.mask, generator),
            condition,
            exit_step=self.choose(len(rollout.times), generator),
            generator=generator,
            noises=lambda _: centred_noise(condition.mask, generator),
        )
        radius = condition.layout.mean(x.detach().float().square()).mean().mul(3).sqrt()
        return Sample(
            x=x,
            condition=condition,
            layout=condition.layout,
            call=call,
            diagnostics={"radius": radius * ANGSTROM_PER_NANOMETRE},
        )

    def data(self, batch: Any) -> Data:
        condition = self.condition(batch)
        return Data(x0=batch["x0"], condition=condition, layout=condition.layout)

    def decode(self, x: Tensor) -> Tensor:
        """Maps of all distances, for rewards on pictures; padding lies at the centre of its chain."""
        return distance_maps(x.float())

    def denoiser(self, student: nn.Module) -> CentredDenoiser:
        return CentredDenoiser(chain_denoiser(cast(ProteinTransformer, student)))

    def validate(self, batch: Any, *, generator: torch.Generator) -> dict[str, Tensor]:
        """What ``quality`` says of the student's chains in each of its numbers of steps."""
        found: dict[str, Tensor] = {}
        for steps, x in self._sampled(self.condition(batch), generator).items():
            values = quality(x, batch["mask"])
            found |= {f"{name}_in_{steps}": value for name, value in values.items()}
        return found

    def pictures(self, batch: Any, *, generator: torch.Generator) -> dict[str, Tensor]:
        mask = batch["mask"][:PICTURES]
        condition = self.condition({name: value[:PICTURES] for name, value in batch.items()})
        drawn = {}
        for steps, x in self._sampled(condition, generator).items():
            chains = [
                (row[real] * ANGSTROM_PER_NANOMETRE).cpu().numpy() for row, real in zip(x, mask, strict=True)
            ]
            drawn[f"steps_{steps}"] = sheet([chain_picture(chain, size=160) for chain in chains], columns=4)
        return drawn

    def _sampled(self, condition: ChainCondition, generator: torch.Generator) -> dict[int, Tensor]:
        student = chain_denoiser(self.network)
        return {
            steps: StudentSampling(times=rollout.times).sample(student, condition, generator=generator)
            for steps, rollout in self.rollouts.items()
        }

    def save_student(
        self, folder: Path, *, training: dict[str, Any], metrics: dict[str, int | float]
    ) -> None:
        save_transformer(
            folder,
            self.network,
            training=training,
            metrics=metrics,
            step_grids={steps: list(rollout.times) for steps, rollout in self.rollouts.items()},
            guidance=Guidance(scale=self.guidance_scale, baked=True),
            licence=self.licence,
        )
