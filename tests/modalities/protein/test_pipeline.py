"""The loaded model: what decides a design, what it refuses, and the folder it comes from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.core.rollouts import FewStep
from fewstep.modalities.protein.networks.transformer import ProteinTransformer
from fewstep.modalities.protein.packing import pack_chains
from fewstep.modalities.protein.pipeline import PIPELINE, ChainGuidance, ProteinModel
from fewstep.modalities.protein.released.cath import CathLabels
from fewstep.modalities.protein.sampling import ChainSampling
from fewstep.modalities.protein.student_sampling import StudentSampling
from fewstep.modalities.protein.times import student_grid
from tests import tiny_protein


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_protein.build(tmp_path_factory.mktemp("protein"))


@pytest.fixture(scope="module")
def model(folder: Path) -> ProteinModel:
    return ProteinModel.load(folder)


@pytest.mark.parametrize("student", ["sid", "tdm", "teacher"])
def test_a_design_depends_on_its_seed_and_length_alone(model: ProteinModel, student: str) -> None:
    together = model.generate([12, 20, 9, 12], seeds=[5, 6, 7, 8], student=student)
    assert [len(chain) for chain in together] == [12, 20, 9, 12]
    for chain, length, seed in zip(together, (12, 20, 9, 12), (5, 6, 7, 8), strict=True):
        alone = model.generate([length], seeds=[seed], student=student)[0]
        # float32 sums over padded rows come in another order; nanometre to angstrom is a factor of 10
        assert chain == pytest.approx(alone, abs=1e-3)
    assert np.abs(together[0] - together[3]).max() > 0.1


def test_designs_are_centred_and_in_angstrom(model: ProteinModel) -> None:
    chain = model.generate([24], seeds=[0], student="teacher")[0]
    assert chain.mean(0) == pytest.approx(np.zeros(3), abs=1e-4)
    assert 1.0 < np.sqrt((chain**2).sum(1).mean()) < 60.0


def test_the_models_own_numbers_are_the_default(model: ProteinModel) -> None:
    assert model.students == ("sid", "tdm")
    assert model.lengths == (8, 24)
    assert model.sampling() == ("sid", StudentSampling(times=student_grid(2), noise_scale=0.45))
    assert model.sampling(student="teacher") == ("teacher", ChainSampling(num_steps=3))
    name, how = model.sampling(student="tdm")
    assert name == "tdm"
    assert how == FewStep((1.0, 0.3), renoise="ddim", noise_scale=0.45)


def test_steps_and_noise_are_as_asked(model: ProteinModel) -> None:
    # a scale of the standard deviation is its square on the variance
    assert model.sampling(student="teacher", steps=7, noise_scale=0.5)[1] == ChainSampling(
        num_steps=7, noise_variance=0.25
    )
    # a student on Proteina's grid takes any number of steps, and one on a grid of its own does not
    assert model.sampling(steps=5, noise_scale=1.0)[1] == StudentSampling(
        times=student_grid(5), noise_scale=1.0
    )
    with pytest.raises(ValueError, match="steps=3: student tdm was distilled to 2 steps"):
        model.sampling(student="tdm", steps=3)
    loud, quiet = (model.generate([20], seeds=[1], noise_scale=scale)[0] for scale in (1.0, 0.1))
    assert np.abs(loud - quiet).max() > 0.1


def test_fold_classes_reach_a_network_that_knows_them_and_no_other(model: ProteinModel) -> None:
    assert model.knows_folds("teacher")
    assert not model.knows_folds("sid")
    alpha, beta, none = (
        model.generate([16], seeds=[3], student="teacher", fold=fold)[0]
        for fold in ("mainly alpha", "mainly beta", None)
    )
    assert np.abs(alpha - beta).max() > 1e-4
    assert np.abs(alpha - none).max() > 1e-4
    with pytest.raises(ValueError, match=r"sid of tiny was not trained on fold classes; .*: teacher$"):
        model.generate([16], seeds=[3], fold="mainly alpha")
    with pytest.raises(ValueError, match="fold='alpha' must be one of mainly alpha"):
        model.generate([16], seeds=[3], student="teacher", fold="alpha")


def test_what_cannot_be_is_refused(model: ProteinModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 lengths and 1 seeds"):
        model.generate([12, 13], seeds=[0])
    with pytest.raises(ValueError, match="length 3 is too short"):
        model.generate([3], seeds=[0])
    for seed in (-1, 2**32):  # torch's generators of CPUs would take the second one for 0
        with pytest.raises(ValueError, match=f"seed={seed} must be from 0 to"):
            model.generate([12], seeds=[seed])
    for scale in (-1.0, float("nan"), float("inf")):
        for student in ("sid", "teacher"):
            with pytest.raises(ValueError, match=f"noise_scale={scale} must be at least 0 and finite"):
                model.sampling(student=student, noise_scale=scale)
    with pytest.raises(
        ValueError, match="student='dmd' is not one of this model's networks: sid, tdm, teacher"
    ):
        model.generate([12], seeds=[0], student="dmd")
    with pytest.raises(ValueError, match=r"no protein model .*gone"):
        ProteinModel.load(tmp_path / "gone")


def test_one_networks_folder_is_a_model_too(folder: Path) -> None:
    alone = ProteinModel.load(folder / "teacher")
    assert alone.students == ()
    assert alone.sampling(steps=3)[0] == "teacher"
    again = alone.generate([12], seeds=[4], steps=3)[0]
    assert again == pytest.approx(ProteinModel.load(folder).generate([12], seeds=[4], student="teacher")[0])
    student = ProteinModel.load(folder / "students" / "tdm")
    assert student.sampling() == ("student", FewStep((1.0, 0.3), renoise="ddim", noise_scale=0.45))
    assert student.identity("student") == ProteinModel.load(folder).identity("tdm")


def test_one_networks_folder_says_what_it_was_trained_on(folder: Path) -> None:
    alone = ProteinModel.load(folder / "teacher")
    assert alone.lengths == (8, 24)
    told = alone.generate([12], seeds=[4], steps=3, fold="mainly beta")[0]
    packed = ProteinModel.load(folder).generate([12], seeds=[4], student="teacher", fold="mainly beta")[0]
    assert told == pytest.approx(packed)
    student = ProteinModel.load(folder / "students" / "sid")
    assert not student.knows_folds("student")
    # its weights would be taken for a teacher's
    with pytest.raises(ValueError, match="sid holds a student alone"):
        student.sampling(student="teacher")


def test_a_teacher_draws_by_the_sampler_asked_for(model: ProteinModel) -> None:
    ode = ChainSampling(num_steps=5, stochastic=False)
    assert model.sampling(student="teacher", sampler="ode", steps=5)[1] == ode
    assert model.sampling(student="teacher", sampler="sde")[1] == ChainSampling(num_steps=3)
    renoise = StudentSampling(times=student_grid(16), noise_scale=0.45)
    assert model.sampling(student="teacher", sampler="renoise")[1] == renoise
    # as a student, whose weights these are in the tiny model
    ours = model.generate([12], seeds=[2], student="teacher", steps=4, sampler="renoise")[0]
    students = model.generate([12], seeds=[2], steps=4)[0]
    assert ours == pytest.approx(students)
    with pytest.raises(ValueError, match="sampler='ode' is for a teacher; sid draws as it was distilled"):
        model.sampling(sampler="ode")
    with pytest.raises(ValueError, match=r"noise_scale=0\.5: the ODE adds no noise"):
        model.sampling(student="teacher", sampler="ode", noise_scale=0.5)


def test_guidance_leads_to_a_fold_or_away_from_a_worse_network(model: ProteinModel, folder: Path) -> None:
    how = model.sampling(student="teacher")[1]

    def drawn(fold: str | None, guidance: ChainGuidance | None) -> np.ndarray:
        return model.sampled("teacher", how, [12], seeds=[1], fold=fold, guidance=guidance)[0]

    plain = drawn("mainly beta", None)
    assert drawn("mainly beta", ChainGuidance(scale=1.0)) == pytest.approx(plain)
    assert np.abs(drawn("mainly beta", ChainGuidance(scale=3.0)) - plain).max() > 1e-3
    # a network leads nowhere from itself
    itself = ChainGuidance(scale=2.0, worse=folder / "teacher")
    assert drawn(None, itself) == pytest.approx(drawn(None, None), abs=1e-3)
    with pytest.raises(ValueError, match="guides towards a fold"):
        drawn(None, ChainGuidance(scale=2.0))


def test_a_released_file_is_a_model_whose_folds_are_caths(tmp_path: Path) -> None:
    sizes = replace(
        tiny_protein.SIZES,
        separation_bins=127,
        self_condition_bins=128,
        distance_bins=64,
        fold_classes=(1, 2, 1),
    )
    paths = [tmp_path / "a" / "one.ckpt", tmp_path / "b" / "one.ckpt"]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        torch.manual_seed(seed)
        network = ProteinTransformer(sizes)
        torch.save({"state_dict": {f"nn.{k}": v for k, v in network.state_dict().items()}}, path)
    one, other = (ProteinModel.load(path) for path in paths)
    assert paths[0].stat().st_size == paths[1].stat().st_size
    assert one.identity("teacher") != other.identity("teacher")
    student = ProteinModel.load(paths[1].rename(tmp_path / "student.pt"))
    assert student.sampling(sampler="renoise", steps=2)[0] == "teacher"
    with pytest.raises(ValueError, match=r"knows CATH's; give Proteina's cath_label_mapping\.pt"):
        one.generate([12], seeds=[0], steps=2, fold="1")
    torch.save({"C": {"1": 0}, "A": {"1.10": 0, "1.20": 1}, "T": {"1.10.8": 0}}, tmp_path / "cath.pt")
    told = ProteinModel.load(paths[0], cath=CathLabels.read(tmp_path / "cath.pt"))
    labels = told.labels("teacher", "1.20", batch=2)
    assert labels is not None
    assert labels.tolist() == [[0, 1, 1]] * 2
    plain, folded = (told.generate([12], seeds=[0], steps=2, fold=fold)[0] for fold in (None, "1.20"))
    assert np.abs(plain - folded).max() > 1e-5
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt is missing"):
        ProteinModel.load(tmp_path / "none.ckpt")


@pytest.mark.parametrize(
    ("content", "message"), [("", "is damaged"), ("[]", "lacks"), ("{}", "lacks default_st")]
)
def test_a_damaged_pipeline_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / PIPELINE).write_text(content)
    with pytest.raises(ValueError, match=message):
        ProteinModel.load(tmp_path)


def test_packing_writes_the_folder_whole_or_not_at_all(tmp_path: Path) -> None:
    runs = tiny_protein.build_runs(tmp_path / "runs")
    teacher, students = runs / "teacher" / "model", {"sid": runs / "sid" / "model"}
    out = tmp_path / "out"
    for student, steps, message in (
        ("dmd", 2, "student='dmd' is not among sid"),
        ("sid", 3, "steps=3: sid has grids for 2, 4 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            pack_chains(out, teacher=teacher, students=students, default_student=student, default_steps=steps)
        assert not out.exists()
    pack_chains(out, teacher=teacher, students=students, default_student="sid", default_steps=4)
    (out / "metrics").mkdir()
    (out / "metrics" / "kept.json").write_text("{}")
    (students["sid"] / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        pack_chains(out, teacher=teacher, students=students, default_student="sid", default_steps=2)
    assert json.loads((out / PIPELINE).read_text())["default_steps"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]
    tiny_protein.build_runs(runs)
    pack_chains(out, teacher=teacher, students=students, default_student="sid", default_steps=2)
    assert json.loads((out / PIPELINE).read_text())["default_steps"] == 2
    assert (out / "metrics" / "kept.json").is_file()
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="exists and is no protein model folder"):
        pack_chains(
            tmp_path / "other", teacher=teacher, students=students, default_student="sid", default_steps=2
        )


def test_a_device_that_is_not_there_is_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^no device 'nowhere' here \(.*\); `fewstep doctor` lists devices$"
    ):
        ProteinModel.load("chains", device="nowhere")
