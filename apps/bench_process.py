"""A process that only streams: `fewstep bench stream` starts it to see a cold start and a stream's memory."""

import json
import os
import resource
import sys
from pathlib import Path

SETTLED_FRAMES = 60
STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Memory of this process now; where the system does not say, its largest so far."""
    return _status("VmRSS") if STATUS.exists() else peak_bytes()


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    if STATUS.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _status(field: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """One line when the first frame is encoded; at the end the memory in bytes as JSON."""
    import torch

    from fewstep.modalities.video.pipeline import VideoModel
    from fewstep.streaming.encoding import encode_jpeg

    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    model = VideoModel.load(request["model"], device=request["device"])
    stream = model.stream(model.encode_prompt(model.default_prompt), seed=0, steps=request["steps"])
    settled = largest = frames = 0
    while frames < request["frames"]:
        for frame in stream.step().frames:
            encode_jpeg(frame)
            if frames == 0:
                print("first frame", flush=True)
            frames += 1
        if frames >= SETTLED_FRAMES:
            now = resident_bytes()
            settled = settled or now
            largest = max(largest, now)
    print(json.dumps({"settled": settled, "largest": largest, "peak": peak_bytes()}), flush=True)
    os._exit(0)  # interpreter shutdown is nobody's measurement


if __name__ == "__main__":
    main()
