"""Small real runs for the tests: a recipe that takes seconds, in this process, in ranks, or under a launcher."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ports import free_port
from ranks import Ranks

from pipeline.checkpoints.checkpoint import Checkpoint, newest
from pipeline.config import Recipe, load, load_recipe

if TYPE_CHECKING:
    from pipeline.finetune.config import FinetuneRecipe

CHECKOUT = Path(__file__).resolve().parents[1]

SMALL = (
    "data.image_size=32",
    "data.decode_threads=1",
    "data.read_threads=1",
    "data.lanes=4",
    "model.options={embed_dim: 32, depth: 2, num_heads: 1}",
    "optim.batch_size=16",
    "optim.epochs=20",
    "engine.zero_stage=1",
    "engine.compile=none",
    "run.log_every=1",
    "run.eval_every=1000",
    "run.save_every=1000",
)


# Besides, for fine-tuning, on a few dozen images
FINETUNE = (
    "model.options={embed_dim: 32, depth: 2, num_heads: 1, drop_path_rate: 0.2}",
    "optim.lr=0.03",
    "augment.randaugment=9",
    "augment.erasing=0.25",
    "augment.mixup=0.8",
    "augment.cutmix=1",
    "run.eval_every=20",
)


def small_recipe(shards: Path | str, run: Path, *overrides: str) -> Recipe:
    """The demo's recipe, shrunk."""
    return load_recipe("demo", [*SMALL, f"data.shards={shards}", f"run.dir={run}", *overrides])


def pretrain(shards: Path | str, run: Path, *overrides: str) -> None:
    """Train in this process, a world of one."""
    train(small_recipe(shards, run, *overrides))


def train(recipe: Recipe) -> None:
    """Train by any recipe in this process, a world of one."""
    from pipeline.cluster.phases import Phases
    from pipeline.cluster.preemption import Preemption
    from pipeline.cluster.world import join
    from pipeline.pretrain.task import Pretraining
    from pipeline.train.loop import Outcome
    from pipeline.train.setup import set_up

    world = join()
    with Phases(recipe.run.dir, world.rank, recipe.run.deadline) as phases, Preemption(world) as preemption:
        while set_up(recipe, world, phases, Pretraining).run(preemption) is Outcome.ROLLED_BACK:
            pass


def finetune_recipe(training: Path | str, validation: Path | str, run: Path, *overrides: str) -> "FinetuneRecipe":
    """The small recipe of fine-tuning, shrunk."""
    from pipeline.finetune.config import FinetuneRecipe

    data = (f"data.shards={training}", f"data.validation={validation}", f"run.dir={run}")
    return load(FinetuneRecipe, "small", [*SMALL, *FINETUNE, *data, *overrides])


def finetune(training: Path, validation: Path, run: Path, *overrides: str) -> None:
    """Fine-tune in this process, a world of one."""
    from pipeline.cluster.phases import Phases
    from pipeline.cluster.preemption import Preemption
    from pipeline.cluster.world import join
    from pipeline.finetune.task import Finetuning
    from pipeline.train.setup import set_up

    recipe, world = finetune_recipe(training, validation, run, *overrides), join()
    with Phases(run, world.rank, recipe.run.deadline) as phases, Preemption(world) as preemption:
        set_up(recipe, world, phases, Finetuning).run(preemption)


def launch(shards: Path | str, run: Path, *overrides: str, ranks: int = 2, expect: int = 0) -> str:
    """Train in real processes; return their output. All end with status `expect`."""
    started = start(shards, run, *overrides, ranks=ranks)
    statuses = started.wait(300)
    assert statuses == [expect] * ranks, f"{statuses}: {started.said()[-3000:]}"
    return started.said()


def launch_and_kill(shards: Path | str, run: Path, *overrides: str, when: Path) -> None:
    """Start the same, and SIGKILL all its processes at once as soon as the path `when` exists."""
    started = start(shards, run, *overrides)
    started.until(when.exists)
    started.kill()


def start(shards: Path | str, run: Path, *overrides: str, ranks: int = 2) -> Ranks:
    """Start the same; they are under way when this returns."""
    settings = [*SMALL, f"data.shards={shards}", f"run.dir={run}", *overrides]
    return Ranks(ranks, ["demo", *settings], run.with_name(f"{run.name}-said"), free_port())


def command(shards: Path | str, run: Path, *overrides: str, ranks: int = 2) -> dict[str, Any]:
    """Arguments of `subprocess.run` for a run under the real `deepspeed` launcher."""
    binaries = Path(sys.executable).parent
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment["PATH"] = f"{binaries}{os.pathsep}{environment['PATH']}"
    launcher = [str(binaries / "deepspeed"), "--quiet", "--num_gpus", str(ranks), "--master_port", str(free_port())]
    settings = [*SMALL, f"data.shards={shards}", f"run.dir={run}", *overrides]
    return {"args": [*launcher, "scripts/pretrain.py", "demo", *settings], "cwd": CHECKOUT, "env": environment}


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the logged metrics, one dictionary per step."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    """Return the training loss by step."""
    return {line["step"]: line["loss"] for line in metrics(run)}


def trace(run: Path, rank: int = 0) -> dict[int, list[int]]:
    """Sample ids of this rank by step, as `run.trace_samples=true` wrote them."""
    lines = (run / f"samples-rank{rank}.jsonl").read_text().splitlines()
    return {line["step"]: line["ids"] for line in map(json.loads, lines)}


def last_checkpoint(run: Path) -> Checkpoint:
    found = newest(run / "checkpoints", report=print)
    assert found
    return found


def assert_same_weights(one: Path, other: Path) -> None:
    """The last checkpoints of two runs hold the same weights, bit for bit."""
    weights, others = last_checkpoint(one).weights(), last_checkpoint(other).weights()
    assert weights.keys() == others.keys()
    for name, value in others.items():
        assert torch.equal(weights[name], value), name
