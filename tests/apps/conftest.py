"""The synthetic model, and a real server process running on it."""

import importlib.util
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
EXIT_SECONDS = 60


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    return _module(HERE.parent / "streaming" / "synthetic.py")


@pytest.fixture(scope="session")
def nano_mesh() -> ModuleType:
    return _module(HERE / "nano_mesh.py")


@pytest.fixture(scope="session")
def mesh_folder(nano_mesh: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model of meshes, with a teacher."""
    return nano_mesh.save(tmp_path_factory.mktemp("mesh-model"))


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A small random text model of CLIP's class, with its tokenizer."""
    (tmp_path / "clip").mkdir()
    return _module(HERE.parent / "modalities" / "shape3d" / "nano_clip.py").save(tmp_path / "clip")


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Server:
    """`fewstep stream --port 0` on the synthetic model, in a process of its own."""

    def __init__(self, record_dir: Path, *arguments: str) -> None:
        command = [sys.executable, "-P", str(HERE / "serve_synthetic.py"), "--port", "0"]
        command += ["--record-dir", str(record_dir), *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=record_dir
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        if found is None:
            raise AssertionError(f"no URL in {line!r}: {self.process.communicate()[1]}")
        self.url = found.group()
        self.address = f"127.0.0.1:{found.group(1)}"

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Signal it; its exit code and standard error."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=EXIT_SECONDS)
        return self.process.returncode, errors


@pytest.fixture
def start_server() -> type[Server]:
    """`start_server(record_dir, *arguments)`; whoever starts one stops it."""
    return Server


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For tests that leave it as they found it."""
    running = Server(tmp_path_factory.mktemp("shared"))
    yield running
    code, errors = running.stop()
    assert (code, errors) == (0, "")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.communicate()
