"""Several servers on one machine, one per GPU or per share of its cores, as child processes of the front."""

import argparse
import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence

from fewstep.streaming.events import about

log = logging.getLogger(__name__)

MOST = 16
COMMAND = (sys.executable, "-P", "-m", "fewstep.apps.cli")
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)/")
GOODBYE_SECONDS = 12.0
REFUSED = 2  # the exit status of a command that says in one line what it cannot do
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, STEADY_SECONDS = 1.0, 30.0, 60.0


def check(args: argparse.Namespace) -> None:
    """What can be refused before a process is started."""
    if not 1 <= args.replicas <= MOST:
        raise ValueError(f"--replicas must be in 1..{MOST}, got {args.replicas}")
    if args.in_process:
        raise ValueError("--replicas: each replica's engine is a process of its own; leave out --in-process")
    if args.replicas > 1 and args.device.partition(":")[2]:
        raise ValueError(f"--device {args.device}: give it without a number; each replica takes the next one")


class Replica:
    """One server. `port` is None while there is none."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.port: int | None = None
        self.started = 0
        self._arguments, self._environment = arguments, environment
        self._process: asyncio.subprocess.Process | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Start it, and again whenever it ends.

        Raises:
            ValueError: it refused what it was asked for, as it would again.
        """
        wait = FIRST_WAIT_SECONDS
        loop = asyncio.get_running_loop()
        while not self._closed:
            began = loop.time()
            code = await self._live()
            if self._closed:
                return
            if code == REFUSED and self.started == 1:
                raise ValueError("a replica does not start, for the reason above")
            if loop.time() - began > STEADY_SECONDS:
                wait = FIRST_WAIT_SECONDS
            said = f"a replica ended with code {code}; the next one in {wait:.0f} s"
            log.error("%s", said, extra=about("replica.ended"))
            await asyncio.sleep(wait)
            wait = min(LONGEST_WAIT_SECONDS, 2 * wait)

    async def _live(self) -> int:
        # Its standard input is open as long as we live: it ends when that does, however we end.
        process = self._process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        assert process.stdout is not None
        self.started += 1
        try:
            while line := await process.stdout.readline():
                found = ADDRESS.search(line.decode(errors="replace"))
                self.port = int(found.group(1)) if found is not None else self.port
            return await process.wait()
        finally:
            self.port = None

    async def close(self) -> None:
        """In good order, or by force."""
        self._closed = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


class ReplicaSet:
    """All of them; `run` it once."""

    def __init__(self, args: argparse.Namespace, *, token: str | None, hosts: Sequence[str]) -> None:
        cores = max(1, (os.cpu_count() or 1) // args.replicas)
        environment = {"OMP_NUM_THREADS": str(cores), **os.environ}
        if token is not None:
            environment["FEWSTEP_TOKEN"] = token  # not on the command line, where everybody could read it
        self.replicas = [
            Replica(arguments_of(args, number, hosts), environment) for number in range(args.replicas)
        ]

    @property
    def ports(self) -> list[int | None]:
        return [replica.port for replica in self.replicas]

    async def run(self) -> None:
        """All of them until `close`; what one refuses is refused by all."""
        try:
            async with asyncio.TaskGroup() as group:
                for replica in self.replicas:
                    group.create_task(replica.run())
        except ExceptionGroup as refusals:
            raise refusals.exceptions[0] from None

    async def close(self) -> None:
        await asyncio.gather(*(replica.close() for replica in self.replicas))


def arguments_of(args: argparse.Namespace, number: int, hosts: Sequence[str]) -> list[str]:
    """The command line of one replica: the front's, on the loopback interface, with a device of its own."""
    device, decoder = devices_of(args, number)
    given = ["stream", args.model, "--port", "0", "--replica", str(number), "--device", device]
    given += ["--accelerate", args.accelerate]
    given += [] if decoder is None else ["--decoder-device", decoder]
    for name in ("prompt", "seed", "steps"):
        if (value := getattr(args, name)) is not None:
            given.append(f"--{name}={value}")
    for name in ("sink", "record_dir", "max_sessions", "max_queue", "idle_seconds", "session_seconds"):
        given += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    given += ["--log-level", args.log_level, *["--log-json"] * args.log_json]
    given += [word for host in hosts for word in ("--allowed-host", host)]
    return given + [word for origin in args.cors_origin for word in ("--cors-origin", origin)]


def devices_of(args: argparse.Namespace, number: int) -> tuple[str, str | None]:
    """Of one replica's model and decoder. Without a number each takes the next one, decoders after all
    models; a decoder's device with a number is everybody's.
    """
    decoder = args.decoder_device
    if args.replicas == 1:
        return args.device, decoder
    device = args.device if args.device == "cpu" else f"{args.device}:{number}"
    if decoder is None or decoder == "cpu" or ":" in decoder:
        return device, decoder
    return device, f"{decoder}:{number + (args.replicas if decoder == args.device else 0)}"
