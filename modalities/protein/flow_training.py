"""Flow matching on CA chains: the teacher."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.training.ema import EMA
from fewstep.core.training.run_folder import export_record
from fewstep.core.training.schedules import warmup_cosine
from fewstep.modalities.protein.centring import centred_noise
from fewstep.modalities.protein.data.module import Batch
from fewstep.modalities.protein.denoisers import ChainCondition, chain_denoiser
from fewstep.modalities.protein.model_folder import load_transformer, save_transformer
from fewstep.modalities.protein.networks.transformer import (
    ProteinPrediction,
    ProteinTransformer,
    ProteinTransformerConfig,
)
from fewstep.modalities.protein.quality import quality
from fewstep.modalities.protein.sampling import ChainSampling
from fewstep.modalities.protein.times import TrainingTimes

FLOOR = 1e-5  # of the squared time that errors are divided by
DISTOGRAM_FARTHEST = 1.0  # nanometre, of the last edge between buckets
DISTOGRAM_TIME = 0.7  # noisier chains say nothing of single distances
VALIDATION_TIMES = (0.02, 0.1, 0.3, 0.5, 0.8)


class ProteinFlowTraining(LightningModule):
    """Proteina's objective (Geffner et al., 2025): velocities, with self-conditioning and dropped folds.

    Networks that update their pairs also learn distances of the data (cross-entropy over buckets).

    Args:
        transformer: sizes of the network.
        learning_rate: peak of a warm-up and cosine schedule over the trainer's ``max_steps``.
        self_conditioning: chance of a batch to be given the network's own first estimate.
        label_dropout: share of chains whose class of fold is not told.
        ema_decay: of the averaged weights that are exported.
        sampling: how validation draws chains.
        samples: how many chains it draws; 0 for none.
        sample_length: residues of those.
        start: model folder of a finished training to go on from, of the same ``transformer``.

    Raises:
        ValueError: ``start`` holds a network of other sizes.
    """

    def __init__(
        self,
        transformer: ProteinTransformerConfig,
        learning_rate: float = 1e-3,
        self_conditioning: float = 0.5,
        label_dropout: float = 0.5,
        ema_decay: float = 0.999,
        sampling: ChainSampling = ChainSampling(num_steps=100),  # noqa: B008 (frozen)
        samples: int = 16,
        sample_length: int = 56,
        start: Path | None = None,
    ) -> None:
        super().__init__()
        self.transformer = _network(transformer, start)
        self.ema = EMA(self.transformer, decay=ema_decay)
        self.times = TrainingTimes()
        self.learning_rate = learning_rate
        self.self_conditioning, self.label_dropout = self_conditioning, label_dropout
        self.sampling, self.samples, self.sample_length = sampling, samples, sample_length

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x0, mask = batch["x0"], batch["mask"]
        labels = labels_of(batch["fold_class"], self.transformer.config.fold_classes)
        dropped = torch.rand(len(x0), device=self.device) < self.label_dropout
        labels = torch.where(dropped[:, None], self.transformer.unknown_labels(len(x0)), labels)
        condition = ChainCondition(mask, labels=labels)
        t = self.times.sample(len(x0), device=self.device)
        x_t = _noised(x0, centred_noise(mask), t)
        if torch.rand(()) < self.self_conditioning:
            with torch.no_grad():
                told, _ = self._estimate(x_t, t, condition)
            condition = condition.with_self_condition(told)
        x0_hat, prediction = self._estimate(x_t, t, condition)
        loss = _velocity_error(x0_hat - x0, t, condition)
        self.log("loss/velocity", loss.detach())
        if prediction.distogram is not None:
            distances = distogram_error(prediction.distogram, x0, condition, t)
            self.log("loss/distogram", distances.detach())
            loss = loss + distances
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        x0, mask = batch["x0"], batch["mask"]
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        condition, eps = ChainCondition(mask), centred_noise(mask, generator)
        with self.ema.swapped(self.transformer):
            for time in VALIDATION_TIMES:
                t = torch.full((len(x0),), time, device=self.device)
                x0_hat, _ = self._estimate(_noised(x0, eps, t), t, condition)
                self.log(
                    f"val/velocity_{time}", _velocity_error(x0_hat - x0, t, condition), batch_size=len(x0)
                )

    def on_validation_epoch_end(self) -> None:
        if not self.samples or self.trainer.sanity_checking:
            return
        mask = torch.ones(self.samples, self.sample_length, dtype=torch.bool, device=self.device)
        generator = torch.Generator(self.device).manual_seed(0)
        # many small steps: rounding would add up
        precise = torch.autocast(self.device.type, enabled=False)
        with self.ema.swapped(self.transformer), precise:
            chains = self.sampling.sample(
                chain_denoiser(self.transformer), ChainCondition(mask), generator=generator
            )
        self.log_dict({f"val/{name}": value for name, value in quality(chains, mask).items()})

    def _estimate(
        self, x_t: Tensor, t: Tensor, condition: ChainCondition
    ) -> tuple[Float[Tensor, " batch residue 3"], ProteinPrediction]:
        """The clean chains, and all that the network says."""
        prediction = self.transformer(
            x_t, 1 - t, condition.mask, self_condition=condition.self_condition, labels=condition.labels
        )
        return x_t + t[:, None, None] * prediction.velocity.float(), prediction

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.transformer)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.transformer.parameters(), self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
        )
        return warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches), warmup=200)

    def on_train_end(self) -> None:
        training, metrics = export_record(self.trainer)
        with self.ema.swapped(self.transformer):
            folder = Path(self.trainer.default_root_dir) / "model"
            save_transformer(folder, self.transformer, training=training, metrics=metrics)


def _network(config: ProteinTransformerConfig, start: Path | None) -> ProteinTransformer:
    if start is None:
        return ProteinTransformer(config)
    trained, _ = load_transformer(start)
    if trained.config != config:
        raise ValueError(
            f"start={str(start)!r}: its network is {trained.config}, not {config}; give equal sizes"
        )
    return trained.train()


def labels_of(fold_class: Tensor, fold_classes: tuple[int, int, int]) -> Tensor:
    """Labels of which the class alone is known, [B, 3]; the network must know as many classes as the data.

    Raises:
        ValueError: for a class that the network has no row for.
    """
    if int(fold_class.max()) > fold_classes[0]:
        raise ValueError(
            f"fold class {int(fold_class.max())} is not one of the network's fold_classes={fold_classes}; "
            "its first number must be that of the data's classes, 3"
        )
    unknown = torch.tensor(fold_classes, device=fold_class.device).repeat(len(fold_class), 1)
    unknown[:, 0] = fold_class
    return unknown


def distogram_error(
    logits: Float[Tensor, " batch row column bucket"],
    x0: Float[Tensor, " batch residue 3"],
    condition: ChainCondition,
    t: Float[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Cross-entropy of the data's distances over all pairs of residues, where chains are not too noisy."""
    buckets = logits.shape[-1]
    edges = torch.linspace(0.0, DISTOGRAM_FARTHEST, buckets - 1, device=x0.device)
    bucket = torch.bucketize(torch.cdist(x0, x0), edges)
    error = F.cross_entropy(logits.float().movedim(-1, 1), bucket, reduction="none")
    pairs = (condition.mask[:, None] & condition.mask[:, :, None]).float()
    per_chain = (error * pairs).sum((1, 2)) / pairs.sum((1, 2))
    return (per_chain * (t < DISTOGRAM_TIME)).mean()


def _noised(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    return torch.lerp(x0, eps, t[:, None, None])


def _velocity_error(error: Tensor, t: Tensor, condition: ChainCondition) -> Tensor:
    return (condition.layout.mean(error.square()) / (t.square() + FLOOR)).mean()
