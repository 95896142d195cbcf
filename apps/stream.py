"""`fewstep stream`: serve an endless, steerable video to a page in the browser."""

import argparse
import asyncio
import contextlib
import dataclasses
import importlib
import os
import secrets
import signal
import socket
import sys
import time
import webbrowser
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.apps import acceleration

if TYPE_CHECKING:
    from fewstep.apps.access import Access
    from fewstep.modalities.video.pipeline import VideoModel
    from fewstep.streaming.engine_process import ModelSource
    from fewstep.streaming.room import EngineRoom
    from fewstep.streaming.service import StreamService

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY_ADDRESS = ("0.0.0.0", "::")
LEVELS = ("debug", "info", "warning", "error")
TOKEN_VARIABLE = "FEWSTEP_TOKEN"
SHUTDOWN_SECONDS = 10
PING_SECONDS = 20.0
"""After so long a silence a socket is asked for a sign of life, and has as long to give one."""
UNHEARD_SECONDS = 30.0
"""How long the other end may leave what was sent unread before its connection is cut."""
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
    acceleration.add_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8765, help="port; 0 picks a free one (%(default)s)")
    parser.add_argument(
        "--record-dir", type=Path, default=Path("recordings"), help="recordings (./%(default)s)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    door = parser.add_argument_group("who may enter")
    door.add_argument(
        "--token", help="token to ask for; 'auto' draws one (or FEWSTEP_TOKEN); needed off the loopback"
    )
    door.add_argument("--token-file", type=Path, help="file whose first line is the token")
    door.add_argument("--insecure-no-auth", action="store_true", help="no token, whatever the --host")
    door.add_argument("--allowed-host", action="append", default=[], help="another name of this server")
    door.add_argument("--cors-origin", action="append", default=[], help="another page's origin to trust")
    service = parser.add_argument_group("sessions of people's own")
    service.add_argument("--max-sessions", type=int, default=8, help="at a time (%(default)s)")
    service.add_argument("--max-queue", type=int, default=8, help="places in the queue (%(default)s)")
    service.add_argument("--idle-seconds", type=float, default=300.0, help="until one ends (%(default)g)")
    service.add_argument(
        "--session-seconds", type=float, default=600.0, help="how long while others wait (%(default)g)"
    )
    service.add_argument("--in-process", action="store_true", help="no process of its own for the engine")
    service.add_argument(
        "--replicas",
        type=int,
        metavar="N",
        help="N servers behind this address, one per GPU or share of cores",
    )
    service.add_argument("--replica", type=int, help=argparse.SUPPRESS)  # which of them this one is
    logs = parser.add_argument_group("logs")
    logs.add_argument("--log-level", choices=LEVELS, default="warning", help="(%(default)s)")
    logs.add_argument("--log-json", action="store_true", help="one JSON object per line")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C. The page is up before the model is: only the engine's process imports torch."""
    from fewstep.apps.logs import configure

    check_start(args)
    configure(args.log_level, as_json=args.log_json)
    listener = listen(args.host, args.port)
    with listener:
        return asyncio.run(
            _serve(args, listener) if args.replicas is None else _serve_replicas(args, listener)
        )


def check_start(args: argparse.Namespace) -> None:
    """What can be refused before anything is loaded."""
    from fewstep.streaming.protocol import MAX_SEED, clean_prompt

    if args.host not in LOOPBACK and chosen_token(args) is None and not args.insecure_no_auth:
        raise ValueError(
            f"--host {args.host}: others could enter; give --token auto, or serve this machine only and use "
            "ssh -L 8765:127.0.0.1:8765 from elsewhere"
        )
    service_rules(args)
    make_access(args)
    if args.replicas is not None:
        from fewstep.apps import replicas

        replicas.check(args)
    if not 0 <= args.port <= 65_535:
        raise ValueError(f"--port must be in 0..65535, got {args.port}")
    if args.seed is not None and not 0 <= args.seed <= MAX_SEED:
        raise ValueError(f"--seed must be in 0..2^63-1, got {args.seed}")
    if args.prompt is not None:
        clean_prompt(args.prompt)
    if args.device.startswith("cuda"):
        acceleration.chosen(args.accelerate)  # whether that device can is for the engine's process to see
    else:
        acceleration.check(args.accelerate, args.device)


def chosen_token(args: argparse.Namespace) -> str | None:
    """The token asked for at the door, or None for an open one."""
    if args.token_file is not None:
        lines = args.token_file.read_text(encoding="utf-8").split()
        if not lines:
            raise ValueError(f"--token-file {args.token_file} is empty")
        return lines[0]
    if args.token == "auto":
        args.token = secrets.token_urlsafe(24)
    return args.token or os.environ.get(TOKEN_VARIABLE) or None


def make_access(args: argparse.Namespace) -> "Access":
    from fewstep.apps.access import Access

    return Access(chosen_token(args), hosts=host_names(args), origins=args.cors_origin)


def host_names(args: argparse.Namespace) -> list[str]:
    """The names by which others may call this server."""
    named = args.host if args.host not in ANY_ADDRESS else socket.gethostname()
    return [named, *args.allowed_host] if args.host not in LOOPBACK else args.allowed_host


def service_rules(args: argparse.Namespace) -> Any:
    from fewstep.streaming.admission import Rules

    for name in ("idle_seconds", "session_seconds"):
        if not getattr(args, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {getattr(args, name)}")
    return Rules(
        max_sessions=args.max_sessions,
        max_queue=args.max_queue,
        idle=args.idle_seconds,
        session_max=args.session_seconds,
    )


def model_source(args: argparse.Namespace) -> "ModelSource":
    """What the engine's process calls."""
    from fewstep.streaming.engine_process import ModelSource

    arguments = (args.model, args.device, args.accelerate, args.decoder_device, args.log_level, args.log_json)
    return ModelSource(module="fewstep.apps.stream", function="load_in_engine", arguments=arguments)


def load_in_engine(
    name: str, device: str, accelerate: str, decoder_device: str | None, log_level: str, log_json: bool
) -> "VideoModel":
    """`load_model` in the engine's process, whose log is written as the server's is."""
    from fewstep.apps import logs

    logs.configure(log_level, as_json=log_json)
    logs.leave_out_chatter()
    importlib.import_module("torch")
    logs.adopt("torch")
    return load_model(name, device, accelerate, decoder_device)


def load_model(
    name: str,
    device: str,
    accelerate: str = "default",
    decoder_device: str | None = None,
    *,
    scripted: bool = False,
) -> "VideoModel":
    """The model as the flags ask for it, with what is compiled for a live stream compiled.

    Args:
        scripted: prompts are meant for chunks known before, which overlapped decoding would miss by one.
    """
    from fewstep.modalities.video.pipeline import VideoModel

    how = acceleration.chosen(accelerate)
    if scripted:
        how = dataclasses.replace(how, overlapped_decoding=False)
    model = VideoModel.load(name, device=device, acceleration=how)
    if decoder_device is not None:
        from fewstep.modalities.video.decoder_device import decode_on

        decode_on(model, decoder_device)
    if device.startswith("cuda"):
        acceleration.choose_attention(model)
    if how.compiled and not scripted:
        model.warm_passes()
    return model


def make_room(args: argparse.Namespace) -> "EngineRoom":
    """The engine in a process of its own, or on threads of this one."""
    from fewstep.streaming.engine_process import EngineProcess
    from fewstep.streaming.engine_thread import EngineThread
    from fewstep.streaming.room import EngineRoom

    def load() -> "VideoModel":
        return load_model(args.model, args.device, args.accelerate, args.decoder_device)

    if args.in_process:
        return EngineRoom(lambda: EngineThread(load))
    return EngineRoom(lambda: EngineProcess(model_source(args)))


def make_service(args: argparse.Namespace) -> "StreamService":
    from fewstep.streaming.service import StreamService
    from fewstep.streaming.takes import Start

    start = Start(prompt=args.prompt, seed=args.seed, steps=args.steps, sink=args.sink)
    return StreamService(
        make_room(args),
        start=start,
        record_dir=args.record_dir,
        rules=service_rules(args),
        replica=args.replica,
    )


async def _serve(args: argparse.Namespace, listener: socket.socket) -> int:
    from fewstep.apps.server import create_app

    service = make_service(args)
    failures: list[Exception] = []

    async def fail(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    server = _make_server(create_app(service, access=make_access(args), on_failure=fail), args.log_level)

    async def stop() -> None:
        await service.close()
        # The goodbyes are sent by the connections themselves; uvicorn would cut in with a close of its own.
        deadline = time.monotonic() + GOODBYE_SECONDS
        while any(session.viewers for session in service.sessions()) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        server.should_exit = True

    begin_stop = _on_signals(stop)
    if args.replica is not None:
        _stop_with_standard_input(begin_stop)
    await _announced(args, listener, server)
    if failures:
        raise failures[0]
    return 0


async def _serve_replicas(args: argparse.Namespace, listener: socket.socket) -> int:
    from fewstep.apps.front import create_front
    from fewstep.apps.replicas import ReplicaSet

    replicas = ReplicaSet(args, token=chosen_token(args), hosts=host_names(args))
    server = _make_server(create_front(replicas, origins=args.cors_origin), args.log_level)

    async def stop() -> None:
        await replicas.close()
        server.should_exit = True

    _on_signals(stop)
    running = asyncio.create_task(replicas.run())
    running.add_done_callback(lambda _: setattr(server, "should_exit", True))
    try:
        await _announced(args, listener, server)
    finally:
        await replicas.close()
        refused = running.exception() if running.done() else None
        running.cancel()
    if refused is not None:
        raise refused
    return 0


def _make_server(app: Any, log_level: str) -> Any:
    import uvicorn

    from fewstep.streaming.protocol import MAX_MESSAGE_BYTES

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Ours are installed instead: they say goodbye to the viewers first and exit with 0."""
            yield

    config = uvicorn.Config(
        app,
        log_config=None,
        log_level=log_level,
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PING_SECONDS,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return Server(config)


async def _announced(args: argparse.Namespace, listener: socket.socket, server: Any) -> None:
    """Serve, and say where."""
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    url = f"http://{_shown(args.host)}:{listener.getsockname()[1]}/"
    token = chosen_token(args)
    shown = url if token is None else f"{url}#token={token}"
    print(f"fewstep is live at {shown}  (Ctrl-C ends it)", flush=True)
    if args.host not in LOOPBACK and token is None:
        print("anybody who reaches this address may steer the stream", file=sys.stderr, flush=True)
    if args.open:
        await asyncio.to_thread(webbrowser.open, shown)
    await serving


def _on_signals(stop: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """The first SIGINT or SIGTERM stops in good order, the second at once. What the first one calls."""
    loop = asyncio.get_running_loop()
    stopping: list[asyncio.Task[None]] = []

    def handle() -> None:
        if stopping:
            os._exit(INTERRUPTED)
        stopping.append(loop.create_task(stop()))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handle)
    return handle


def _stop_with_standard_input(stop: Callable[[], None]) -> None:
    """The front holds the other end: when it is gone, however it ended, so is this server."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            loop.remove_reader(sys.stdin.fileno())
            stop()

    loop.add_reader(sys.stdin.fileno(), read)


def _shown(host: str) -> str:
    """The name in the address that is printed; nobody can go to 0.0.0.0."""
    if host in ANY_ADDRESS:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, or a ValueError that says why there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; inherited by every connection
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * UNHEARD_SECONDS))
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ValueError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port"
        ) from None
    return listener
