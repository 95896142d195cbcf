"""`fewstep bench serve`: the server under many viewers, several people and bad lines."""

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from fewstep.apps.records import Record, Setting, finish
from fewstep.apps.serve_load import (
    PATIENCE_SECONDS,
    PROCESSES,
    Client,
    Server,
    client,
    started_server,
    until,
    watching,
)

DEFINITIONS = """\
Everything runs on the loopback interface of this machine: the server (`fewstep stream` with this model), its
engine and all clients share its cores. Clients acknowledge each frame at once and do not decode it. Measured
from when a first prompt was answered: until then the engine loads its text encoder.
viewer_fps: frames per second at each of the viewers of one stream; the slowest and the median viewer. Goal:
  95 % of the stream's own rate for the slowest; 15 of 16 frames for one who watches through the storm.
frame_interval: milliseconds between frames at a viewer, over all viewers. Goal: twice the frame period, for
  the 99th percentile.
memory_growth: resident memory of server and engine after a scenario over that before it; among many viewers,
  from when all of them had frames. Goal: 10 MB, however long it lasts.
dropped: share of frames that were left out because a viewer was slow.
stall_recovery: some viewers read nothing for `stall` seconds; from reading again until the last of them has a
  frame as new as the newest one another viewer had at that moment. Goal: 0.5 s.
queue_order: share of queued sessions that began in the order in which they had come. Goal: all. None begins
  where `capacity_fps`, what the engine can make, is under 2.22 times the stream's rate.
queue_wait: seconds in the queue, while each session before it is ended after `turn` seconds.
queue_handover: from the end of one session to the first frame of the next.
reconnects_refused: connections of a storm that got no greeting; every second one hangs up without goodbye.
  Goal: none.
left_over: viewers, and open files of the server, after the storm beyond those before it. Goal: no viewer; 2
  files, as the server may open some of its own.
"""
START_SECONDS = 600.0
FIRST_PROMPT, PROMPT_ANSWERED = "a first prompt", ("prompt.applied", "prompt.rejected")
SETTLE_SECONDS = 3.0
STALLED_VIEWERS = 3
MOST_VIEWERS = 120
MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much load, and for how long."""

    viewers: int
    seconds: float
    stall: float
    sessions: int
    turn: float
    reconnects: int
    storm: float


FULL = Plan(viewers=64, seconds=60.0, stall=5.0, sessions=8, turn=1.0, reconnects=200, storm=10.0)
QUICK = Plan(viewers=16, seconds=8.0, stall=2.0, sessions=4, turn=0.5, reconnects=40, storm=3.0)


@dataclass(frozen=True)
class Goal:
    """Between which values a measurement must lie; one that is not a number never does."""

    least: float = -math.inf
    most: float = math.inf

    def verdict(self, value: int | float) -> str:
        return "met" if self.least <= value <= self.most else "missed"

    def __str__(self) -> str:
        if self.least == -math.inf:
            return f"at most {self.most:.4g}"
        return f"at least {self.least:.4g}"


FLAT_MEMORY = Goal(most=10.0)
FULL_RATE, RATE_IN_A_STORM = 0.95, 15 / 16
RECOVERED = Goal(most=0.5)
ALL, NONE, FEW_FILES = Goal(least=100.0), Goal(most=0.0), Goal(most=2.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DEFINITIONS
    parser.add_argument("--model", default="driving", help="bundled preset or model folder (%(default)s)")
    parser.add_argument("--viewers", type=int, help=f"of one stream ({FULL.viewers}, quick: {QUICK.viewers})")


def run(args: argparse.Namespace) -> int:
    """Measure and report; the load ends by itself after a few minutes at most."""
    if not PROCESSES.is_dir():
        raise ValueError("bench serve reads the server's memory from /proc, which only Linux has")
    plan = QUICK if args.quick else FULL
    if args.viewers is not None:
        if not 1 <= args.viewers <= MOST_VIEWERS:
            raise ValueError(f"--viewers must be in 1..{MOST_VIEWERS}, got {args.viewers}")
        plan = replace(plan, viewers=args.viewers)
    with started_server([args.model]) as server:
        records = asyncio.run(measure(server, plan, model=args.model))
    print(DEFINITIONS)
    code = finish(records, args, title="fewstep bench serve")
    print(summary(records))
    return code


def summary(records: Sequence[Record]) -> str:
    """Which goals were missed, in one line."""
    judged = [record for record in records if record.settings["verdict"] is not None]
    missed = [record.name for record in judged if record.settings["verdict"] == "missed"]
    if missed:
        return f"{len(missed)} of {len(judged)} goals missed: {', '.join(missed)}"
    return f"all {len(judged)} goals met"


class Report:
    """Collects records that share settings, each with its goal and whether that was met."""

    def __init__(self, **shared: Setting) -> None:
        self.records: list[Record] = []
        self._shared = shared

    def add(
        self, name: str, value: int | float, unit: str, goal: Goal | None = None, /, **settings: Setting
    ) -> None:
        judged: dict[str, Setting] = {
            "goal": None if goal is None else str(goal),
            "verdict": None if goal is None else goal.verdict(value),
        }
        own = {**judged, **settings}
        self.records.append(Record(name=name, value=value, unit=unit, settings={**self._shared, **own}))


async def measure(server: Server, plan: Plan, *, model: str) -> list[Record]:
    """All records, one scenario after the other."""
    report = Report(
        model=model,
        machine=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        load_average=round(os.getloadavg()[0], 2),
    )
    async with asyncio.timeout(START_SECONDS), client(server, role="controller") as first:
        while len(first.times) < 2 * first.fps + 1:
            await first.receive()
        await first.socket.send(json.dumps({"type": "prompt", "text": FIRST_PROMPT}))
        while (told := await first.receive()) is None or told["type"] not in PROMPT_ANSWERED:
            pass
    for scenario in (_crowd, _stall, _queue, _storm):
        await scenario(server, plan, report)
    return report.records


async def _crowd(server: Server, plan: Plan, report: Report) -> None:
    async with watching(server, plan.viewers) as viewers:
        await until(lambda: all(len(viewer.times) > 3 for viewer in viewers))
        await asyncio.sleep(SETTLE_SECONDS)
        before, begun = server.memory(), time.perf_counter()
        await asyncio.sleep(plan.seconds)
        ended, after = time.perf_counter(), server.memory()
        fps = viewers[0].fps
    times = [[moment for moment in viewer.times if begun <= moment <= ended] for viewer in viewers]
    rates = sorted(len(moments) / (ended - begun) for moments in times)
    gaps = sorted(1000 * (b - a) for moments in times for a, b in itertools.pairwise(moments))
    settings: dict[str, Setting] = {"viewers": plan.viewers, "seconds": plan.seconds, "fps": fps}
    full_rate, prompt = Goal(least=FULL_RATE * fps), Goal(most=2000 / fps)
    report.add("viewer_fps", rates[0], "frames/s", full_rate, viewer="slowest", **settings)
    report.add("viewer_fps", statistics.median(rates), "frames/s", viewer="median", **settings)
    report.add("frame_interval", percentile(gaps, 50), "ms", percentile=50, **settings)
    report.add("frame_interval", percentile(gaps, 99), "ms", prompt, percentile=99, **settings)
    sent, dropped = sum(v.sent for v in viewers), sum(v.dropped for v in viewers)
    report.add("dropped", 100 * dropped / max(1, sent + dropped), "%", **settings)
    report.add("memory_growth", (after - before) / MEGABYTE, "MB", FLAT_MEMORY, **settings)


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest value that is no less than so many of them; not a number where there is none."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


async def _stall(server: Server, plan: Plan, report: Report) -> None:
    from websockets.exceptions import ConnectionClosed

    async def catch_up(viewer: Client, live: int) -> float:
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while viewer.newest < live:
                    await viewer.receive()
        except (TimeoutError, ConnectionClosed):
            return math.inf
        return time.perf_counter() - begun

    async with watching(server, 1) as (other,), AsyncExitStack() as stack:
        stalled = [await stack.enter_async_context(client(server)) for _ in range(STALLED_VIEWERS)]
        for viewer in stalled:
            while not viewer.times:
                await viewer.receive()
        await asyncio.sleep(plan.stall)
        live = other.newest
        seconds = max(await asyncio.gather(*(catch_up(viewer, live) for viewer in stalled)))
    report.add("stall_recovery", seconds, "s", RECOVERED, stall=plan.stall, viewers=STALLED_VIEWERS)


async def _queue(server: Server, plan: Plan, report: Report) -> None:
    """One place, which is taken, and a queue behind it: each session is ended a moment after it began."""
    import httpx
    from websockets.exceptions import ConnectionClosed

    began: list[int] = []
    waits: list[float] = []
    handovers: list[float] = []
    ended = math.nan

    async def take_part(number: int, made: dict[str, Any], leave: asyncio.Event | None = None) -> None:
        nonlocal ended
        created = time.perf_counter()
        with contextlib.suppress(TimeoutError, ConnectionClosed):  # it never began, which the order tells
            async with (
                client(server, made["id"], role="controller", resume=made["resume_token"]) as member,
                asyncio.timeout(PATIENCE_SECONDS),
            ):
                while not member.times:
                    await member.receive()
                if leave is None:
                    began.append(number)
                    waits.append(member.times[0] - created)
                    handovers.append(member.times[0] - ended)
                    await asyncio.sleep(plan.turn)
                else:
                    await leave.wait()
                ended = time.perf_counter()
                await member.socket.send(json.dumps({"type": "stop"}))

    async with httpx.AsyncClient(base_url=f"http://{server.address}", timeout=60, trust_env=False) as http:

        async def begin() -> dict[str, Any]:
            return (await http.post("/v1/sessions", json={})).raise_for_status().json()

        async with watching(server, 1), asyncio.TaskGroup() as group:
            all_wait = asyncio.Event()
            group.create_task(take_part(-1, await begin(), all_wait))
            made = [await begin() for _ in range(plan.sessions)]
            for number, one in enumerate(made):
                group.create_task(take_part(number, one))
            await asyncio.sleep(SETTLE_SECONDS)
            all_wait.set()
        capacity = (await http.get("/v1/engine")).json()["capacity_fps"]
    in_order = sum(a == b for a, b in enumerate(began))
    settings: dict[str, Setting] = {"sessions": plan.sessions, "turn": plan.turn}
    settings["capacity_fps"] = None if capacity is None else round(capacity, 1)
    report.add("queue_order", 100 * in_order / plan.sessions, "%", ALL, **settings)
    report.add("queue_wait", percentile(sorted(waits), 50), "s", of="median", **settings)
    report.add("queue_wait", percentile(sorted(waits), 100), "s", of="last", **settings)
    report.add("queue_handover", percentile(sorted(handovers), 100), "s", of="slowest", **settings)


async def _storm(server: Server, plan: Plan, report: Report) -> None:
    import httpx
    from websockets.exceptions import WebSocketException

    refused = 0

    async def come_and_go(number: int) -> None:
        nonlocal refused
        await asyncio.sleep(plan.storm * number / plan.reconnects)
        try:
            async with client(server) as visitor:
                await visitor.receive()
                if number % 2:
                    visitor.socket.transport.abort()
        except (OSError, TimeoutError, WebSocketException):
            refused += 1

    async def viewers() -> int:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            sessions = (await http.get(f"http://{server.address}/v1/sessions")).json()
        return sum(session["viewers"] for session in sessions)

    async with watching(server, 1) as (watcher,):
        await until(lambda: len(watcher.times) > 3)
        people, files, memory = await viewers(), server.open_files(), server.memory()
        begun = time.perf_counter()
        await asyncio.gather(*(come_and_go(number) for number in range(plan.reconnects)))
        seconds = time.perf_counter() - begun
        meanwhile = sum(moment > begun for moment in watcher.times) / seconds
        await asyncio.sleep(SETTLE_SECONDS)
        left, opened = await viewers() - people, server.open_files() - files
        grown = (server.memory() - memory) / MEGABYTE
        rate = Goal(least=RATE_IN_A_STORM * watcher.fps)
    settings: dict[str, Setting] = {"reconnects": plan.reconnects, "seconds": plan.storm}
    report.add("reconnects_refused", refused, "connections", NONE, **settings)
    report.add("left_over", left, "viewers", NONE, **settings)
    report.add("left_over", opened, "files", FEW_FILES, **settings)
    report.add("memory_growth", grown, "MB", FLAT_MEMORY, **settings)
    report.add("viewer_fps", meanwhile, "frames/s", rate, viewer="in the storm", **settings)
