"""What decides the pixels of a recording, written beside it line by line, so that a crash loses none of it.

Each line is a JSON object: `begin` first, then a `cue` or a `take` before the frames it holds for.
"""

import fcntl
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Journal:
    """Appends lines and hands each to the system at once: only a power cut could lose one.

    The file stays locked while it is open, so that nobody takes it for what a crash left.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def add(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def locked(path: Path) -> bool:
    """Whether somebody has this journal open."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def begin_line(metadata: Mapping[str, Any], *, script: Mapping[str, Any], first_chunk: int) -> Line:
    """`script` is the take so far; the recording's first frame is that of chunk `first_chunk`."""
    return {"kind": "begin", "metadata": dict(metadata), "script": dict(script), "first_chunk": first_chunk}


def cue_line(chunk: int, prompt: str) -> Line:
    """From this chunk of the take on the prompt holds."""
    return {"kind": "cue", "chunk": chunk, "prompt": prompt}


def take_line(frames: int, *, seed: int, steps: int, sink: str, prompt: str) -> Line:
    """A new take begins after this many recorded frames."""
    return {"kind": "take", "frames": frames, "seed": seed, "steps": steps, "sink": sink, "prompt": prompt}


def read_journal(path: Path) -> list[Line]:
    """All whole lines; the last one may have been cut off."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def summarise(lines: Sequence[Mapping[str, Any]], *, frames: int) -> dict[str, Any]:
    """The recording's metadata: `takes`, each with its script, first chunk and number of frames.

    Seed, steps, sink and cues of the last take also stand on top, where a script has them.
    """
    begin = lines[0]
    takes = [{**begin["script"], "first_chunk": begin["first_chunk"], "begins": 0}]
    for line in lines[1:]:
        if line["kind"] == "cue":
            takes[-1]["cues"] = [*takes[-1]["cues"], {"chunk": line["chunk"], "prompt": line["prompt"]}]
        else:
            fields = {name: line[name] for name in ("seed", "steps", "sink")}
            cues = [{"chunk": 0, "prompt": line["prompt"]}]
            takes.append({**fields, "cues": cues, "first_chunk": 0, "begins": line["frames"]})
    # A crash may lose the frames that a take's line announced.
    takes = [take for number, take in enumerate(takes) if number == 0 or take["begins"] < frames]
    ends = [*(take["begins"] for take in takes[1:]), frames]
    for take, end in zip(takes, ends, strict=True):
        take["frames"] = end - take.pop("begins")
    top = {name: takes[-1][name] for name in ("seed", "steps", "sink", "cues")}
    return {**begin["metadata"], **top, "takes": takes, "frames": frames}
