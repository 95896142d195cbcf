"""`fewstep stream`: serve an endless, steerable video to a page in the browser."""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import time
import webbrowser
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.streaming.engine import VideoModel

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHUTDOWN_SECONDS = 10
GOODBYE_SECONDS = 2.0
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", default="driving", help="bundled preset or model folder (%(default)s)"
    )
    parser.add_argument("--prompt", help="first prompt (the model's own default)")
    parser.add_argument("--seed", type=int, help="seed of the noise (drawn)")
    parser.add_argument("--steps", type=int, help="denoising steps per chunk (the model's default)")
    parser.add_argument(
        "--sink", default="ema", choices=("ema", "first", "none"), help="sink mode (%(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="device of the model (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="loopback address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8765, help="port; 0 picks a free one (%(default)s)")
    parser.add_argument(
        "--record-dir", type=Path, default=Path("recordings"), help="recordings (./%(default)s)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C. The page is up before the model is: torch is imported on the engine's thread."""
    check_start(args)
    listener = listen(args.host, args.port)
    with listener:
        return asyncio.run(_serve(args, listener))


def check_start(args: argparse.Namespace) -> None:
    """What can be refused before anything is loaded."""
    from fewstep.streaming.protocol import MAX_SEED, clean_prompt

    if args.host not in LOOPBACK:
        raise ValueError(
            f"--host {args.host}: only this machine can be served, there is no authentication yet; "
            "from elsewhere use ssh -L 8765:127.0.0.1:8765"
        )
    if not 0 <= args.port <= 65_535:
        raise ValueError(f"--port must be in 0..65535, got {args.port}")
    if args.seed is not None and not 0 <= args.seed <= MAX_SEED:
        raise ValueError(f"--seed must be in 0..2^63-1, got {args.seed}")
    if args.prompt is not None:
        clean_prompt(args.prompt)


def load_model(name: str, device: str) -> "VideoModel":
    """The one place that imports torch."""
    from fewstep.modalities.video.pipeline import VideoModel

    return VideoModel.load(name, device=device)


async def _serve(args: argparse.Namespace, listener: socket.socket) -> int:
    import uvicorn

    from fewstep.apps.server import create_app
    from fewstep.streaming.protocol import MAX_MESSAGE_BYTES
    from fewstep.streaming.session import LiveSession
    from fewstep.streaming.takes import Start

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Ours are installed instead: they say goodbye to the viewers first and exit with 0."""
            yield

    start = Start(prompt=args.prompt, seed=args.seed, steps=args.steps, sink=args.sink)
    session = LiveSession(
        lambda: load_model(args.model, args.device), start=start, record_dir=args.record_dir
    )
    failures: list[Exception] = []

    async def fail(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    config = uvicorn.Config(
        create_app(session, on_failure=fail),
        log_level="warning",
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    server = Server(config)

    async def stop() -> None:
        await session.close()
        # The goodbyes are sent by the connections themselves; uvicorn would cut in with a close of its own.
        deadline = time.monotonic() + GOODBYE_SECONDS
        while session.viewers and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        server.should_exit = True

    _on_signals(stop)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    url = f"http://{_shown(args.host)}:{listener.getsockname()[1]}/"
    print(f"fewstep is live at {url}  (Ctrl-C ends it)", flush=True)
    if args.open:
        await asyncio.to_thread(webbrowser.open, url)
    await serving
    if failures:
        raise failures[0]
    return 0


def _on_signals(stop: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """The first SIGINT or SIGTERM stops in good order, the second at once."""
    loop = asyncio.get_running_loop()
    stopping: list[asyncio.Task[None]] = []

    def handle() -> None:
        if stopping:
            os._exit(INTERRUPTED)
        stopping.append(loop.create_task(stop()))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handle)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, or a ValueError that says why there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ValueError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port"
        ) from None
    return listener
