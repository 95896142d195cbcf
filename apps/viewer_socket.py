"""One WebSocket connection: greeting, limits, and messages between a viewer and its session."""

import asyncio
import contextlib
import time

from starlette.websockets import WebSocket, WebSocketDisconnect

from fewstep.apps.access import client_of
from fewstep.apps.guard import spoken
from fewstep.streaming import protocol
from fewstep.streaming.fanout import Viewer
from fewstep.streaming.limits import ACK_BURST, ACK_RATE, MESSAGE_BURST, MESSAGE_RATE, Strikes, TokenBucket
from fewstep.streaming.messages import error_message
from fewstep.streaming.protocol import BadMessage, ClientMessage
from fewstep.streaming.service import StreamService
from fewstep.streaming.session import LiveSession

HELLO_SECONDS = 5.0
SEND_SECONDS = 10.0
WATCH_SECONDS = 1.0
RATE_REFUSALS = 20
READ_AHEAD = 16
READ_PAUSE_SECONDS = 0.002


class CloseConnection(Exception):
    """End the connection with this code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class ViewerSocket:
    """`serve` runs from the accepted handshake to the close."""

    def __init__(self, websocket: WebSocket, service: StreamService) -> None:
        self._websocket = websocket
        self._service = service
        self._found: LiveSession | None = None
        self._wake = asyncio.Event()
        self._viewer = Viewer("viewer", client=client_of(websocket.scope), wake=self._wake.set)
        self._messages = TokenBucket(MESSAGE_RATE, MESSAGE_BURST)
        self._acks = TokenBucket(ACK_RATE, ACK_BURST)
        self._strikes = Strikes()
        self._refused = 0

    async def serve(self, session_id: str) -> None:
        subprotocol = spoken(self._websocket.scope)
        await self._websocket.accept(subprotocol=subprotocol)
        try:
            if subprotocol is None:
                raise CloseConnection(4406, f"speak the subprotocol {protocol.SUBPROTOCOL}")
            self._found = self._service.find(session_id)
            if self._found is None:
                raise CloseConnection(4404, "no such session")
            if not self._session.audience.has_room(self._viewer.client):
                raise CloseConnection(1013, "too many viewers")
            await self._greet()
            await self._exchange()
        except CloseConnection as close:
            self._service.counters.closes[close.code] += 1
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await self._websocket.close(close.code, close.reason)
        except WebSocketDisconnect:
            pass
        finally:
            if self._found is not None and self._viewer in self._found.viewers:
                self._found.detach(self._viewer)

    @property
    def _session(self) -> LiveSession:
        assert self._found is not None, "serve looks it up first"
        return self._found

    async def _greet(self) -> None:
        try:
            hello = await asyncio.wait_for(self._receive(), HELLO_SECONDS)
        except TimeoutError:
            raise CloseConnection(4408, "no hello in time") from None
        except BadMessage as error:
            raise CloseConnection(4400, f"expected hello: {error}"[:120]) from None
        if not isinstance(hello, protocol.Hello):
            raise CloseConnection(4400, "the first message must be hello")
        session, service = self._session, self._service
        if hello.session not in (None, session.id):
            raise CloseConnection(4404, "no such session")
        if "jpeg" not in hello.codecs:
            raise CloseConnection(4406, "every frame may be jpeg; list it in codecs")
        if hello.role == "controller" and not service.may_control(session, hello.resume):
            raise CloseConnection(4401, "steering this session needs its resume token")
        if hello.role == "controller" and session is not service.shared:
            session.audience.replace_controllers()
        self._viewer.role = hello.role
        self._viewer.h264 = "h264" in hello.codecs and hello.codecs.index("h264") < hello.codecs.index("jpeg")
        session.attach(self._viewer)
        if (place := service.place(session)) is not None:
            self._viewer.post(place)

    async def _exchange(self) -> None:
        """Read and write until one of the two ends."""
        tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self) -> None:
        while True:
            self._wake.clear()
            while (item := self._viewer.take(time.monotonic())) is not None:
                await self._send(item)
            if self._viewer.closing is not None:
                raise CloseConnection(*self._viewer.closing)
            if self._viewer.stalled(time.monotonic()):
                raise CloseConnection(4008, "no acknowledgement for 10 s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), WATCH_SECONDS)

    async def _send(self, item: str | bytes) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                if isinstance(item, str):
                    await self._websocket.send_text(item)
                else:
                    await self._websocket.send_bytes(item)
        except TimeoutError:
            raise CloseConnection(4008, "the connection takes no more data") from None

    async def _read(self) -> None:
        while True:
            try:
                message = await self._receive()
                self._check_rate(message)
                await self._handle(message)
            except BadMessage as error:
                self._service.counters.bad_messages[error.code] += 1
                self._viewer.post(error_message(error))
                if error.code != "rate_limited" and _is_malformed(error):
                    self._strike()
            # Who sends faster than it reads the answers is read more slowly.
            while self._viewer.queued > READ_AHEAD and self._viewer.closing is None:
                await asyncio.sleep(READ_PAUSE_SECONDS)

    async def _receive(self) -> ClientMessage:
        event = await self._websocket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", 1005))
        text = event.get("text")
        if text is None:
            raise BadMessage("invalid_message", "binary messages are not accepted; send JSON text")
        if len(text.encode("utf-8", "surrogatepass")) > protocol.MAX_MESSAGE_BYTES:
            raise CloseConnection(1009, f"a message has at most {protocol.MAX_MESSAGE_BYTES} bytes")
        return protocol.parse_message(text)

    def _check_rate(self, message: ClientMessage) -> None:
        bucket = self._acks if isinstance(message, protocol.Ack) else self._messages
        if bucket.take(time.monotonic()):
            return
        self._refused += 1
        if self._refused > RATE_REFUSALS:
            self._viewer.close(4429, "too many messages")
        raise BadMessage("rate_limited", "too many messages; wait a moment")

    def _strike(self) -> None:
        """The writer closes, once the last explanation is sent."""
        if self._strikes.add(time.monotonic()):
            self._viewer.close(4400, "three bad messages within 10 s")

    async def _handle(self, message: ClientMessage) -> None:
        session, viewer = self._session, self._viewer
        session.heard = time.monotonic()
        self._service.counters.messages[message.kind] += 1
        if viewer.role != "controller" and not isinstance(message, protocol.VIEWER_MESSAGES):
            raise BadMessage("forbidden", "a viewer can only watch; say hello as controller to steer")
        match message:
            case protocol.Ack():
                viewer.ack(message.seq, time.monotonic())
                if viewer.rtt_seconds is not None:
                    self._service.counters.ack_rtt.observe(viewer.rtt_seconds)
            case protocol.View():
                session.set_visible(viewer, message.visible)
            case protocol.Ping():
                viewer.post({"type": "pong", "t": message.t, "server_us": time.time_ns() // 1000})
            case protocol.Prompt():
                session.prompt(message.text, ref=message.id)
            case protocol.Steer():
                session.steer(message)
            case protocol.Pause():
                session.pause()
            case protocol.Resume():
                session.resume()
            case protocol.Reset():
                session.restart(**message.model_dump(exclude={"type"}))
            case protocol.Reseed():
                session.reseed(message.seed)
            case protocol.RecordStart():
                session.start_recording()
            case protocol.RecordStop():
                await session.stop_recording()
            case protocol.Stop():
                if not await self._service.end(session.id):
                    raise BadMessage("forbidden", "the shared session goes on; close the page to leave it")
            case _:
                raise BadMessage("invalid_message", "hello was already said")


def _is_malformed(error: BadMessage) -> bool:
    """Only what no well-meant page sends counts as a strike; an empty prompt may happen to anybody."""
    return error.code in ("invalid_json", "invalid_message", "out_of_range", "unsupported_size")
