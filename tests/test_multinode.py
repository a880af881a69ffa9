"""Two nodes: network namespaces with real sshd, pdsh and launchers. One is killed, left out, and taken back."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import CHECKOUT, SMALL, free_port, losses, pretrain
from nodes import Node, missing, two_nodes

sys.path.append(str(CHECKOUT / "scripts" / "launch"))
from stop import ranks
from supervise import reached

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

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
    assert time.monotonic() - asked < 25
    assert not ranks(run)
    stopped = reached(run)
    assert (run / "checkpoints" / f"step-{stopped:08d}" / "files.json").exists()

    nodes[1].start()
    end = f"run.max_steps={stopped + 10}"
    assert supervise(nodes[0], shards, run, end).wait(120) == 0
    both, one = [node.name for node in nodes], [nodes[0].name]
    assert [life["hosts"] for life in lives(run)] == [both, one, both]
    assert [life["status"] for life in lives(run)][1:] == [75, 0]

    pretrain(shards, tmp_path / "undisturbed", LONG, end)
    expected, observed = losses(tmp_path / "undisturbed"), losses(run)
    assert list(observed) == list(expected) == list(range(1, stopped + 11))
    np.testing.assert_allclose(list(observed.values()), list(expected.values()), atol=1e-5, rtol=0)


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
    assert [launcher.wait(120) for launcher in launchers] == [0, 0]
    pretrain(shards, tmp_path / "one", "run.max_steps=5")
    np.testing.assert_allclose(
        list(losses(tmp_path / "run").values()), list(losses(tmp_path / "one").values()), atol=1e-5, rtol=0
    )


def supervise(node: Node, shards: Path, run: Path, *overrides: str) -> "subprocess.Popen[str]":
    """The supervisor on a node, over the host file beside `run`, with one node at least."""
    options = ["--hostfile", str(run.parent / "hosts"), "--min-nodes", "1", "--pause", "0.1"]
    launcher = ["deepspeed", "--quiet", "--master_port", str(free_port()), "scripts/pretrain.py", "demo", *SMALL, LONG]
    settings = [f"data.shards={shards}", f"run.dir={run}", *overrides]
    exports = run.parent / "environment"  # of the ranks, which ssh starts
    names = ("DS_ACCELERATOR", "OMP_NUM_THREADS", "PYTHONPATH")
    exports.write_text("".join(f"{name}={os.environ[name]}\n" for name in names if name in os.environ))
    environment = os.environ | {"PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}", "DS_ENV_FILE": str(exports)}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    command = [sys.executable, "scripts/launch/supervise.py", *options, "--", *launcher, *settings]
    return node.popen(*command, env=environment)


def lives(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in run.glob("lives-*.jsonl") for line in file.read_text().splitlines()]


def wait_until(happened: Callable[[], object], supervisor: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert supervisor.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
