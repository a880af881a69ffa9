"""Runs that version 0.1.0 wrote, in tests/old_runs, and how they are resumed."""

from pathlib import Path
from typing import Any

from pipeline.cluster.phases import Phases
from pipeline.cluster.preemption import Preemption
from pipeline.cluster.world import join
from pipeline.config import Recipe, TrainingRecipe, load
from pipeline.finetune.config import FinetuneRecipe
from pipeline.finetune.task import Finetuning
from pipeline.pretrain.task import Pretraining
from pipeline.train.loop import Outcome
from pipeline.train.setup import set_up

OLD = Path(__file__).parent / "old_runs"
RUNS: dict[str, tuple[type[TrainingRecipe], Any, list[str]]] = {
    "pretrain": (Recipe, Pretraining, []),
    "finetune": (FinetuneRecipe, Finetuning, [f"data.validation={OLD / 'set'}"]),
}


def resume(run: Path, *overrides: str) -> None:
    """As the command line does, with the recipe that the run's own config.yaml holds."""
    kind, task, sets = RUNS[run.name]
    settings = [f"data.shards={OLD / 'set'}", *sets, f"run.dir={run}", "run.max_steps=8", *overrides]
    recipe, world = load(kind, str(run / "config.yaml"), settings), join()
    with Phases(run, world.rank, recipe.run.deadline) as phases, Preemption(world) as preemption:
        assert set_up(recipe, world, phases, task).run(preemption) is Outcome.COMPLETE
