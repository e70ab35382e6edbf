"""A real Slurm on this machine: munged, slurmctld and slurmd on loopback, with all their files in one folder.

Needs the daemons (Debian: ``apt-get install --no-install-recommends slurmctld slurmd slurm-client munge``), no
configuration, no accounting database, and no rights beyond the user's own:

    python tests/execute/slurm_cluster.py FOLDER

prints the SLURM_CONF to export and keeps the cluster running until its standard input ends, or Ctrl-C.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
PARTITION = "main"


def missing() -> list[str]:
    """Return which of Slurm's programs are not installed."""
    return [name for name in DAEMONS if shutil.which(name, path=_path()) is None]


@contextlib.contextmanager
def slurm_cluster(folder: Path, cpus: int = 4) -> Iterator[dict[str, str]]:
    """Run a cluster of one node; yield what Slurm's commands need in their environment.

    Raises:
        RuntimeError: it does not come up; with the end of the daemons' logs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    _write_configuration(folder, cpus)
    commands = {
        "munged": [
            "munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed", "--num-threads=2",
        ],
        "slurmctld": ["slurmctld", "-D", "-c"],
        "slurmd": ["slurmd", "-D", "-N", "node0"],
    }  # fmt: skip
    daemons = []
    try:
        for name, command in commands.items():
            with (folder / f"{name}.out").open("wb") as log:
                daemons.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
            if name == "munged":
                _wait((folder / "munge.socket").exists, folder, daemons)
        _wait(lambda: "idle" in _output(["sinfo", "-h", "-o", "%T"], environment), folder, daemons)
        yield environment
    finally:
        _output(["scancel", f"--user={getpass.getuser()}", "--full", "--signal=KILL"], environment)
        _output(["scancel", f"--user={getpass.getuser()}"], environment)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()


def _write_configuration(folder: Path, cpus: int) -> None:
    user = getpass.getuser()
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir(exist_ok=True)
    version = _output(["slurmd", "-V"], os.environ | {"PATH": _path()}).split()[-1]
    if tuple(map(int, version.split(".")[:2])) >= (
        23,
        2,
    ):  # earlier ones need no cgroups, later ones ask for them
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    (folder / "slurm.conf").write_text(f"""
ClusterName=loopback
SlurmctldHost={socket.gethostname()}(127.0.0.1)
SlurmctldPort={_free_port()}
SlurmdPort={_free_port()}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=20
NodeName=node0 NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName={PARTITION} Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _output(command: list[str], environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=20, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout


def _wait(ready, folder: Path, daemons: list[subprocess.Popen[bytes]], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
            logs = "\n".join(
                f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(folder.glob("*.out"))
            )
            raise RuntimeError(f"Slurm did not come up:\n{logs}")
        time.sleep(0.2)


if __name__ == "__main__":
    if absent := missing():
        sys.exit(f"not installed: {', '.join(absent)}")
    with contextlib.suppress(KeyboardInterrupt), slurm_cluster(Path(sys.argv[1]).absolute()) as found:
        print(f"export SLURM_CONF={found['SLURM_CONF']}", flush=True)
        sys.stdin.read()
