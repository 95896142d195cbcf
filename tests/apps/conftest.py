"""The synthetic model, a real server process running on it, and a real browser for the pages with shapes."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest

HERE = Path(__file__).parent
EXIT_SECONDS = 60
SOFTWARE_GL = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
MARGIN = 6  # pixels that the ring around a focused button takes
FRAMES = "async () => { for (let i = 0; i < 3; i += 1) await new Promise(requestAnimationFrame); }"


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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="module")
def open_page() -> Iterator[Callable[[Any], Any]]:
    """`open_page(app)`: a tab on the application's page, in a browser that draws without a graphics card.

    What the page complains about is in the tab's ``complaints``, and what it asked of another host, in vain,
    in ``foreign``.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    if (chromium := next(filter(None, map(shutil.which, names)), None)) is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with sync_api.sync_playwright() as driver, ExitStack() as stack:
        browser = driver.chromium.launch(executable_path=chromium, args=list(SOFTWARE_GL), headless=True)
        stack.callback(browser.close)

        def open_tab(app: Any) -> Any:
            address = stack.enter_context(_listening(app))
            tab = browser.new_page(viewport={"width": 1200, "height": 700}, reduced_motion="reduce")
            tab.set_default_timeout(60_000)
            tab.complaints, tab.foreign = [], []
            tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
            tab.on("console", lambda said: said.type == "error" and tab.complaints.append(said.text))
            tab.route(lambda url: urlsplit(url).netloc != address, lambda route: _refuse(tab, route))
            if (axe := os.environ.get("AXE_CORE")) is not None:
                tab.add_init_script(path=Path(axe) / "node_modules" / "axe-core" / "axe.min.js")
            tab.goto(f"http://{address}/")
            return tab

        yield open_tab


def _refuse(tab: Any, route: Any) -> None:
    tab.foreign.append(route.request.url)
    route.abort()


@contextmanager
def _listening(app: Any) -> Iterator[str]:
    """The address at which the application answers, in a thread."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def barriers(tab: Any) -> list[list[str]]:
    """What axe-core finds serious on the page of the module's `tab`."""
    if "AXE_CORE" not in os.environ:
        pytest.skip("needs axe-core: npm install --prefix FOLDER axe-core, and AXE_CORE=FOLDER")
    tab.wait_for_function("() => document.body.dataset.shown")
    return tab.evaluate(
        """async () => (await axe.run()).violations
            .filter(({ impact }) => ['serious', 'critical'].includes(impact))
            .map(({ id, nodes }) => [id, ...nodes.map(({ html }) => html)])"""
    )


@pytest.fixture
def seen(tab: Any) -> Callable[[str], Any]:
    """`seen(selector)`: what the page shows there, [height, width, 3] of bytes; black from its tools on."""
    import io

    import numpy as np
    from PIL import Image

    def screenshot(selector: str) -> Any:
        tab.wait_for_timeout(200)
        tab.evaluate(FRAMES)  # until what has changed is drawn
        place = tab.locator(selector)
        picture = np.array(Image.open(io.BytesIO(place.screenshot())).convert("RGB"), int)
        tools = int(tab.locator("#tools").bounding_box()["y"] - place.bounding_box()["y"])
        picture[max(0, tools - MARGIN) :] = 0
        return picture

    return screenshot
