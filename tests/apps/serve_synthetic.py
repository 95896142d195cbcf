"""Run as a script: `fewstep stream` on the synthetic model, with the arguments given."""

import importlib.util
import sys
from pathlib import Path

from fewstep.apps import cli, stream


def main() -> int:
    path = Path(__file__).parent.parent / "streaming" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("synthetic", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["synthetic"] = module
    spec.loader.exec_module(module)
    model = module.SyntheticModel(fps=12.0, chunk_seconds=0.2)
    stream.load_model = lambda name, device: model
    return cli.main(["stream", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
