"""A run that is asked to stop saves at once, says so, and resumes as if undisturbed."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from launching import command, launch, losses, start, trace

from pipeline.checkpoints.checkpoint import newest
from pipeline.cluster.preemption import SIGNALS, Preemption
from pipeline.cluster.world import World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def ranks_of(run: Path) -> list[int]:
    """Return the processes that train, without their launchers."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
        except OSError:
            continue
        if f"run.dir={run}" in arguments and not any("deepspeed" in argument for argument in arguments):
            found.append(int(process.name))
    return found


def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on(shards: Path, tmp_path: Path) -> None:
    """Use the real launcher, which starts the same run as `launch`."""
    options = ["optim.epochs=2000", "run.trace_samples=true"]
    run = tmp_path / "run"
    process = subprocess.Popen(
        **command(shards, run, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("\n") < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    ranks = ranks_of(run)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGTERM)
    asked = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - asked < 50
    assert process.returncode == 75 and "as asked; the same command resumes" in output
    assert not ranks_of(run)

    stopped = newest(run / "checkpoints", report=print)
    assert stopped and stopped.facts.step >= 5
    options.append(f"run.max_steps={stopped.facts.step + 10}")
    launch(shards, run, *options)
    launch(shards, tmp_path / "whole", *options)
    assert losses(run) == losses(tmp_path / "whole")
    for rank in (0, 1):
        assert trace(run, rank) == trace(tmp_path / "whole", rank)
    ended, undisturbed = (newest(folder / "checkpoints", report=print) for folder in (run, tmp_path / "whole"))
    assert ended and undisturbed and ended.facts.step == undisturbed.facts.step
    for name, value in undisturbed.weights().items():
        assert torch.equal(ended.weights()[name], value), name


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_asks_to_stop(number: signal.Signals) -> None:
    inherited = signal.signal(number, signal.SIG_DFL)  # under nohup the tests inherit that SIGHUP is ignored
    try:
        with Preemption(ALONE) as preemption:
            assert not preemption.agreed()
            signal.raise_signal(number)
            assert preemption.agreed()
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, inherited)


def test_nohup_outlasts_the_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Preemption(ALONE) as preemption:
            signal.raise_signal(signal.SIGHUP)
            assert not preemption.agreed()
            signal.raise_signal(signal.SIGTERM)
            assert preemption.agreed()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_does_not_wait_for_the_step() -> None:
    with Preemption(ALONE), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("numbers", [[signal.SIGHUP], [signal.SIGINT, signal.SIGTERM]])
def test_a_terminal_stops_all_ranks(shards: Path, tmp_path: Path, numbers: list[signal.Signals]) -> None:
    """Closed, or by Ctrl-C, upon which the launcher also sends SIGTERM to its ranks."""
    run = tmp_path / "run"
    ranks = start(shards, run, "optim.epochs=2000")
    ranks.until((run / "metrics.jsonl").exists)
    for number in numbers:
        for rank in (0, 1):
            ranks.signal(rank, number)
    assert ranks.wait(60) == [75, 75]
    assert "as asked; the same command resumes" in ranks.said() and "Traceback" not in ranks.said()
    stopped = newest(run / "checkpoints", report=print)
    assert stopped and stopped.facts.step == max(losses(run))
