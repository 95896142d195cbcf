"""Run as a script: `fewstep stream` on the synthetic model, with the arguments given."""

import os
import sys
from pathlib import Path

from fewstep.apps import cli, stream
from fewstep.streaming.engine_process import ModelSource


def main() -> int:
    # The engine's process finds the synthetic model on its path.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent / "streaming")
    arguments = (12.0, 0.05)
    stream.model_source = lambda args: ModelSource(
        module="synthetic", function="SyntheticModel", arguments=arguments
    )
    return cli.main(["stream", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
