"""A training step: it waits for the device at log steps only, and recomputing activations changes no number."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from launching import losses, pretrain
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique"}  # of the host, on a GPU


class CountWaits(TorchDispatchMode):
    """Counts the operations that a host has to wait for the device for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in WAITS:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", ["0 fp32", "1 bf16", "2 bf16"])
def test_nothing_waits_for_the_device_between_logs(shards: Path, tmp_path: Path, settings: str) -> None:
    """A run of four times as many steps to its only log waits as often."""
    stage, precision = settings.split()
    options = [f"engine.zero_stage={stage}", f"engine.precision={precision}", "engine.micro_batch=8"]
    waits = []
    for steps in (3, 12):
        with CountWaits() as mode:
            pretrain(shards, tmp_path / str(steps), *options, f"run.max_steps={steps}", "run.log_every=100")
        waits.append(mode.counts)
    assert waits[0] == waits[1]
    assert waits[0]["_local_scalar_dense"] > 0  # those of the log: it counts


def test_recomputed_activations_change_no_number(shards: Path, tmp_path: Path) -> None:
    drop_path = "model.options={embed_dim: 32, depth: 2, num_heads: 1, drop_path_rate: 0.3}"
    for recompute in (False, True):
        option = f"engine.activation_checkpointing={recompute}"
        pretrain(shards, tmp_path / str(recompute), option, drop_path, "run.max_steps=4", "engine.precision=bf16")
    assert losses(tmp_path / "True") == losses(tmp_path / "False")


def test_a_profile_tells_where_the_time_of_a_step_goes(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(shards, tmp_path / "run", "run.max_steps=6", "run.profile=2")
    (trace,) = (tmp_path / "run" / "profile").iterdir()
    assert trace.name == "rank0-steps-3-4.json.gz"
    names = Counter(event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"])
    for phase in ("data wait", "target", "forward", "backward", "optimizer", "agreement", "logging"):
        assert names[phase] == 2, phase
    table = capsys.readouterr().out.split("a step of 3 to 4")[1]
    milliseconds = {
        line[:14].strip(): float(line[14:].split()[0]) for line in table.splitlines() if line.endswith(" ms")
    }
    assert milliseconds["forward"] > 0 and milliseconds["decode"] > 0


@pytest.mark.parametrize("stage", [1, 2])
def test_the_compiled_model_is_one_graph_and_trains_the_same(shards: Path, tmp_path: Path, stage: int) -> None:
    """`fullgraph` makes a break in the graph an error."""
    options = [f"engine.zero_stage={stage}", "run.max_steps=4", "engine.micro_batch=8"]
    pretrain(shards, tmp_path / "eager", *options)
    pretrain(shards, tmp_path / "compiled", *options, "engine.compile=all")
    eager, compiled = losses(tmp_path / "eager"), losses(tmp_path / "compiled")
    assert list(compiled.values()) == pytest.approx(list(eager.values()), abs=1e-6)
