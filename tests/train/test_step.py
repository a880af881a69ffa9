"""A training step: it waits for the device at log steps only, and recomputing activations changes no number."""

import gzip
import json
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.accelerator import get_accelerator
from labelled import CLASSES, labelled_shards
from launching import finetune, losses, pretrain
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.device import to_device

# Operations for which the host waits on a GPU
WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "repeat_interleave"}
WAITS |= {"_unique2", "unique_dim", "unique_consecutive"}
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
METHODS = ("tolist", "cpu", "numpy")
# Calls that wait for everything queued on a device, in a stream or up to an event. A CPU has nothing to wait for.
SYNCHRONISING = (
    type(get_accelerator()),
    torch.accelerator,
    torch.cuda,
    torch.cuda.Stream,
    torch.cuda.Event,
    torch.Stream,
    torch.Event,
)
STAGES = [(stage, precision) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16", "fp16")]


def count_synchronisations(patches: pytest.MonkeyPatch) -> Counter[str]:
    """The names of all that is called from now on to wait for a device, a stream or an event."""
    counts: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    for owner in SYNCHRONISING:
        try:
            patches.setattr(owner, "synchronize", counted(f"{owner.__name__}.synchronize", owner.synchronize))
        except TypeError:  # a class of torch's own in C, which only its subclasses in torch.cuda are used of
            assert owner in (torch.Stream, torch.Event)
    return counts


def count_copies(patches: pytest.MonkeyPatch) -> Counter[str]:
    """The modules of ours that ask from now on for a tensor on a device: `to(device)`, or `tensor(..., device=...)`."""
    counts: Counter[str] = Counter()

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            asked = [*args[1:], *kwargs.values()]
            module = sys._getframe(1).f_globals["__name__"]
            if module.startswith("pipeline") and any(isinstance(value, torch.device) for value in asked):
                counts[module] += 1
            return function(*args, **kwargs)

        return call

    patches.setattr(Tensor, "to", counted(Tensor.to))
    for name in ("tensor", "as_tensor"):
        patches.setattr(torch, name, counted(getattr(torch, name)))
    return counts


class CountWaits(TorchDispatchMode):
    """Counts the operations of this thread that a host has to wait for the device for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._patches = pytest.MonkeyPatch()
        self._thread = threading.current_thread()

    def __enter__(self) -> "CountWaits":
        for name in METHODS:
            self._patches.setattr(Tensor, name, self._counted(name, getattr(Tensor, name)))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.undo()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in WAITS:
            self.counts[name] += 1
        elif name in INDEXING and any(
            place is not None and place.dtype in (torch.bool, torch.uint8) for place in args[1]
        ):
            self.counts["bool index"] += 1
        return function(*args, **(kwargs or {}))

    def _counted(self, name: str, method: Any) -> Any:
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is self._thread:
                self.counts[name] += 1
            return method(tensor, *args, **kwargs)

        return call


@pytest.mark.parametrize("settings", ["0 fp32", "1 bf16", "2 bf16", "1 bf16 light", "2 bf16 local"])
def test_nothing_waits_for_the_device_between_logs(shards: Path, tmp_path: Path, settings: str) -> None:
    """A run of four times as many steps to its only log waits as often."""
    stage, precision, *variant = settings.split()
    options = [f"engine.zero_stage={stage}", f"engine.precision={precision}", "engine.micro_batch=8"]
    for decoder in variant:
        target = "hog_scales" if decoder == "local" else "hog"
        options += [f"model.decoder={decoder}", "model.decoder_width=32", f"target.kind={target}", "mask.kind=random"]
        options += ["mask.repeats=2", "model.options={embed_dim: 32, depth: 4, num_heads: 1}"]
    waits = []
    for steps in (3, 12):
        with CountWaits() as mode:
            pretrain(shards, tmp_path / str(steps), *options, f"run.max_steps={steps}", "run.log_every=100")
        waits.append(mode.counts)
    assert waits[0] == waits[1]
    assert waits[0]["_local_scalar_dense"] > 0 and waits[0]["tolist"] > 0  # those of the log: it counts


@pytest.mark.parametrize(("stage", "precision"), STAGES)
def test_no_step_synchronises_the_device(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, precision: str
) -> None:
    """Test every stage and precision, two micro-batches per step. DeepSpeed's own timer would, from the third on."""
    options = [f"engine.zero_stage={stage}", f"engine.precision={precision}", "engine.micro_batch=8"]
    counts = count_synchronisations(monkeypatch)
    pretrain(shards, tmp_path, *options, "run.max_steps=5", "run.log_every=100")
    assert counts == Counter()
    get_accelerator().synchronize()
    assert counts.total() == 1  # it counts


def test_the_timer_of_deepspeed_would_synchronise(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Show that the test above can fail: with the timer on, as by default, it does."""
    initialize = deepspeed.initialize

    def with_timer(*, config: dict[str, Any], **kwargs: Any) -> Any:
        return initialize(config=config | {"timers": {"throughput": {"enabled": True}}}, **kwargs)

    monkeypatch.setattr(deepspeed, "initialize", with_timer)
    counts = count_synchronisations(monkeypatch)
    pretrain(shards, tmp_path, "run.max_steps=5", "run.log_every=100")
    assert counts == {f"{type(get_accelerator()).__name__}.synchronize": 6}  # two a step, from the third on


def test_all_copies_to_the_device_in_a_step_go_one_way(
    shards: Path, labelled: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All copies of later steps are made in `to_device`."""
    for name, run in (
        ("pretrain", lambda folder, steps: pretrain(shards, folder, steps, "run.log_every=100")),
        ("finetune", lambda folder, steps: finetune(*labelled.values(), folder, steps, "run.log_every=100")),
    ):
        counts = []
        for steps in (3, 6):
            with monkeypatch.context() as patches:
                counted = count_copies(patches)
                run(tmp_path / f"{name}-{steps}", f"run.max_steps={steps}")
                counts.append(counted)
        assert set(counts[1] - counts[0]) == {"pipeline.device"}, name


def test_what_is_copied_to_a_gpu_is_pinned_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    host, pinned, calls = torch.arange(3), torch.arange(3), []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned if tensor is host else None)
    monkeypatch.setattr(Tensor, "to", lambda tensor, device, **kwargs: calls.append((tensor is pinned, device, kwargs)))
    to_device(host, torch.device("cuda", 1))
    assert calls == [(True, torch.device("cuda", 1), {"non_blocking": True})]


def test_every_wait_is_counted() -> None:
    values, places = torch.arange(4), torch.tensor([True, False, True, False])
    with CountWaits() as mode:
        values.tolist(), values.cpu(), values.numpy(), int(values[0])
        values.bincount(), values.unique(), values.nonzero(), values[places], values.repeat_interleave(values)
        values.repeat_interleave(2), values[values]  # of a known size
        values[places] = values[:2].clone()
    expected = dict.fromkeys(["bincount", "_unique2", "nonzero", "repeat_interleave", "_local_scalar_dense"], 1)
    assert mode.counts == expected | dict.fromkeys(METHODS, 1) | {"bool index": 2}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parts = {"train": dict.fromkeys(CLASSES, 16), "validation": {"red": 7, "green": 6}}
    return labelled_shards(tmp_path_factory.mktemp("labelled"), parts)


def test_nothing_waits_for_the_device_between_logs_of_finetuning(labelled: dict[str, Path], tmp_path: Path) -> None:
    """Enable all augmentation, and an average of the weights."""
    options = ["engine.precision=bf16", "engine.micro_batch=8", "optim.average=0.9", "run.eval_every=100"]
    waits = []
    for steps in (3, 12):
        with CountWaits() as mode:
            run, length = tmp_path / str(steps), [f"run.max_steps={steps}", "run.log_every=100"]
            finetune(labelled["train"], labelled["validation"], run, *options, *length)
        waits.append(mode.counts)
    assert waits[0] == waits[1]


def test_a_validation_waits_for_the_device_once(labelled: dict[str, Path], tmp_path: Path) -> None:
    """One of four batches as often as one of one."""
    waits = []
    for samples in (4, 13):
        with CountWaits() as mode:
            run, options = tmp_path / str(samples), ["run.max_steps=1", "engine.micro_batch=4"]
            finetune(labelled["train"], labelled["validation"], run, *options, f"data.validation_samples={samples}")
        waits.append(mode.counts)
    assert waits[0] == waits[1]


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
