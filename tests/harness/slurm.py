"""A SLURM of one node on loopback for tests, without systemd and cgroups, gone afterwards."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
CONFIGURATION = """
ClusterName=fontanel
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={first}
SlurmdPort={second}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
KillWait=10
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=2000 State=UNKNOWN
PartitionName=ci Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def is_installed():
    """Say whether SLURM is here, and may be started: its daemons want to be root."""
    return os.getuid() == 0 and all(shutil.which(name) for name in PROGRAMS)


@contextmanager
def slurm():
    """Start a cluster of this machine alone; SLURM_CONF of this process names it meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="fontanel-slurm-", dir="/tmp"))
    folder.chmod(0o755)  # munged insists
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host, (first, second) = socket.gethostname().partition(".")[0], _free_ports(2)
    text = CONFIGURATION.format(host=host, folder=folder, first=first, second=second, cpus=os.cpu_count())
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        _call(
            *("munged", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"),
            *(
                f"--pid-file={folder}/munged.pid",
                f"--log-file={folder}/munged.log",
                f"--seed-file={folder}/munged.seed",
            ),
        )
        _call("slurmctld", "-f", folder / "slurm.conf", "-c")
        _call("slurmd", "-f", folder / "slurm.conf", "-N", host)
        deadline = time.monotonic() + 30
        while (
            "idle"
            not in subprocess.run(
                ["sinfo", "-h", "-o", "%T"], capture_output=True, encoding="utf-8", check=False
            ).stdout
        ):
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text(encoding="utf-8")[-2000:]
            time.sleep(0.1)
        yield folder
    finally:
        subprocess.run(["scancel", "--full", "--signal=KILL", "--state=RUNNING"], capture_output=True, check=False)
        for name in ("slurmd", "slurmctld", "munged"):
            _end(folder / f"{name}.pid")
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def _call(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, f"{words[0]}: {done.stderr}"


def _said(*words):
    return subprocess.run(words, capture_output=True, encoding="utf-8", check=False).stdout


def _free_ports(number):
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _end(pid_file):
    with suppress(FileNotFoundError, ProcessLookupError, ValueError):
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
