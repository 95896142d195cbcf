"""Whoever watches over WebRTC, with aiortc in place of a browser."""

from typing import Any

import httpx
import numpy as np


class Watcher:
    """The other end of the connection, on the loopback interface."""

    def __init__(self, codec: str = "video/H264") -> None:
        from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver

        from fewstep.streaming.webrtc import bind

        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        wanted = self.connection.addTransceiver("video", direction="recvonly")
        known: Any = RTCRtpReceiver.getCapabilities("video")
        wanted.setCodecPreferences([one for one in known.codecs if one.mimeType == codec])
        bind(wanted.sender, "127.0.0.1")
        self.receiver: Any = wanted.receiver

    async def offer(self) -> str:
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.connection.localDescription.sdp

    async def accept(self, answer: httpx.Response) -> str:
        from aiortc import RTCSessionDescription

        assert answer.status_code == 200, answer.text
        sdp = answer.json()["sdp"]
        await self.connection.setRemoteDescription(RTCSessionDescription(sdp=sdp, type="answer"))
        return sdp

    async def picture(self) -> np.ndarray:
        """The next one, `[height, width, 3]`."""
        return (await self.receiver.track.recv()).to_ndarray(format="rgb24").astype(int)
