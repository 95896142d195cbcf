"""The evaluation: which rows it has, and what stands in them."""

from pathlib import Path

import pytest
from PIL import Image

from fewstep.apps.eval_protein import Evaluation, Plan, lines_of, real_chains, save_designs_sheet
from fewstep.apps.eval_video import Clock
from fewstep.modalities.protein.evaluation import Measures
from fewstep.modalities.protein.pipeline import ProteinModel
from tests import tiny_protein

STEPS = (4, 2)
PLAN = Plan(designs=2, steps=STEPS, compared=2, searched=1, candidates=2, designed=1)
MEASURES = Measures(compared=2, searched=1, candidates=2, designed=1, known=None, designer=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_protein.build(tmp_path_factory.mktemp("protein"))


def rows_of(model: ProteinModel) -> list[tuple[object, ...]]:
    rows = [line.settings(2) for line in lines_of(model, STEPS)]
    return [(row["source"], row["sampler"], row["steps"], row["noise"]) for row in rows]


def test_each_sampler_of_the_teacher_and_each_student_has_its_rows(folder: Path) -> None:
    assert rows_of(ProteinModel.load(folder)) == [
        *(("teacher", "sde", steps, 0.671) for steps in (3, 100, 4, 2)),  # its own number first
        *(("teacher", "ode", steps, None) for steps in STEPS),
        *(("teacher", "renoise", steps, 0.45) for steps in STEPS),
        *(("sid", "student", steps, noise) for noise in (0.45, 1.0) for steps in STEPS),
        *(("tdm", "student", 2, noise) for noise in (0.45, 1.0)),
    ]


@pytest.mark.parametrize(("student", "steps"), [("sid", STEPS), ("tdm", (2,))])
def test_a_student_alone_is_not_measured_as_a_teacher(
    folder: Path, student: str, steps: tuple[int, ...]
) -> None:
    rows = rows_of(ProteinModel.load(folder / "students" / student))
    assert rows == [("student", "student", number, noise) for noise in (0.45, 1.0) for number in steps]


def test_speed_is_told_in_units_of_the_teacher_where_there_is_one(folder: Path, tmp_path: Path) -> None:
    for path, told in ((folder, True), (folder / "students" / "tdm", False)):
        evaluation = Evaluation(ProteinModel.load(path), MEASURES, PLAN, length="10-12")
        evaluation.run(Clock())
        ratios = [record for record in evaluation.records if record.name == "speed_ratio"]
        assert bool(ratios) == told
        if told:
            assert (ratios[0].settings["source"], ratios[0].value) == ("teacher", 1.0)
        names = {record.name for record in evaluation.records if record.settings["source"] == "real"}
        assert {"valid", "helix", "mean_tm"} <= names
        save_designs_sheet(evaluation, tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as image:
            assert image.width == 4 * image.height  # two designs in a row of four


def test_real_chains_are_other_ones_of_the_lengths_asked_for() -> None:
    chains = real_chains([50, 50, 60])
    assert [len(chain) for chain in chains] == [50, 50, 60]
    assert abs(chains[0] - chains[1]).max() > 1.0
