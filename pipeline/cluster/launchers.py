"""Read a process's ranks from its launcher's environment, and watch for the launcher's end."""

import argparse
import os
import re
import select
import signal
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

CHECK_USAGE = "--check-usage"  # a command with this option only checks its arguments


def place(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return rank and local rank of this process, which are known before it joins the others."""
    rank = environment.get("RANK") or environment.get("SLURM_PROCID") or 0
    return int(rank), int(environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID") or 0)


def slurm_place(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the ranks of a task that srun started, under the names of DeepSpeed's launcher and torchrun.

    Rank 0 is on the first node of the step's list; its port is computed from job and step, so that all tasks know it.
    An address or a port that is already in the environment is kept.
    """
    nodes = environment["SLURM_STEP_NODELIST"]  # "gpu[003-010,12],other", or "gpu003"
    first = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodes)
    assert first, nodes
    tasks = [  # tasks of each node, from "8(x3),4"
        int(count)
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"])
        for _ in range(int(times or 1))
    ]
    port = 20000 + (int(environment["SLURM_JOB_ID"]) * 7 + int(environment["SLURM_STEP_ID"])) % 10000
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks[int(environment["SLURM_NODEID"])]),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or "".join(part or "" for part in first.groups()),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(port),
    }


def launched(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher has started this process: DeepSpeed's, torchrun or srun."""
    return "RANK" in environment or "SLURM_STEP_NUM_TASKS" in environment


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop_with_launcher() -> None:
    """Treat the end of the launcher as a SIGTERM from now on: otherwise nothing would end this process.

    The launcher is the parent. DeepSpeed's launcher has a parent that matters as well: on one node the `deepspeed`
    command, which dies of a signal without passing it on; on others the ssh connection that the command holds.
    """
    launchers = [os.getppid()]
    with suppress(OSError):
        process = Path(f"/proc/{launchers[0]}")
        if b"deepspeed.launcher.launch" in (process / "cmdline").read_bytes().split(b"\0"):
            launchers.append(int((process / "stat").read_text().rpartition(")")[2].split()[1]))
    with suppress(OSError):  # Linux before 5.3, or a parent outside this container, cannot be watched
        ends = [os.pidfd_open(launcher) for launcher in launchers]
        threading.Thread(target=_await_end, args=[ends], daemon=True).start()


def _await_end(processes: list[int]) -> None:
    select.select(processes, [], [])
    os.kill(os.getpid(), signal.SIGTERM)


def accept_local_rank(parser: argparse.ArgumentParser) -> None:
    """Accept the option that the deepspeed launcher gives every process. `place` reads the environment instead."""
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def accept_usage_check(parser: argparse.ArgumentParser) -> None:
    """Accept the option by which `maskfeat` checks a command's arguments before it starts several processes."""
    parser.add_argument(CHECK_USAGE, action="store_true", help=argparse.SUPPRESS)
