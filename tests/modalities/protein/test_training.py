"""The protein recipes on nano networks: they run, they learn, they resume, and their exports load."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule

from fewstep.core.objectives.contract import Objective
from fewstep.core.objectives.dmd import DMD
from fewstep.core.objectives.flow_matching import FlowMatching
from fewstep.core.objectives.sid import SiD
from fewstep.core.objectives.tdm import TDM
from fewstep.core.training.distiller import Distiller
from fewstep.core.training.export import ExportStudent
from fewstep.core.training.randomness import SeedEveryBatch
from fewstep.core.training.run_folder import SaveLast, read_metrics
from fewstep.modalities.protein.data.chain_set import ChainSet, NamedChain, save_chain_set
from fewstep.modalities.protein.data.module import ProteinDataModule
from fewstep.modalities.protein.denoisers import ChainCondition
from fewstep.modalities.protein.distillation import ProteinRoles
from fewstep.modalities.protein.flow_training import ProteinFlowTraining, distogram_error, labels_of
from fewstep.modalities.protein.model_folder import load_transformer, save_transformer
from fewstep.modalities.protein.networks.transformer import ProteinTransformer, ProteinTransformerConfig
from fewstep.modalities.protein.sampling import ChainSampling
from fewstep.modalities.protein.student_sampling import StudentSampling
from fewstep.modalities.protein.times import LogTimes, TrainingTimes, student_grid
from tests.trainers import fitted

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
]

Fit = Callable[..., Path]
NANO = ProteinTransformerConfig(
    token_dim=16, pair_dim=8, cond_dim=8, num_blocks=2, num_heads=2, registers=2,
    time_dim=8, index_dim=8, fold_dim=4, fold_classes=(3, 0, 0), separation_bins=15,
    self_condition_bins=8, distance_bins=8,
    sequence_features=("res_seq_pdb_idx", "x_sc", "ca_local_diff", "ca_chirality"),
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, real_chains: list[np.ndarray]) -> str:
    folder = tmp_path_factory.mktemp("chains")
    rows = [
        NamedChain(name=f"{i}_{k}x", sequence="G" * 40, coordinates=chain[:40])
        for i, chain in enumerate(real_chains)
        for k in range(3)
    ]
    rows += [NamedChain(name="v0_A", sequence="G" * 30, coordinates=real_chains[0][:30])]
    save_chain_set(folder, ChainSet.of(rows), origin={})
    return str(folder)


def data(root: str) -> ProteinDataModule:
    return ProteinDataModule(root, min_length=20, batch_size=4, val_batches=1)


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    def fit(
        module: LightningModule,
        data: LightningDataModule,
        steps: int,
        *callbacks: Callback,
        name: str = "run",
        **settings: Any,
    ) -> Path:
        return fitted(tmp_path / name, module, data, steps, callbacks, **settings)

    return fit


def logged(folder: Path, name: str) -> list[float]:
    return [row[name] for row in read_metrics(folder) if name in row]


def teacher(**options: Any) -> ProteinFlowTraining:
    sampling = ChainSampling(num_steps=3)
    return ProteinFlowTraining(NANO, sampling=sampling, samples=2, sample_length=20, **options)


def test_the_teacher_learns_and_its_average_is_exported(root: str, fit: Fit) -> None:
    module = teacher(learning_rate=3e-2, ema_decay=0.5)
    folder = fit(module, data(root), 40)
    losses = logged(folder, "loss/velocity")
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])
    network, card = load_transformer(folder / "model")
    averaged = {name: value for name, value in network.state_dict().items() if name in module.ema.names}
    torch.testing.assert_close(averaged, module.ema.averaged_state(), atol=0.0, rtol=0.0)
    for name in ("velocity_0.1", "bond_mean", "helix", "clashes", "radius"):
        assert np.isfinite(card.metrics[f"val/{name}"])


def test_a_resumed_teacher_ends_where_an_uninterrupted_one_does(root: str, fit: Fit) -> None:
    def trained(steps: int, name: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = teacher()
        # without the schedule, which depends on where a run is to end
        module.configure_optimizers = lambda: torch.optim.AdamW(module.transformer.parameters())
        fit(module, data(root), steps, SaveLast(), SeedEveryBatch(), name=name)
        return module.state_dict()

    whole = trained(4, "whole")
    trained(2, "halves")
    torch.testing.assert_close(trained(4, "halves"), whole, atol=0.0, rtol=0.0)


def test_training_goes_on_from_a_finished_one_of_the_same_sizes(tmp_path: Path) -> None:
    first = teacher().transformer
    save_transformer(tmp_path / "model", first, training={}, metrics={})
    module = teacher(start=tmp_path / "model")
    torch.testing.assert_close(module.transformer.state_dict(), first.state_dict(), atol=0.0, rtol=0.0)
    assert module.transformer.training
    with pytest.raises(ValueError, match=r"start=.*its network is .* give equal sizes"):
        ProteinFlowTraining(replace(NANO, num_blocks=NANO.num_blocks + 1), start=tmp_path / "model")


def test_labels_tell_the_class_alone_and_unknown_is_the_last_row() -> None:
    labels = labels_of(torch.tensor([0, 2, 3]), (3, 43, 1336))
    assert labels.tolist() == [[0, 43, 1336], [2, 43, 1336], [3, 43, 1336]]
    with pytest.raises(ValueError, match="fold class 3 is not one"):
        labels_of(torch.tensor([3]), (2, 0, 0))


def test_distograms_are_scored_on_real_pairs_at_early_times() -> None:
    x0, mask = torch.randn(2, 5, 3), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    condition, t = ChainCondition(mask), torch.tensor([0.2, 0.9])
    bucket = torch.bucketize(torch.cdist(x0, x0), torch.linspace(0, 1, 63))
    certain = 50.0 * torch.nn.functional.one_hot(bucket, 64).float()
    assert float(distogram_error(certain, x0, condition, t)) < 1e-4
    blind = torch.zeros(2, 5, 5, 64)
    assert float(distogram_error(blind, x0, condition, t)) == pytest.approx(np.log(64) / 2)
    wrong = torch.where((mask[:, None] & mask[:, :, None])[..., None], certain, -certain)
    torch.testing.assert_close(
        distogram_error(wrong, x0, condition, torch.zeros(2)),
        distogram_error(certain, x0, condition, torch.zeros(2)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    network = ProteinTransformer(NANO)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("teacher") / "model"
    save_transformer(folder, network, training={}, metrics={})
    return str(folder)


def sid() -> SiD:
    return SiD(
        weighting="mean_abs",
        times=LogTimes(),
        regression=FlowMatching(times=TrainingTimes(clamp=(0.02, 0.98))),
    )


@pytest.mark.parametrize("objective", [sid, DMD, lambda: TDM(low=0.005, margin=0.002)])
def test_distillation_moves_student_and_critic_and_exports_the_grids(
    objective: Callable[[], Objective], root: str, folder: str, fit: Fit
) -> None:
    roles = ProteinRoles(folder, steps=(2, 4), folds=True, guidance_scale=1.5)
    module = Distiller(roles, objective(), student_lr=1e-3, critic_lr=1e-3, critic_updates=1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run = fit(module, data(root), 2, ExportStudent())
    moved = {
        name.split(".")[1]
        for name, value in module.state_dict().items()
        if name.startswith("roles.") and not torch.equal(value, before[name])
    }
    assert moved == {"student", "critic"}
    _, card = load_transformer(run / "model")
    assert card.step_grids == {"2": list(student_grid(2)), "4": list(student_grid(4))}
    assert (card.guidance.scale, card.guidance.baked) == (1.5, True)
    assert "val/bond_mean_in_4" in read_metrics(run)[-1] or logged(run, "val/bond_mean_in_4")


def test_a_students_samples_are_centred_and_padding_changes_nothing(root: str, folder: str) -> None:
    roles = ProteinRoles(folder, steps=(3,))
    mask = torch.tensor([[True] * 6 + [False] * 4, [True] * 10])
    with torch.no_grad():
        sample = roles.generate({"mask": mask}, generator=torch.Generator().manual_seed(0), with_grad=False)
    assert float(sample.x.sum(1).abs().max()) < 1e-5
    assert not sample.x[~mask].any()
    student = roles.denoiser(roles.student)
    x_t, t = torch.randn(2, 10, 3), torch.tensor([0.3, 0.6])
    with torch.no_grad():
        both = student(x_t, t, ChainCondition(mask))
        alone = student(x_t[:1, :6], t[:1], ChainCondition(mask[:1, :6]))
    torch.testing.assert_close(both[:1, :6], alone, atol=1e-5, rtol=0.0)


def test_training_uses_full_noise_and_generation_weaker_noise(folder: str) -> None:
    roles = ProteinRoles(folder, steps=(3,))
    assert [rollout.noise_scale for rollout in roles.rollouts.values()] == [1.0]
    assert StudentSampling().noise_scale == 0.45


def test_guidance_without_folds_is_refused(folder: str) -> None:
    with pytest.raises(ValueError, match="set folds to true"):
        ProteinRoles(folder, guidance_scale=2.0)
