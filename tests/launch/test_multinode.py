"""Two nodes: network namespaces with real sshd, pdsh and launchers. One is killed, left out, and taken back.

On images, and on clips of videos.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import SMALL, assert_same_weights, free_port, launch, losses, pretrain
from nodes import Node, missing, two_nodes
from ranks import Ranks

from pipeline.checkpoints.checkpoint import newest
from pipeline.supervisor.stop import ranks
from pipeline.supervisor.supervise import reached

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

BINARIES = Path(sys.executable).parent
LONG = "optim.epochs=2000"  # no life reaches the end of it before it is stopped


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    with two_nodes(tmp_path_factory.mktemp("nodes")) as nodes:
        yield nodes


def test_a_killed_node_is_left_out_and_taken_back(nodes: list[Node], shards: Path, tmp_path: Path) -> None:
    """Two nodes, then one, then two again: the losses of one process that nothing disturbed."""
    run = tmp_path / "run"
    (tmp_path / "hosts").write_text("".join(f"{node.name} slots=1\n" for node in nodes))
    supervisor = supervise(nodes[0], shards, run, "run.save_every=4")
    wait_until(lambda: (run / "checkpoints" / "step-00000004").exists(), supervisor)
    nodes[1].kill()
    wait_until(lambda: lives(run) and reached(run) > lives(run)[0]["step"] + 5, supervisor)

    nodes[0].signal(supervisor, signal.SIGTERM)
    asked = time.monotonic()
    assert supervisor.wait(60) == 75
    assert time.monotonic() - asked < 50
    assert not ranks(run)
    stopped = reached(run)
    assert (run / "checkpoints" / f"step-{stopped:08d}" / "files.json").exists()

    nodes[1].start()
    end = f"run.max_steps={stopped + 10}"
    assert supervise(nodes[0], shards, run, end).wait(300) == 0
    both, one = [node.name for node in nodes], [nodes[0].name]
    assert [life["hosts"] for life in lives(run)] == [both, one, both]
    assert [life["status"] for life in lives(run)][1:] == [75, 0]

    pretrain(shards, tmp_path / "undisturbed", LONG, end)
    expected, observed = losses(tmp_path / "undisturbed"), losses(run)
    assert list(observed) == list(expected) == list(range(1, stopped + 11))
    np.testing.assert_allclose(list(observed.values()), list(expected.values()), atol=1e-5, rtol=0)


def test_a_cut_cable(nodes: list[Node], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both nodes give up by themselves, what had started them too; joined again, the run goes on as if nothing was."""
    run = tmp_path / "run"
    (tmp_path / "hosts").write_text("".join(f"{node.name} slots=1\n" for node in nodes))
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-o ServerAliveInterval=3")  # before the supervisor's own 10 s
    supervisor = supervise(nodes[0], shards, run, "run.save_every=4", "run.deadline=10", least=2)
    wait_until(lambda: (run / "checkpoints" / "step-00000004").exists(), supervisor)
    nodes[1].cable("down")
    cut = time.monotonic()
    wait_until(lambda: not processes(run), supervisor)
    assert time.monotonic() - cut < 60
    for rank in (0, 1):
        stacks = (run / f"stacks-rank{rank}.txt").read_text()
        assert re.match(rf"rank {rank} has been in '[a-z ]+' of step \d+ for 10 s\n", stacks) and "loop.py" in stacks
    wait_until(lambda: lives(run), supervisor)
    assert lives(run)[0]["status"] not in (0, 75)

    nodes[1].cable("up")
    lost = reached(run)
    wait_until(lambda: reached(run) > lost + 5, supervisor)
    nodes[0].signal(supervisor, signal.SIGTERM)
    assert supervisor.wait(60) == 75
    stopped = newest(run / "checkpoints", report=print)
    assert stopped
    launch(shards, tmp_path / "undisturbed", LONG, f"run.max_steps={stopped.facts.step}")
    undisturbed = newest(tmp_path / "undisturbed" / "checkpoints", report=print)
    assert undisturbed
    weights = stopped.weights()
    for name, value in undisturbed.weights().items():
        assert torch.equal(weights[name], value), name
    assert losses(run) == losses(tmp_path / "undisturbed")


def test_torchrun(nodes: list[Node], shards: Path, tmp_path: Path) -> None:
    options = [*SMALL, f"data.shards={shards}", f"run.dir={tmp_path / 'run'}", "run.max_steps=5"]
    port = str(free_port())
    launchers = [
        node.popen(
            *(str(BINARIES / "torchrun"), "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(rank)),
            *("--master-addr", nodes[0].name, "--master-port", port, "scripts/pretrain.py", "demo", *options),
        )
        for rank, node in enumerate(nodes)
    ]
    assert [launcher.wait(300) for launcher in launchers] == [0, 0]
    pretrain(shards, tmp_path / "one", "run.max_steps=5")
    np.testing.assert_allclose(
        list(losses(tmp_path / "run").values()), list(losses(tmp_path / "one").values()), atol=1e-5, rtol=0
    )


def test_clips_under_the_deepspeed_launcher(nodes: list[Node], video_shards: Path, tmp_path: Path) -> None:
    options = ("data.image_size=64", "data.repeats=2", "model.options={embed_dim: 32, depth: 2, num_heads: 1}")
    whole = resumed_on_two_nodes(nodes, tmp_path, "small_video", f"data.shards={video_shards}", *options)
    for rank in (0, 1):
        trace = [json.loads(line) for line in (whole / f"samples-rank{rank}.jsonl").read_text().splitlines()]
        assert {len(line["frames"]) for line in trace} == {8}


def test_visible_patches_under_the_deepspeed_launcher(nodes: list[Node], shards: Path, tmp_path: Path) -> None:
    options = ("data.image_size=64", "mask.repeats=2", "model.options={embed_dim: 32, depth: 4, num_heads: 1}")
    whole = resumed_on_two_nodes(nodes, tmp_path, "small_visible", f"data.shards={shards}", *options)
    for rank in (0, 1):
        trace = [json.loads(line) for line in (whole / f"samples-rank{rank}.jsonl").read_text().splitlines()]
        assert {len(line["ids"]) for line in trace} == {4}  # of 8 views


def resumed_on_two_nodes(nodes: list[Node], folder: Path, recipe: str, *settings: str) -> Path:
    """Kill a node of a run; the same command resumes from the last checkpoint, like the undisturbed run, bit for bit.

    Returns:
        The undisturbed run, of two ranks and steps of 16 inputs.
    """
    options = [
        *("data.decode_threads=1", "run.trace_samples=true", "run.log_every=1", "run.save_every=4"),
        *("run.eval_every=1000", "run.probe_every=null", "optim.batch_size=16", "engine.compile=none", LONG, *settings),
    ]
    run, whole = folder / "run", folder / "whole"
    (folder / "hosts").write_text("".join(f"{node.name} slots=1\n" for node in nodes))

    def started(*more: str) -> "subprocess.Popen[str]":
        launcher, *rest = [*deepspeed(recipe), *options, f"run.dir={run}", *more]
        return nodes[0].popen(launcher, "--hostfile", str(folder / "hosts"), *rest, env=environment(folder))

    killed = started()
    wait_until(lambda: (run / "checkpoints" / "step-00000004").exists(), killed)
    nodes[1].kill()
    assert killed.wait(300) != 0
    nodes[1].start()
    steps = reached(run) + 4
    end = f"run.max_steps={steps}"
    assert started(end).wait(240) == 0
    undisturbed = Ranks(2, [recipe, *options, f"run.dir={whole}", end], folder / "said", free_port())
    assert undisturbed.wait(240) == [0, 0], undisturbed.said()
    assert_same_weights(run, whole)
    assert losses(run) == losses(whole) and list(losses(run)) == list(range(1, steps + 1))
    for rank in (0, 1):
        assert (run / f"samples-rank{rank}.jsonl").read_text() == (whole / f"samples-rank{rank}.jsonl").read_text()
    return whole


def supervise(node: Node, shards: Path, run: Path, *overrides: str, least: int = 1) -> "subprocess.Popen[str]":
    """The supervisor on a node, over the host file beside `run`, with so many nodes at least."""
    options = ["--hostfile", str(run.parent / "hosts"), "--min-nodes", str(least), "--pause", "0.1"]
    settings = [*SMALL, LONG, f"data.shards={shards}", f"run.dir={run}", *overrides]
    command = [sys.executable, "scripts/launch/supervise.py", *options, "--", *deepspeed("demo"), *settings]
    return node.popen(*command, env=environment(run.parent))


def deepspeed(recipe: str) -> list[str]:
    """The launcher and what it launches, up to the overrides."""
    return ["deepspeed", "--quiet", "--master_port", str(free_port()), "scripts/pretrain.py", recipe]


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a launcher on a node. ssh gives the ranks what a file in `folder` has."""
    exports = folder / "environment"
    names = ("DS_ACCELERATOR", "OMP_NUM_THREADS", "PYTHONPATH")
    exports.write_text("".join(f"{name}={os.environ[name]}\n" for name in names if name in os.environ))
    whole = os.environ | {"PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}", "DS_ENV_FILE": str(exports)}
    return {name: value for name, value in whole.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def lives(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in run.glob("lives-*.jsonl") for line in file.read_text().splitlines()]


def processes(run: Path) -> list[int]:
    """The run's ranks, and their launchers beside them, on all nodes."""
    found = ranks(run)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            arguments = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
            if {f"run.dir={run}", "deepspeed.launcher.launch"} <= set(arguments):
                found.append(int(process.name))
    return found


def wait_until(happened: Callable[[], object], supervisor: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert supervisor.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
