"""Flow matching of either stage: the teachers."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from fewstep.core.objectives.contract import Turn
from fewstep.core.objectives.flow_matching import FlowMatching, denoising_error
from fewstep.core.schedules import LogitNormalTimes
from fewstep.core.training.ema import EMA
from fewstep.core.training.run_folder import export_record
from fewstep.core.training.schedules import warmup_cosine
from fewstep.modalities.shape3d.data.module import ShapeDataModule
from fewstep.modalities.shape3d.data.shapes import Batch
from fewstep.modalities.shape3d.stages import LatentStage, Stage

LOWEST_TIME = 1e-3  # at t = 0 a velocity cannot be told from x_t
VALIDATION_TIMES = (0.2, 0.5, 0.8, 0.95)


class ShapeFlowTraining(LightningModule):
    """Velocity regression under the linear path (Lipman et al., 2023) of one stage; logit-normal times.

    Args:
        stage: the flow with its image encoder; of the latter, what is not frozen learns along.
        learning_rate: peak of a warm-up and cosine schedule over the trainer's ``max_steps``.
        condition_dropout: share of objects that are shown without their pictures.
        time_mean: of the logit-normal distribution of training times; TRELLIS has 1.
        time_std: likewise.
        ema_decay: of the averaged weights that are exported.
    """

    def __init__(
        self,
        stage: Stage,
        learning_rate: float = 1e-3,
        condition_dropout: float = 0.1,
        time_mean: float = 1.0,
        time_std: float = 1.0,
        ema_decay: float = 0.998,
    ) -> None:
        super().__init__()
        self.stage = stage
        self.ema = EMA(stage, decay=ema_decay)
        self.learning_rate = learning_rate
        self.condition_dropout = condition_dropout
        times = LogitNormalTimes(mean=time_mean, std=time_std, clamp=(LOWEST_TIME, 1.0))
        self.objective = FlowMatching(times=times)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        dropped = torch.rand(len(batch["numbers"]), device=self.device) < self.condition_dropout
        data = self.stage.data(batch, dropped)
        loss, _ = self.objective.loss_in(
            Turn(),
            self.stage.denoiser(self.stage.flow),
            data.x0,
            condition=data.condition,
            layout=data.layout,
        )
        self.log("loss/velocity", loss.detach())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        with self.ema.swapped(self.stage):
            data, eps = self.stage.data(batch), self.stage.noise(batch, generator)
            denoiser, size = self.stage.denoiser(self.stage.flow), len(batch["numbers"])
            for time in VALIDATION_TIMES:
                t = torch.full((size,), time, device=self.device)
                error = denoising_error(denoiser, data.x0, eps, t, data.condition, layout=data.layout)
                value = data.layout.mean((error / time).square()).mean()
                self.log(f"val/velocity_{time}", value, batch_size=size)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.stage)

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.stage.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, self.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
        return warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches))

    def on_train_end(self) -> None:
        training, metrics = export_record(self.trainer)
        if isinstance(self.stage, LatentStage):
            self.stage.normalization = self._normalization()
        with self.ema.swapped(self.stage):
            folder = Path(self.trainer.default_root_dir) / "model"
            self.stage.save(folder, training=training, metrics=metrics)

    def _normalization(self) -> tuple[list[float], list[float]]:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ShapeDataModule):
            raise ValueError("a latent stage is trained on a ShapeDataModule, which knows its normalisation")
        latents = data.load("train").latents["latents"]
        return latents.mean.tolist(), latents.std.tolist()
