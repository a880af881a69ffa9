"""The batch script under a real SLURM: one slurmctld and two slurmd on this machine."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from launching import CHECKOUT, SMALL, free_port, losses, pretrain

DAEMONS = ("munged", "slurmctld", "slurmd")
TOOLS = ("sbatch", "srun", "scontrol", "scancel")
SEARCH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"


def _missing() -> str:
    absent = [tool for tool in (*DAEMONS, *TOOLS) if not shutil.which(tool, path=SEARCH)]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "slurmd needs root"


pytestmark = pytest.mark.skipif(bool(_missing()), reason=_missing())


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands find a cluster of two nodes with a core each."""
    folder = tmp_path / "slurm"
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir(parents=True)
    key = folder / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    ports = [free_port() for _ in range(3)]
    node = f"NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN"
    (folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={socket.gethostname()}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_min_interval=100000
NodeName=n1 {node} Port={ports[1]}
NodeName=n2 {node} Port={ports[2]}
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
""")
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        environment.pop(name, None)
    munge = ["--key-file", "--socket", "--pid-file", "--log-file", "--seed-file"]
    files = [f"{folder}/{name}" for name in ("key", "munge.socket", "munge.pid", "munge.log", "munge.seed")]
    options = [f"{option}={file}" for option, file in zip(munge, files, strict=True)]
    commands = [
        ["munged", "--foreground", "--force", *options],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", name] for name in ("n1", "n2")),
    ]
    daemons = []
    try:
        for command in commands:
            with (folder / f"{len(daemons)}.log").open("w") as log:
                path = [shutil.which(command[0], path=SEARCH) or "", *command[1:]]
                daemons.append(subprocess.Popen(path, env=environment, stdout=log, stderr=log))
            if command[0] == "munged":
                wait_until((folder / "munge.socket").exists)
        wait_until(lambda: ask(environment, "sinfo", "-h", "-o", "%T %D").strip() == "idle 2")
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            daemon.wait(60)


def test_a_job_saves_and_goes_back_to_the_queue(slurm: dict[str, str], shards: Path, tmp_path: Path) -> None:
    """Two tasks on two nodes; the batch script gets the signal that --signal=B:USR1@120 has SLURM send it."""
    run, output = tmp_path / "run", tmp_path / "output"
    options = ["--nodes", "2", "--ntasks-per-node", "1", "--output", str(output)]
    settings = [*SMALL, f"data.shards={shards}", f"run.dir={run}", "optim.epochs=2000"]
    submitted = ask(slurm, "sbatch", *options, "scripts/launch/pretrain.sbatch", "demo", *settings)
    job = re.findall(r"\d+", submitted)[0]
    try:
        wait_until(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) >= 5)
        ask(slurm, "scancel", "--batch", "--signal", "USR1", job)
        wait_until(lambda: "Restarts=1" in ask(slurm, "scontrol", "show", "job", job))
    finally:
        ask(slurm, "scancel", job)
        wait_until(lambda: ask(slurm, "sinfo", "-h", "-o", "%T %D").strip() == "idle 2")
    assert "2 ranks x" in output.read_text() and "stopped, as asked" in output.read_text()
    observed = losses(run)
    last = len(observed)
    assert (run / "checkpoints" / f"step-{last:08d}" / "files.json").exists()
    pretrain(shards, tmp_path / "one", "optim.epochs=2000", f"run.max_steps={last}")
    assert list(observed) == list(range(1, last + 1))
    np.testing.assert_allclose(list(observed.values()), list(losses(tmp_path / "one").values()), atol=1e-5, rtol=0)


def ask(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=60).stdout


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)
