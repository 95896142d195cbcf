import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest

from fewstep.apps import cli

HEAVY = ("torch", "numpy", "lightning", "transformers", "fastapi", "rich")


def install(
    monkeypatch: pytest.MonkeyPatch, name: str, *, error: BaseException | None = None
) -> list[object]:
    """Put a command in the place of ``name``'s module; return the list its calls are added to."""
    calls: list[object] = []

    def run(args: object) -> int:
        calls.append(args)
        if error is not None:
            raise error
        return 7

    module = types.ModuleType(name)
    module.__dict__.update(
        run=run, add_arguments=lambda parser: parser.add_argument("--size", type=int, default=1)
    )
    monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fewstep.apps.cli import main\n"
        "try: main(['--help'])\n"
        f"except SystemExit: print('loaded:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for command in cli.COMMANDS:
        assert f"\n    {command.split()[0]} " in shown
    assert "\n    train " in shown
    assert shown.splitlines()[-1] == "loaded: []"


def test_every_command_names_a_module_that_exists() -> None:
    modules = [path for path, _ in cli.COMMANDS.values()]
    assert [path for path in [*modules, cli.TRAIN] if importlib.util.find_spec(path) is None] == []


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    import fewstep

    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"fewstep {fewstep.__version__}\n"


def test_a_command_gets_its_own_arguments_and_its_exit_code_is_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = install(monkeypatch, "fewstep.apps.video")
    assert cli.main(["video", "--size", "3"]) == 7
    assert vars(calls[0]) == {"size": 3}  # pyright: ignore[reportArgumentType]


def test_measuring_commands_take_json_and_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = install(monkeypatch, "fewstep.apps.bench_stream")
    cli.main(["bench", "stream", "--quick", "--json", str(tmp_path / "out.json")])
    assert vars(calls[0]) == {"size": 1, "quick": True, "json": tmp_path / "out.json"}  # pyright: ignore


def test_an_unwritable_json_file_is_refused_before_measuring(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = install(monkeypatch, "fewstep.apps.bench_stream")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench", "stream", "--json", str(tmp_path / "missing" / "out.json")])
    assert calls == []
    assert "must be a file in a folder that exists" in capsys.readouterr().err

    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench", "stream", "--json", str(tmp_path / "out.json")])
    assert calls == []
    assert f"{tmp_path} is a folder that cannot be written to" in capsys.readouterr().err


def test_train_gets_the_rest_of_the_line_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = install(monkeypatch, cli.TRAIN)
    assert cli.main(["train", "fit", "--config", "x.yaml", "--help"]) == 7
    assert calls == [["fit", "--config", "x.yaml", "--help"]]


@pytest.mark.parametrize("error", [ValueError("steps=9:\n  use 1"), FileNotFoundError("steps=9: use 1")])
def test_expected_errors_are_one_line_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    install(monkeypatch, "fewstep.apps.video", error=error)
    assert cli.main(["video"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "fewstep: error: steps=9: use 1\n"
    assert captured.out == ""


def test_debugging_shows_the_traceback_of_expected_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "fewstep.apps.video", error=ValueError("steps"))
    monkeypatch.setenv("FEWSTEP_DEBUG", "1")
    with pytest.raises(ValueError, match="steps"):
        cli.main(["video"])


def test_a_programming_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "fewstep.apps.video", error=KeyError("bug"))
    with pytest.raises(KeyError):
        cli.main(["video"])


def test_an_interrupt_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, "fewstep.apps.video", error=KeyboardInterrupt())
    assert cli.main(["video"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["bench"], ["bench", "nonsense"], ["--", "doctor"]])
def test_a_line_without_a_known_command_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "usage: fewstep" in capsys.readouterr().err
