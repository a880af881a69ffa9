"""The real processes that count as ranks of a run, and others that are left alone."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from launching import CHECKOUT

from pipeline.supervisor.stop import ranks, run_dir

PYTHON = sys.executable
STOP = [PYTHON, str(CHECKOUT / "scripts" / "launch" / "stop.py")]

# Commands in a folder of scripts that wait; {run} is the run's folder
RANKS = [
    "{python} pretrain.py demo run.dir={run}",
    "{python} -u -B ./pretrain.py --local_rank=0 demo run.dir={run}",
    "{python} finetune.py small run.dir={run}",
    "{python} mine.py run.dir={run}",
    "{python} -X dev pretrain.py run.dir={run}",
    "{python} -Xdev pretrain.py run.dir={run}",
    "{python} -uX dev pretrain.py run.dir={run}",
    "{python} -W ignore pretrain.py run.dir={run}",
    "{python} -W ignore -X faulthandler -u pretrain.py run.dir={run}",
    "{python} -uBWignore pretrain.py run.dir={run}",
    "{python} --check-hash-based-pycs always pretrain.py run.dir={run}",
    "{python} -- pretrain.py run.dir={run}",
    "{python} -m jobs.pretrain run.dir={run}",
    "{python} -u rank.py pretrain demo run.dir={run}",
    "{python} rank.py finetune small run.dir={run}",
    "./python pretrain.py run.dir={run}",
    "env A=b nice -n 1 {python} pretrain.py run.dir={run}",
    "bash -c 'exec -a rank0 \"$@\"' - {python} pretrain.py run.dir={run}",
    "{python} forks.py run.dir={run}",
    # The same folder, said otherwise
    "{python} pretrain.py run.dir=runs/a",
    "{python} pretrain.py run.dir=./runs//a/",
    "{python} pretrain.py run.dir=runs/b/../a",
    "{python} pretrain.py run.dir=runs/link",
    "{python} pretrain.py run.dir=~/runs/a",
    "{python} pretrain.py 'run.dir = runs/a'",
    "{python} pretrain.py 'run.dir=\"runs/a\"'",
    "{python} pretrain.py run.dir=elsewhere run.dir={run}",
]
OTHERS = [
    "{python} doctor.py demo run.dir={run}",
    "{python} -X dev doctor.py demo run.dir={run}",
    "{python} estimate.py demo run.dir={run}",
    "{python} probe.py runs/a run.dir={run}",
    "{python} -u rank.py probe runs/a run.dir={run}",
    "{python} maskfeat pretrain demo run.dir={run}",
    "{python} supervise.py -- deepspeed pretrain.py run.dir={run}",
    "{python} -m launcher.launch pretrain.py run.dir={run}",
    "{python} -u -m launcher.launch --node_rank=0 pretrain.py --local_rank=0 run.dir={run}",
    "{python} -c 'import time; time.sleep(60)' pretrain.py run.dir={run}",
    "{python} -X dev -c 'import time; time.sleep(60)' pretrain.py run.dir={run}",
    "{python} deepspeed pretrain.py run.dir={run}",
    "./vim pretrain.py run.dir={run}",
    "./vim python pretrain.py run.dir={run}",
    "bash -c 'sleep 60; true' python pretrain.py run.dir={run}",
    "{python} pretrain.py run.dir={run}x",
    "{python} pretrain.py run.dir={run}/..",
    "{python} pretrain.py run.dir={run} run.dir=elsewhere",
    "{python} pretrain.py data.run.dir={run}",
    "{python} pretrain.py {run}",
    "{python} pretrain.py run.dir=",
    "{python} pretrain.py run.dir=~nobody-of-that-name/runs/a",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the commands run, which is also a home and has a space in its path."""
    folder = tmp_path_factory.mktemp("my folder")
    for name in ("pretrain", "finetune", "mine", "doctor", "estimate", "probe", "rank", "supervise"):
        (folder / f"{name}.py").write_text("import time\ntime.sleep(60)\n")
    for module in ("jobs/pretrain.py", "launcher/launch.py", "deepspeed"):
        (folder / module).parent.mkdir(exist_ok=True)
        (folder / module).write_text("import time\ntime.sleep(60)\n")
    (folder / "forks.py").write_text("import os, time\nos.fork()\ntime.sleep(60)\n")
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "runs" / "b").mkdir()
    (folder / "runs" / "link").symlink_to("a")
    (folder / "python").symlink_to(PYTHON)
    (folder / "vim").write_text("#!/bin/sh\nsleep 60; true\n")  # no Python, whatever it edits
    (folder / "vim").chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)


@contextmanager
def started(commands: list[str]) -> Iterator[dict[int, str]]:
    """The commands by the process ids of what they start, here."""
    processes = {}
    run = Path("runs", "a").resolve()
    with ExitStack() as ending:
        for command in commands:
            arguments = [part.format(python=PYTHON, run=run) for part in shlex.split(command)]
            process = subprocess.Popen(arguments, start_new_session=True)  # returns when it runs them
            ending.callback(process.wait)
            ending.callback(os.killpg, process.pid, signal.SIGKILL)
            processes[process.pid] = command
        yield processes


def test_ranks_are_found_however_they_were_started() -> None:
    with started(RANKS) as processes:
        deadline = time.monotonic() + 30
        while (found := set(ranks(Path("runs/a")))) != set(processes) and time.monotonic() < deadline:
            time.sleep(0.1)  # `env` and others become Python
        assert [processes[process] for process in set(processes) - found] == []
        assert found == set(processes)
        assert set(ranks(Path("runs/link"))) == found and not ranks(Path("runs/b"))


def test_others_are_left_alone() -> None:
    with started(OTHERS) as processes:
        time.sleep(0.5)
        assert [processes[process] for process in ranks(Path("runs/a"))] == []


def test_a_folder_whose_name_is_not_unicode(folder: Path) -> None:
    name = os.fsdecode(b"runs/\xff\xfe")
    with started([shlex.join([PYTHON, "pretrain.py", f"run.dir={name}"])]) as processes:
        done = subprocess.run([*STOP, name, "--end", "0"], capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.returncode) == ("1\n", 0), processes


def test_links_in_a_circle_name_no_run(folder: Path) -> None:
    (folder / "circle").symlink_to("circle")
    with started(["{python} pretrain.py run.dir=circle/x"]):
        assert ranks(folder / "runs" / "a") == []
    (folder / "circle").unlink()


def test_run_dir_is_read_as_recipes_read_it(folder: Path) -> None:
    runs = folder / "runs"
    for arguments, expected in {
        ("run.dir=runs/a",): runs / "a",
        ("x", "run.dir=runs/try #1", "y"): runs / "try #1",
        ("run.dir=runs/a=b",): runs / "a=b",
        ("run.dir=2024-05-01",): folder / "2024-05-01",
        ("run.dir=~/runs/a",): runs / "a",
        (f"run.dir={runs}/x/../a/",): runs / "a",
        ("run.dir=no", "run.dir='runs/a b'"): runs / "a b",
        ("run.dir=runs/a", "run.dir="): None,
        ("xrun.dir=runs/a", "rundir=a", "run.dir"): None,
        (): None,
    }.items():
        assert run_dir(arguments, folder) == expected, arguments


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "the following arguments are required: run"),
        (["runs/a"], "one of the arguments --signal --end is required"),
        (["runs/a", "--end", "-1"], "argument --end: invalid seconds value: '-1'"),
        (["runs/a", "--end", "nan"], "argument --end: invalid seconds value: 'nan'"),
        (["runs/a", "--end", "soon"], "argument --end: invalid seconds value: 'soon'"),
        (
            ["runs/a", "--signal", "KILL"],
            "argument --signal: invalid choice: 'KILL'",
        ),
    ],
)
def test_mistakes(arguments: list[str], why: str) -> None:
    done = subprocess.run([*STOP, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"stop.py: error: {why}") and done.stderr.count("\n") == 1
