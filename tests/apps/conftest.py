"""The synthetic model, a real server process running on it, and a real browser for the pages with shapes."""

import importlib.util
import os
import re
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

import httpx
import pytest

from tests.apps.hands import Hand
from tests.apps.stream_page import CHROMIUM, WAIT_MS, Page
from tests.waiting import idle_until

HERE = Path(__file__).parent
EXIT_SECONDS = 60
PLAIN = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
SOFTWARE_GL = "--no-sandbox --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader"
MARGIN = 6  # pixels that the ring around a focused button takes
FRAMES = "async () => { for (let i = 0; i < 3; i += 1) await new Promise(requestAnimationFrame); }"


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    return _module(HERE.parent / "streaming" / "synthetic.py")


@pytest.fixture(scope="session")
def nano_mesh() -> ModuleType:
    from tests.apps import nano_mesh

    return nano_mesh


@pytest.fixture(scope="session")
def mesh_folder(nano_mesh: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model of meshes, with a teacher."""
    return nano_mesh.save(tmp_path_factory.mktemp("mesh-model"))


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A small random text model of CLIP's class, with its tokenizer."""
    from tests.modalities.shape3d import nano_clip

    (tmp_path / "clip").mkdir()
    return nano_clip.save(tmp_path / "clip")


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
        self.record_dir = record_dir
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
def browser() -> Iterator[Any]:
    """For the page of the stream."""
    with _browser(PLAIN) as running:
        yield running


@pytest.fixture
def page(browser: Any, shared_server: Any) -> Iterator[Page]:
    """A tab that shows the shared stream, and must have nothing to complain about."""
    opened = Page(browser, shared_server)
    opened.open()
    yield opened
    opened.context.close()
    # A test that failed between pause and resume would stop every later one.
    httpx.post(shared_server.url + "v1/sessions/live/resume").raise_for_status()
    assert opened.foreign == []
    assert opened.complaints == []


@contextmanager
def _browser(flags: str) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=flags.split(), headless=True)
        yield running
        running.close()


@pytest.fixture(scope="module")
def open_page() -> Iterator[Callable[[Any], Any]]:
    """`open_page(app)`: a tab on the application's page, in a browser that draws without a graphics card.

    What the page complains about is in the tab's ``complaints``, and what it asked of another host, in vain,
    in ``foreign``.
    """
    with _browser(SOFTWARE_GL) as browser, ExitStack() as stack:

        def open_tab(app: Any) -> Any:
            address = stack.enter_context(_listening(app))
            tab = browser.new_page(
                viewport={"width": 1200, "height": 700}, reduced_motion="reduce", color_scheme="dark"
            )
            tab.set_default_timeout(WAIT_MS)
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
    """What axe-core finds serious on the page of the module's `tab`, dark and light."""
    if "AXE_CORE" not in os.environ:
        pytest.skip("needs axe-core: npm install --prefix FOLDER axe-core, and AXE_CORE=FOLDER")
    tab.wait_for_function("() => document.body.dataset.shown")
    found = []
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        found += tab.evaluate(
            """async () => (await axe.run()).violations
                .filter(({ impact }) => ['serious', 'critical'].includes(impact))
                .map(({ id, nodes }) => [id, ...nodes.map(({ html }) => html)])"""
        )
    return found


@pytest.fixture
def follow_the_scheme(tab: Any) -> Callable[[], None]:
    """`follow_the_scheme()`: the page and the stage's edge are light where the browser wishes it, the text
    dark, and the other way round.
    """

    def lightness(scheme: str) -> list[float]:
        tab.emulate_media(color_scheme=scheme)
        tab.wait_for_function("(scheme) => document.body.dataset.ground === scheme", arg=scheme)
        said = "light" if tab.get_attribute("#ground", "aria-pressed") == "true" else "dark"
        assert said == scheme
        return tab.evaluate(
            """() => {
                const style = (selector) => getComputedStyle(document.querySelector(selector));
                const stage = style("#stage").backgroundImage;
                return [style(":root").backgroundColor, stage, style("h1").color].map((text) => {
                    const bytes = text.match(/rgb\\([^)]*\\)/g).pop().match(/\\d+/g).slice(0, 3).map(Number);
                    return bytes.reduce((sum, byte) => sum + byte) / 3;
                });
            }"""
        )

    def follow() -> None:
        page, stage, text = lightness("light")
        assert min(page, stage) > 200
        assert text < 60
        page, stage, text = lightness("dark")
        assert max(page, stage) < 60
        assert text > 200

    return follow


@pytest.fixture
def go_around(tab: Any, seen: Callable[[str], Any]) -> Callable[[str, Callable[[Any], int]], None]:
    """`go_around(selector, size)`: arrow keys turn what is shown there, plus makes it larger, as `size` says
    in pixels, and the button brings it home.
    """

    def go(selector: str, size: Callable[[Any], int]) -> None:
        first = seen(selector)
        tab.focus(selector)
        for key in ("ArrowRight", "ArrowUp"):
            tab.keyboard.press(key)
        turned = seen(selector)
        assert moved(first, turned)
        tab.keyboard.press("+")
        assert size(seen(selector)) > 1.1 * size(turned)
        tab.focus("#home")
        tab.keyboard.press("Enter")
        assert (seen(selector) == first).all()

    return go


@pytest.fixture
def use_tools(tab: Any, seen: Callable[[str], Any]) -> Callable[[Hand, str], None]:
    """`use_tools(hand, selector)`: what is on all pages with shapes changes the shape shown there."""

    def use(hand: Hand, selector: str) -> None:
        hand.press(selector, "ArrowLeft")
        hand.press("#home")
        first = seen(selector)
        hand.press("#ground", "Space")
        # Waited for: on a busy machine what is drawn is not at once what is on the screen.
        idle_until(lambda: seen(selector).mean() > first.mean() + 50)
        hand.press("#ground", "Space")
        assert tab.get_attribute("#turn", "aria-pressed") == "false"  # the tab asks for less motion
        hand.press("#turn", "Space")
        idle_until(lambda: moved(first, seen(selector)))
        hand.press("#turn", "Space")
        hand.press("#home", "Space")
        idle_until(lambda: not moved(first, seen(selector)))

    return use


def moved(before: Any, after: Any) -> bool:
    """Whether more pixels differ than noise explains."""
    return bool((before != after).any(-1).mean() > 0.01)


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
