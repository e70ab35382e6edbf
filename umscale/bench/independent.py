"""The peer of a sweep, ``python -m umscale.bench.independent FILE``: trains runs in turn and keeps nothing."""

import json
import sys
import tempfile
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Train the runs that a JSON file lists, with one thread."""
    import torch

    from umscale.data.corpus import open_corpus
    from umscale.machine import keep_freed_memory
    from umscale.spec import RunSpec, from_dict
    from umscale.training.run import Run

    torch.set_num_threads(1)
    keep_freed_memory()
    for tree in json.loads(Path(arguments[0]).read_text(encoding="utf-8")):
        run = from_dict(RunSpec, tree)
        with tempfile.TemporaryDirectory() as folder:
            training = Run(run, open_corpus(run.data.corpus), Path(folder), torch.device("cpu"))
            training.execute(lambda outcome: None, lambda progress: None, lambda: False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
