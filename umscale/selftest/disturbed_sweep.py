"""The sweep that the crash test disturbs: what ``umscale sweep`` does, without its display."""

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from umscale.errors import UserError
from umscale.execute import executor
from umscale.execute.local import LocalExecutor, Process
from umscale.selftest import fork_server


class ForkedExecutor(LocalExecutor):
    """Has its workers forked by the fork server at ``address``."""

    address: Path

    def _launch(self, command: Sequence[str], environment: Mapping[str, str], errors: IO[str]) -> Process:
        module, *arguments = command[command.index("-m") + 1 :]
        return fork_server.spawn(self.address, module, arguments, environment, errors, hear=True)


def main(arguments: list[str]) -> int:
    """Run the sweep STORE STUDY WORKERS ADDRESS to its end; returns the exit code."""
    from umscale.design.study import expand, load_study
    from umscale.execute.workload import make_plan
    from umscale.store.store import Store

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    root, study_file, workers, address = arguments
    signal.signal(signal.SIGTERM, stop)
    executor.DEATHS_PER_RUN = sys.maxsize  # it is the test that kills, not the run
    executor.WATCH_SECONDS = 0.5
    try:
        study = load_study(study_file)
        store = Store.create(root)
        for message in store.repair():
            print(message, file=sys.stderr, flush=True)
        cells = expand(study, "float32")
        store.write_design(study, cells)
        crew = ForkedExecutor(store, make_plan(study.name, cells), int(workers), device="cpu")
        crew.address = Path(address)
        with crew as running:
            running.run(lambda worker, event: None)
    except UserError as error:
        print(f"umscale: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0
