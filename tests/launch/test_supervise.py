"""The supervisor: what it restarts, when it gives up, and that nothing that it started outlives it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import CHECKOUT, command, losses, pretrain

from pipeline.supervisor.stop import end_ranks, ranks
from pipeline.supervisor.supervise import reached

SUPERVISE = [sys.executable, str(CHECKOUT / "scripts" / "launch" / "supervise.py"), "--pause", "0.01"]


def supervise(run: Path, script: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """Supervise a launcher that is a shell script, with the run's folder as $run."""
    launcher = ["bash", "-c", script, "launcher", f"run.dir={run}"]
    environment = os.environ | {"run": str(run)}
    return subprocess.run(
        [*SUPERVISE, *options, "--", *launcher], capture_output=True, text=True, timeout=120, env=environment
    )


def lives(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in run.glob("lives-*.jsonl") for line in file.read_text().splitlines()]


def wait_until(happened: Callable[[], object], process: "subprocess.Popen[Any]") -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_it_gives_up_where_the_run_gets_no_further(tmp_path: Path) -> None:
    """A checkpoint in the first attempt, a logged step in the second, and no progress: three failures at step 7."""
    script = """
        echo >> $run/starts
        case $(wc -l < $run/starts) in
          1) mkdir -p $run/checkpoints/step-00000005 $run/checkpoints/.step-00000009 ;;
          2) echo '{"step": 6}' > $run/metrics.jsonl; printf '{"step": 7}\n{"st' >> $run/metrics.jsonl ;;
        esac
        exit 3
    """
    done = supervise(tmp_path, script, "--tries", "3")
    assert done.returncode == 1
    assert [(life["status"], life["step"]) for life in lives(tmp_path)] == [(3, 5), (3, 7), (3, 7), (3, 7)]
    assert "gave up after 3 failures in a row at step 7" in done.stderr


@pytest.mark.parametrize(
    ("statuses", "options", "expected"),
    [
        ([1, 0], [], 0),
        ([2], [], 2),
        ([75], [], 75),
        ([75, 75, 0], ["--requeue", "--tries", "1"], 0),
        ([1], ["--tries", "1"], 1),
    ],
)
def test_statuses(tmp_path: Path, statuses: list[int], options: list[str], expected: int) -> None:
    """Check the launcher's statuses, attempt by attempt, and the supervisor's own."""
    array = " ".join(map(str, statuses))
    script = f"statuses=({array}); echo >> $run/starts; status=${{statuses[$(wc -l < $run/starts) - 1]}}"
    script += "; [ $status != 0 ] || touch $run/complete; exit $status"
    assert supervise(tmp_path, script, *options).returncode == expected
    assert [life["status"] for life in lives(tmp_path)] == statuses


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("exit 3", "status 3"),
        ("exit 137", "status 137: a rank was ended by SIGKILL"),  # of srun
        ("exit 250", "status 250: a rank was ended by SIGABRT"),  # of deepspeed
        ("kill -SEGV $$", "killed by SIGSEGV"),
    ],
)
def test_the_signal_that_ended_a_rank_is_named(tmp_path: Path, end: str, why: str) -> None:
    supervise(tmp_path, end, "--tries", "1")
    assert [life["why"] for life in lives(tmp_path)] == [f"failed with {why}"]


def test_a_launcher_that_ends_before_its_ranks_has_failed(tmp_path: Path) -> None:
    """This holds even with status 0. The rank, which ignores SIGTERM, is gone before the next attempt begins."""
    rank = tmp_path / "train.py"
    rank.write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(300)\n"
    )
    script = f"""
        if [ -e $run/ready ]; then
          grep -q run.dir /proc/$(cat $run/rank)/cmdline && exit 2
          touch $run/complete
          exit 0
        fi
        setsid {sys.executable} {rank} $run/ready run.dir=$run & echo $! > $run/rank
        until [ -e $run/ready ]; do :; done
    """
    done = supervise(tmp_path, script, "--grace", "0.5")
    assert done.returncode == 0, done.stderr
    assert [life["why"] for life in lives(tmp_path)] == ["the launcher ended before 1 of its ranks", "complete"]


def test_status_0_of_a_run_that_is_not_complete_is_a_failure(tmp_path: Path) -> None:
    """`deepspeed` returns it when its processes were killed. Files of an earlier run do not count."""
    (tmp_path / "complete").touch()
    done = supervise(tmp_path, "exit 0", "--tries", "1")
    assert done.returncode == 1
    assert [life["why"] for life in lives(tmp_path)] == [
        "the launcher ended with status 0, but the run is not marked as complete"
    ]


def test_nodes_that_do_not_answer_are_left_out(tmp_path: Path) -> None:
    """Three nodes answer the probe, then two, then one, which is too few. No name under .invalid exists for ssh."""
    names = ["a.invalid", "b.invalid", "c.invalid"]
    (tmp_path / "hosts").write_text("# name slots\n" + "".join(f"{name} slots=8\n" for name in names))
    for name in names:
        (tmp_path / name).touch()
    run, launcher = tmp_path / "run", tmp_path / "deepspeed"
    launcher.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/commands\ncat $2 >>{tmp_path}/used\n'
        f"cd {tmp_path} && rm $(ls *.invalid | tail -n 1)\nexit 1\n"
    )
    launcher.chmod(0o755)
    options = ["--hostfile", str(tmp_path / "hosts"), "--min-nodes", "2", "--probe", f"test -e {tmp_path}/{{host}}"]
    command = [*SUPERVISE, *options, "--tries", "3", "--", str(launcher), "--quiet", "x.py", f"run.dir={run}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert [life["hosts"] for life in lives(run)] == [names, names[:2], names[:1]]
    assert lives(run)[2]["why"] == "only 1 of 3 nodes answer, 2 are needed" and lives(run)[2]["status"] is None
    assert (tmp_path / "used").read_text().split()[::2] == names + names[:2]
    expected = f"--hostfile {run}/hosts --force_multi --quiet x.py run.dir={run}"
    assert (tmp_path / "commands").read_text().splitlines() == [expected, expected]


def test_a_run_has_one_supervisor(tmp_path: Path) -> None:
    launcher = ["bash", "-c", f"touch {tmp_path}/started; sleep 300", "launcher", f"run.dir={tmp_path}"]
    first = subprocess.Popen([*SUPERVISE, "--", *launcher], stderr=subprocess.DEVNULL)
    try:
        wait_until((tmp_path / "started").exists, first)
        second = supervise(tmp_path, "exit 0")
        assert second.returncode == 2 and f"another supervisor on this node keeps {tmp_path} going" in second.stderr
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 75
    finally:
        first.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deepspeed", "x.py"], "the command has no run.dir=RUN"),
        (["--hostfile", "hosts", "--", "torchrun", "x.py", "run.dir=runs/x"], "begin the command with that"),
        (["--hostfile", "nowhere", "--", "deepspeed", "x.py", "run.dir=runs/x"], "nowhere: No such file"),
        ([], "the following arguments are required: command"),
        (["--nonsense"], "the following arguments are required: command"),
        (["deepspeed", "x.py", "run.dir="], "the command has no run.dir=RUN"),
        (["--tries", "0", "--", "true", "run.dir=runs/x"], "--tries 0: the first start is one: give 1 or more"),
        (["--pause", "nan", "--", "true", "run.dir=runs/x"], "argument --pause: invalid seconds value: 'nan'"),
        (["--grace", "-1", "--", "true", "run.dir=runs/x"], "argument --grace: invalid seconds value: '-1'"),
        (["--min-nodes", "2", "--", "true", "run.dir=runs/x"], "--min-nodes is for the nodes of a host file"),
        (["--hostfile", "h", "--", "deepspeed", "-H", "h", "run.dir=x"], "without a --hostfile of its own"),
        (["--hostfile", "h", "--", "deepspeed", "--hostfile=h", "run.dir=x"], "without a --hostfile of its own"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run([*SUPERVISE, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.startswith("supervise.py: error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-nodes", "3"], "--min-nodes 3: the host file has 2: give 1 to 2"),
        (["--min-nodes", "0"], "--min-nodes 0: the host file has 2: give 1 to 2"),
        (["--probe", "ssh 'x"], "--probe ssh 'x: No closing quotation: quote it as in a shell"),
        (["--probe", " "], "--probe is empty"),
    ],
)
def test_mistakes_about_nodes(options: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\n")
    command = [*SUPERVISE, "--hostfile", "hosts", *options, "--", "deepspeed", "x.py", "run.dir=run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"supervise.py: error: {message}")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_run_dir_that_is_none_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = supervise(tmp_path / "file" / "run", "exit 0")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == (
        f"supervise: run.dir: {tmp_path}/file/run: Not a directory: name a folder that you may write to\n"
    )


def test_a_home_is_the_run_dirs_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    done = supervise(Path("~/runs/a"), "exit 75")
    assert done.returncode == 75
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert [life["status"] for life in lives(tmp_path / "runs" / "a")] == [75]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b'{"step": 6}\n{"step": 7}\n', 7),
        (b'{"step": 6}\n{"st', 6),
        (b'{"step": 6}\n5\n', 6),
        (b'{"step": 6}\nnull\n', 6),
        (b'{"step": 6}\n[1]\n', 6),
        (b'{"step": 6}\n{"a": 1}\n', 6),
        (b'{"step": 6}\n{"step": "9"}\n', 6),
        (b'{"step": 6}\n{"step": 1e999}\n', 6),
        (b'{"step": 6}\n\xff\xfe\n', 6),
        (b'{"step": 6}\n' + b"[" * 100_000, 6),
        (b"", 4),
    ],
)
def test_odd_logs_and_folders_are_no_progress(lines: bytes, expected: int, tmp_path: Path) -> None:
    for name in ("step-00000004", "step-old9", "step--9", "step-9x", ".step-00000009", "step-" + "9" * 200):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_bytes(lines)
    assert reached(tmp_path) == expected


def test_a_killed_rank_and_a_signal_cost_nothing(shards: Path, tmp_path: Path) -> None:
    """Under the supervisor, a rank is killed, and the run continues; then the supervisor is asked to stop."""
    run = tmp_path / "run"
    launcher = command(shards, run, "run.save_every=4", "optim.epochs=2000")
    launcher["args"] = [*SUPERVISE, "--", *launcher["args"]]
    supervisor = subprocess.Popen(**launcher, stderr=subprocess.DEVNULL)
    try:
        wait_until((run / "checkpoints" / "step-00000004").exists, supervisor)
        os.kill(ranks(run)[-1], signal.SIGKILL)
        wait_until(lambda: lives(run) and reached(run) > lives(run)[0]["step"] + 5, supervisor)
        supervisor.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert supervisor.wait(60) == 75 and time.monotonic() - asked < 50
        assert not ranks(run)
    finally:
        supervisor.kill()
        end_ranks(run, 0)
    assert [life["status"] for life in lives(run)][1:] == [75]
    stopped = reached(run)
    assert (run / "checkpoints" / f"step-{stopped:08d}" / "files.json").exists()
    pretrain(shards, tmp_path / "undisturbed", "optim.epochs=2000", f"run.max_steps={stopped}")
    assert list(losses(run)) == list(range(1, stopped + 1))
    assert list(losses(run).values()) == pytest.approx(list(losses(tmp_path / "undisturbed").values()), abs=1e-5)


def test_ranks_end_with_their_launcher(shards: Path, tmp_path: Path) -> None:
    """After SIGTERM to a plain `deepspeed`, which does not pass it on, the ranks and their parent save and exit."""
    run = tmp_path / "run"
    launcher = subprocess.Popen(**command(shards, run, "optim.epochs=2000"), stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: reached(run) >= 3, launcher)
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(10)
        asked = time.monotonic()
        while ranks(run):
            assert time.monotonic() - asked < 50
            time.sleep(0.02)
    finally:
        end_ranks(run, 0)
    assert (run / "checkpoints" / f"step-{reached(run):08d}" / "files.json").exists()
