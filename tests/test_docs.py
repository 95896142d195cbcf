"""The documents' programs run as they stand."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"
LONGEST = 80  # lines of a modality of one's own


def program(page: str) -> str:
    """The one Python block of a page."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


def pitch_share(roles: Any, module: dict[str, Any]) -> float:
    """How many of the student's sounds have the pitch asked for, by their strongest frequency."""
    pitch = torch.arange(400) % len(module["PITCHES"])
    with torch.no_grad():
        x = roles.rollout.rollout(roles.student, torch.randn(400, 64), pitch)
    strongest = torch.fft.rfft(x).abs().argmax(1)
    return (strongest == torch.tensor(module["PITCHES"])[pitch]).double().mean().item()


@pytest.fixture
def own_modality() -> dict[str, Any]:
    module: dict[str, Any] = {}
    exec(compile(program("own-modality.md"), "own-modality.md", "exec"), module)
    return module


def test_a_modality_of_ones_own_takes_fewer_than_eighty_lines() -> None:
    code = [line for line in program("own-modality.md").splitlines() if line.strip()]
    assert len(code) < LONGEST


@pytest.mark.filterwarnings("ignore")  # what Lightning says of a plain Trainer
def test_the_own_modality_trains(own_modality: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = own_modality["train_teacher"](30)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = own_modality["distil"](teacher, 7).student
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_own_modality_learns_its_pitches(
    own_modality: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = own_modality["train_teacher"](3000)
    untrained = own_modality["StringRoles"](teacher)
    roles = own_modality["distil"](teacher, 3000)
    one_step = pitch_share(untrained, own_modality), pitch_share(roles, own_modality)
    assert one_step[1] > 0.95
    assert one_step[1] > one_step[0]
