"""Real clusters on this machine, for the long tests: each has its daemons, in a folder of its own, on loopback."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_SBIN = "/usr/sbin:/sbin:/usr/local/sbin"
_PATIENCE = 60.0
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={here}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={here}/state
SlurmdSpoolDir={here}/spool
SlurmctldPidFile={here}/slurmctld.pid
SlurmdPidFile={here}/slurmd.pid
SlurmctldLogFile={here}/slurmctld.log
SlurmdLogFile={here}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SwitchType=switch/none
KillWait=20
SchedulerParameters=sched_interval=2,batch_sched_delay=0,requeue_delay=0
SlurmctldTimeout=300
SlurmdTimeout=300
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_no_slurm() -> str:
    """The reason for which no Slurm can be started here; empty where one can."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if not _program(name)]
    if missing:
        return f"a real Slurm needs {', '.join(missing)} (Debian: slurm-wlm and munge)"
    return "" if os.geteuid() == 0 else "a real Slurm is started by root"


@contextlib.contextmanager
def slurm(cpus: int = 2) -> Iterator[dict[str, str]]:
    """A Slurm of one node; what a process needs in its environment to use it."""
    here = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: the path of a socket has a limit
    here.chmod(0o755)
    (here / "state").mkdir()
    (here / "spool").mkdir()
    key = here / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    environment = {"SLURM_CONF": str(here / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{_SBIN}"}
    host = socket.gethostname().partition(".")[0]
    (here / "slurm.conf").write_text(
        _CONFIGURATION.format(host=host, user="root", here=here, ports=_free_ports(2), cpus=cpus)
    )
    daemons: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, here, ignore_errors=True)
        stack.callback(_end, daemons)
        names = [f"--{kind}-file={here}/munge.{end}" for kind, end in (("key", "key"), ("pid", "pid"), ("log", "log"))]
        names += [f"--socket={here}/munge.socket", f"--seed-file={here}/munge.seed", "--num-threads=2", "--force"]
        for command in (["munged", "-F", *names], ["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", host]):
            with (here / f"{command[0]}.out").open("wb") as out:
                daemons.append(
                    subprocess.Popen(
                        [_program(command[0]) or command[0], *command[1:]],
                        env={**os.environ, **environment},
                        stdout=out,
                        stderr=out,
                        start_new_session=True,
                        preexec_fn=_end_with_us,
                    )
                )
            if command[0] == "munged":
                _until(lambda: (here / "munge.socket").exists(), here)
        _until(lambda: "idle" in _said(["sinfo", "-h", "-o", "%T"], environment), here)
        yield environment
        _said(["scancel", "--user", "root"], environment)
        with contextlib.suppress(AssertionError):
            _until(lambda: not _said(["squeue", "-h"], environment).strip(), here)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def _said(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout


def _until(there: object, here: Path) -> None:
    assert callable(there)
    deadline = time.monotonic() + _PATIENCE
    while not there():
        if time.monotonic() > deadline:
            logs = [f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(here.glob("*.[lo][ou][gt]"))]
            raise AssertionError("\n".join(["Slurm did not start", *logs]))
        time.sleep(0.2)


def _end_with_us() -> None:
    """In a daemon about to start: it ends when the tests do, even where those are killed."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM, 0, 0, 0)


def _end(daemons: list[subprocess.Popen[bytes]]) -> None:
    for process in reversed(daemons):
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in found]
