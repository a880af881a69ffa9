"""Joining the other ranks, and learning that they are gone."""

import socket
from pathlib import Path

import pytest
from launching import SMALL
from ranks import Ranks
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError

from pipeline.train.world import lost_a_rank


@pytest.mark.parametrize("kind", [DistBackendError, DistNetworkError, DistStoreError])
def test_every_error_of_a_collective_is_a_lost_rank(kind: type[Exception]) -> None:
    assert lost_a_rank(kind("Connection reset by peer"))
    assert lost_a_rank(RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed"))
    assert lost_a_rank(RuntimeError("Gloo connectFullMesh failed"))
    assert not lost_a_rank(RuntimeError("shapes do not match"))


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
