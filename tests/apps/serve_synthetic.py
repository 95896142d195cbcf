"""Run as a script: `fewstep stream` on the synthetic model, with the arguments given."""

import json
import os
import sys
from pathlib import Path

from fewstep.apps import cli, replicas, stream
from fewstep.streaming.engine_process import ModelSource


def main() -> int:
    # The engine's process finds the synthetic model on its path.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent / "streaming")
    # What a test wants otherwise: seconds per chunk, and constants of the command.
    wanted = json.loads(os.environ.get("FEWSTEP_TEST", "{}"))
    chunk_seconds = wanted.pop("chunk_seconds", 0.05)
    for name, value in wanted.items():
        setattr(stream, name, value)
    stream.model_source = lambda args: ModelSource(
        module="synthetic", function="logged", arguments=(args.log_level, args.log_json, 12.0, chunk_seconds)
    )
    replicas.COMMAND = (sys.executable, "-P", __file__)
    given = sys.argv[1:]
    return cli.main(given if given[:1] == ["stream"] else ["stream", *given])


if __name__ == "__main__":
    sys.exit(main())
