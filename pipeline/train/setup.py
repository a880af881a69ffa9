"""Set up one attempt of a run: its data, task, engine and reports, from the start or from the newest checkpoint."""

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from pipeline.build import compile_forward, load_trained
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.saver import Saver
from pipeline.cluster import preflight
from pipeline.cluster.phases import Phases
from pipeline.cluster.world import World
from pipeline.config import AnyRecipe, TrainingRecipe
from pipeline.data.exact import ExactData
from pipeline.data.stream import StreamData
from pipeline.data.training_data import Part, TrainingData
from pipeline.report.bad_samples import BadSamples
from pipeline.report.boards import check_boards
from pipeline.report.monitor import open_monitor
from pipeline.report.profile import Profile
from pipeline.report.progress import Schedule
from pipeline.report.report import Report, Silence
from pipeline.report.sample_trace import open_trace
from pipeline.settings import ConfigError
from pipeline.train.engine import Engine, total_steps
from pipeline.train.hints import hints
from pipeline.train.log import TrainingLog
from pipeline.train.loop import Training
from pipeline.train.nonfinite import NonFinite, left_out
from pipeline.train.resume import changed_engine, find_checkpoint, identity
from pipeline.train.state import captured_shapes, restore, set_weights
from pipeline.train.step import Stepper
from pipeline.train.task import Task

# Makes the task from a recipe, its training data, the ranks and their phases. The data are a `TrainingData`; a recipe
# that requires a data set with a manifest may rely on a `ListedData`.
MakeTask = Callable[[AnyRecipe, Any, World, Phases], Task]


def set_up(recipe: AnyRecipe, world: World, phases: Phases, make_task: MakeTask[AnyRecipe]) -> Training:
    """Return a run that is ready to train. All ranks call this together.

    Args:
        recipe: the recipe of the run.
        world: the ranks.
        phases: the phases of this rank.
        make_task: makes the task.

    Raises:
        ConfigError, ShardError, CheckpointError, DataError, TrainingError: one line that says what to do.
    """
    _check_compiler(recipe, world)
    check_boards(recipe.run.boards)
    torch.manual_seed(recipe.run.seed)
    data = open_data(recipe, world)
    task = make_task(recipe, data, world, phases)
    run_identity, notes = _agree(recipe, world, data, task)

    # Model and optimizer, from the newest checkpoint if there is one
    found = find_checkpoint(recipe, world, run_identity, task.model, task.average)
    passed_over = world.from_first(left_out(recipe.run.dir))
    notes += _load_weights(recipe, task, found)
    size = _size(recipe, world, task, data)  # before ZeRO 3 partitions the parameters
    batch_size = recipe.optim.batch_size
    steps_per_epoch = data.samples * recipe.views / batch_size
    engine = _start_engine(recipe, world, task, steps_per_epoch, found)

    # Outputs of the run
    run = recipe.run
    first_step = found.facts.step if found else 0
    scheduled = total_steps(recipe.optim, steps_per_epoch)
    end = min(scheduled, run.max_steps or scheduled)
    shapes = captured_shapes(engine, world)
    saver = Saver(
        run.dir / "checkpoints",
        world,
        shapes,
        keep=run.keep,
        keep_every=run.keep_every,
        minutes=run.save_minutes,
    )
    report: Report = Silence()
    if world.rank == 0:
        schedule = Schedule(first_step, end, batch_size / recipe.views, steps_per_epoch)
        report = open_monitor(run.dir, task.name, recipe.plain(), schedule, run.boards)
    trace = open_trace(run.dir, world, first_step) if run.trace_samples else None

    notes += data.notes + hints(run, recipe.optim, steps_per_epoch, end, recipe.data.validation is not None)
    if passed_over:
        notes.append(f"steps {passed_over} are skipped, see {run.dir}/left-out.json")
    steps = f"steps {first_step} to {end} of a schedule of {scheduled}"
    nothing = f"nothing to do: {run.dir} has reached step {first_step} of a schedule of {scheduled}"
    for line in (size, *(f"note: {note}" for note in notes), steps if first_step < end else nothing):
        report.say(line)

    # Observers of its steps
    not_finite = NonFinite(run.nonfinite_in_a_row)
    bad = BadSamples(run.dir, recipe.data, world, data.names)
    log = TrainingLog(
        world,
        data,
        engine,
        saver,
        report,
        bad=bad,
        not_finite=not_finite,
        batch_size=batch_size,
        views=recipe.views,
        masks=recipe.masks,
        frames=recipe.data.frames,
        flops=task.flops,
        trace=trace,
    )
    return Training(
        recipe=recipe,
        world=world,
        phases=phases,
        data=data,
        task=task,
        engine=engine,
        saver=saver,
        report=report,
        stepper=Stepper(task, engine, world, phases, run.seed, micro_batches(recipe, world)),
        bad=bad,
        log=log,
        profile=Profile(run.dir / "profile", world, first_step, end, run.profile, report.say),
        identity=run_identity,
        left_out=passed_over,
        first_step=first_step,
        end=end,
    )


def open_data(recipe: TrainingRecipe, world: World) -> TrainingData:
    """Return this rank's training batches.

    Raises:
        ShardError, DataError: there are no batches, or the node's cache is too small.
    """
    part = part_of(recipe, world)
    return StreamData(recipe.data, part) if recipe.data.mode == "stream" else ExactData(recipe.data, part)


def part_of(recipe: TrainingRecipe, world: World) -> Part:
    """Return which part of a run's batches this rank takes. Raises ConfigError where they cannot be shared evenly."""
    return Part(
        recipe.optim.batch_size // recipe.masks,
        recipe.micro_batch(world.size) // recipe.masks,
        recipe.run.seed,
        world.device,
        rank=world.rank,
        world_size=world.size,
        local_rank=world.local_rank,
        local_size=world.local_size,
    )


def micro_batches(recipe: TrainingRecipe, world: World) -> int:
    """Return the number of a rank's micro-batches per step."""
    return recipe.optim.batch_size // (recipe.micro_batch(world.size) * world.size)


def _agree(recipe: TrainingRecipe, world: World, data: TrainingData, task: Task) -> tuple[dict[str, Any], list[str]]:
    """Check that all ranks are about to run the same. Return the identity of the run, and notes for the operator."""
    inputs = data.identity | task.identity
    run_identity = identity(recipe, inputs)
    inputs |= task.inputs | {"model.init": run_identity["model.init"]}
    return run_identity, preflight.check(recipe, inputs, world)


def _load_weights(recipe: TrainingRecipe, task: Task, found: Checkpoint | None) -> list[str]:
    """Load the model's weights for this attempt, and compile it. Return notes for the operator."""
    if found:
        load_trained(task.model, found.weights())
        notes = changed_engine(found, recipe)
    else:
        notes = task.load_initial_weights()
    if recipe.engine.compile == "all":
        compile_forward(task.model)
    return notes


def _start_engine(
    recipe: TrainingRecipe, world: World, task: Task, steps_per_epoch: float, found: Checkpoint | None
) -> Engine:
    """Return an engine of the model, in the state of the checkpoint if there is one."""
    model = task.model
    exact = {} if found else {name: weight.detach().clone() for name, weight in model.named_parameters()}
    settings, micro_batch = (recipe.engine, recipe.optim), recipe.micro_batch(world.size)
    engine = Engine(model, *settings, micro_batch, world, steps_per_epoch, task.groups(), task.average)
    if found:
        restore(engine, found)
    else:
        set_weights(engine, exact)
    return engine


def _size(recipe: TrainingRecipe, world: World, task: Task, data: TrainingData) -> str:
    """Describe the size of a run, in a line."""
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    samples = next(iter(data.media)) + "s" if len(data.media) == 1 else "images and videos"
    return (
        f"{parameters / 1e6:.1f}M parameters, {data.samples:,} {samples}, {world.size} ranks x "
        f"{micro_batches(recipe, world)} x {recipe.micro_batch(world.size)} {recipe.inputs} per step, "
        f"ZeRO {recipe.engine.zero_stage}, {recipe.engine.precision}"
    )


def _check_compiler(recipe: TrainingRecipe, world: World) -> None:
    """Raise ConfigError where the recipe compiles and its compiler is missing."""
    on_cpu = world.gpu is None
    if recipe.engine.compile != "none" and on_cpu and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ConfigError(
            "engine.compile needs a C++ compiler on a CPU: install g++, name one in CXX, or set it to none"
        )
