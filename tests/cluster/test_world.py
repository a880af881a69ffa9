"""Joining the other ranks, and learning that they are gone."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launching import SMALL
from ranks import Ranks
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError

from pipeline.cluster.world import lost_a_rank, record_collectives


@pytest.mark.parametrize("kind", [DistBackendError, DistNetworkError, DistStoreError])
def test_every_error_of_a_collective_is_a_lost_rank(kind: type[Exception]) -> None:
    assert lost_a_rank(kind("Connection reset by peer"))
    assert lost_a_rank(RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed"))
    assert lost_a_rank(RuntimeError("Gloo connectFullMesh failed"))
    assert not lost_a_rank(RuntimeError("shapes do not match"))


TIMEOUTS = """
import torch
from deepspeed.utils import groups
from pipeline.cluster.world import join
from torch import distributed
join(patience=1234)
for group in (distributed.group.WORLD, groups._get_data_parallel_group(), distributed.new_group(backend="gloo")):
    print(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())
"""


def test_collectives_wait_as_long_as_a_run_asks_for() -> None:
    """This includes those of DeepSpeed's own groups."""
    done = subprocess.run([sys.executable, "-c", TIMEOUTS], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1234.0"] * 3, done.stderr


def test_the_flight_recorder_is_on_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "5", "TORCH_FR_DUMP_TEMP_FILE": "/mine"}
    monkeypatch.setattr(os, "environ", dict(theirs))
    record_collectives(tmp_path, 3)
    assert os.environ == theirs | {"TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}


RECORDED = """
import sys, torch
from pathlib import Path
from pipeline.cluster.world import join, record_collectives
from torch._C._distributed_c10d import _dump_fr_trace_file
run = Path(sys.argv[1])
record_collectives(run, 0)
join().sum(torch.ones(3))
_dump_fr_trace_file(0)
"""


def test_the_last_collectives_go_into_the_runs_folder(tmp_path: Path) -> None:
    """Here they are those of gloo, which also has a recorder; an existing link is not followed."""
    (tmp_path / "other").write_text("mine")
    (tmp_path / "collectives-rank0").symlink_to(tmp_path / "other")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TORCH_", "RANK"))}
    command = [sys.executable, "-c", RECORDED, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "deprecated" not in done.stderr, done.stderr
    assert (tmp_path / "other").read_text() == "mine"
    recorded = pickle.loads((tmp_path / "collectives-rank0").read_bytes())["entries"]
    assert [entry["profiling_name"] for entry in recorded] == ["gloo:all_reduce"]


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        settings = [*SMALL, "data.shards=none", f"run.dir={tmp_path / 'run'}"]
        ranks = Ranks(1, ["demo", *settings], tmp_path / "said", port)
        assert ranks.wait(120) == [1]
    (said,) = [line for line in ranks.said().splitlines() if line.startswith("error:")]
    assert said.startswith(f"error: port {port} of this node is taken") and "--master_port M" in said
    assert "Traceback" not in ranks.said()
