"""Training, from the start or from the newest checkpoint, to the end."""

import math
import os
import resource
import shutil
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from pipeline.build import compile_forward
from pipeline.config import AnyRecipe, ConfigError, TrainingRecipe
from pipeline.data.batch import Batch
from pipeline.data.exact import ExactData
from pipeline.data.quarantine import TooManyBad
from pipeline.data.stream import StreamData
from pipeline.random import mix_int
from pipeline.train import preflight
from pipeline.train.bad_samples import BadSamples
from pipeline.train.checkpoint import CheckpointError, Facts
from pipeline.train.engine import Engine, total_steps
from pipeline.train.errors import TrainingError
from pipeline.train.monitor import Metrics, Monitor
from pipeline.train.nonfinite import NonFinite, TooManyNonFinite, leave_out, left_out
from pipeline.train.pace import Clock, Stragglers
from pipeline.train.phases import Phases
from pipeline.train.preemption import Preemption
from pipeline.train.profile import SETTLING, Profile
from pipeline.train.resume import changed_engine, find_checkpoint, identity
from pipeline.train.saver import Saver
from pipeline.train.state import capture, captured_shapes, counters, restore, set_weights
from pipeline.train.task import Task
from pipeline.train.world import World
from pipeline.train.writing import Growing, Writing, json_lines, keep_lines


class Outcome(Enum):
    """How one life of a run ended."""

    COMPLETE = "its last step is done"
    STOPPED = "asked to stop"
    ROLLED_BACK = "the next life starts from the last checkpoint"


class Training:
    """One life of a run: from building or resuming it to its end. All ranks do everything together.

    Args:
        recipe: of the run.
        world: the ranks.
        phases: told what happens, and watching it.
        task: makes what the run learns, of all these and the training images.

    Raises:
        ConfigError, ShardError, CheckpointError, DataError, TrainingError: one line that says what to do.
    """

    def __init__(
        self,
        recipe: AnyRecipe,
        world: World,
        phases: Phases,
        task: Callable[[AnyRecipe, Any, World, Phases], Task],
    ) -> None:
        if recipe.engine.compile != "none" and world.gpu is None and not _has_cpp_compiler():
            raise ConfigError(
                "engine.compile needs a C++ compiler on a CPU: install g++, name one in CXX, or set it to none"
            )
        torch.manual_seed(recipe.run.seed)
        self.recipe, self.world, self.phases = recipe, world, phases
        self.micro_batch = recipe.micro_batch(world.size)
        self.micro_batches = recipe.optim.batch_size // (self.micro_batch * world.size)
        self.data = _training_data(recipe, world, self.micro_batch)
        self.bad = BadSamples(recipe.run.dir, recipe.data, world, self.data.names)
        self.task = task(recipe, self.data, world, phases)

        # What decides the run's numbers, the same on all ranks
        inputs = self.data.identity | self.task.identity
        self.identity = identity(recipe, inputs)
        inputs |= self.task.inputs | {"model.init": self.identity["model.init"]}
        warnings = preflight.check(recipe, inputs, world)

        # Model, from the newest checkpoint if there is one
        model = self.task.model
        resumed = find_checkpoint(recipe, world, self.identity, model, self.task.average)
        self.left_out = world.from_first(left_out(recipe.run.dir))
        if resumed:
            model.load_state_dict(resumed.weights())
            warnings += changed_engine(resumed, recipe)
        else:
            warnings += self.task.start()
        if recipe.engine.compile == "all":
            compile_forward(model)
        steps_per_epoch = self.data.samples / recipe.optim.batch_size
        scheduled = total_steps(recipe.optim, steps_per_epoch)
        self.start = resumed.facts.step if resumed else 0
        self.end = min(scheduled, recipe.run.max_steps or scheduled)
        parameters = sum(parameter.numel() for parameter in model.parameters())  # before ZeRO 3 takes them apart
        exact = {} if resumed else {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self.engine = Engine(model, recipe, world, steps_per_epoch, self.task.groups(), self.task.average)
        if resumed:
            restore(self.engine, resumed)
        else:
            set_weights(self.engine, exact)
        del exact

        run = recipe.run
        shapes = captured_shapes(self.engine, world)
        self.saver = Saver(run.dir / "checkpoints", world, shapes, keep=run.keep, keep_every=run.keep_every)

        # What a person watches
        self.stragglers = Stragglers()
        self.monitor: Monitor | None = None
        if world.rank == 0:
            self.monitor = Monitor(recipe.run.dir, self.task.name, recipe.plain(), self.start, self.end)
            self.monitor.say(
                f"{parameters / 1e6:.1f}M parameters, {self.data.samples:,} images, "
                f"{world.size} ranks x {self.micro_batches} x {self.micro_batch} images a step, "
                f"ZeRO {recipe.engine.zero_stage}, {recipe.engine.precision}"
            )
            notes = [*warnings, *self.data.notes]
            if self.left_out:
                notes.append(f"steps {self.left_out} are left out, see {recipe.run.dir}/left-out.json")
            for note in notes:
                self.monitor.say(f"note: {note}")
            self.monitor.say(
                f"steps {self.start} to {self.end} of a schedule of {scheduled}"
                if self.start < self.end
                else f"nothing to do: {recipe.run.dir} has reached step {self.start}"
            )

    def run(self, preemption: Preemption) -> Outcome:
        """Train, reporting, validating and saving on the way."""
        try:
            with self.saver:
                outcome = self._train(preemption)
            if self.monitor and outcome is Outcome.COMPLETE:
                complete = self.recipe.run.dir / "complete"  # a launcher's status 0 does not always mean that
                with Writing()(complete), suppress(FileExistsError):
                    complete.touch(exist_ok=False)  # which follows no link
            return outcome
        except TooManyBad as error:
            self.bad.leave(error.bad)
            raise
        except TooManyNonFinite as error:
            return self._roll_back(error)
        finally:
            self.data.close()
            if self.monitor:
                self.monitor.close()

    def _train(self, preemption: Preemption) -> Outcome:
        engine, settings, phases = self.engine, self.recipe.run, self.phases
        if self.start < self.end:
            self.task.begin(engine, self.start, self.monitor)
        trace = self._open_trace()
        profile = self._profile()

        batches = self.data.batches(self.start, max(0, self.end - self.start) * self.micro_batches)
        losses = torch.zeros(2, device=self.world.device)  # their sum over images, and how many images that were
        not_finite = NonFinite(settings.nonfinite_in_a_row)
        clock = Clock(self.world.device)
        for step in range(self.start, self.end):
            phases.step = step
            if profile:
                profile.before(step)
            engine.schedule.step_update(step)
            ids: list[int] = []
            for micro_batch in range(self.micro_batches):
                # Drop path, where a recipe has it, draws from torch's generator: here, too, no state is saved
                counter = (step * self.micro_batches + micro_batch) * self.world.size + self.world.rank
                torch.manual_seed(mix_int(mix_int(settings.seed) + counter))
                with phases("data wait"), clock.waiting():
                    batch = next(batches)
                ids += batch.request.ids.tolist()
                self.bad.meet(batch.bad)
                if step not in self.left_out:
                    losses += self._learn(batch, clock)
            clock.steps += 1
            if step not in self.left_out:
                not_finite.note(step, engine.not_finite())
                if trace:
                    trace.append(json_lines([{"step": step, "ids": ids}]))

            # On most steps that is all, and nothing above waits for the device
            done = step + 1
            if self.monitor:
                self.monitor.advance(done)
            validate = done == self.end or done % settings.eval_every == 0
            with phases("agreement"):
                stop = preemption.agreed()
            save = stop or done == self.end or done % settings.save_every == 0
            if validate or save or done % settings.log_every == 0:  # a save too: a resumed run then logs the same
                with phases("logging"):
                    metrics = self._metrics(done, losses, clock, not_finite.count())
                if validate:
                    metrics |= self.task.validate(engine, done, self.monitor)
                if self.monitor:
                    self.monitor.log(done, metrics)
                    for problem in self.saver.problems():
                        self.monitor.say(f"warning: {problem}")
                losses.zero_()
                clock = Clock(self.world.device)
            if save:
                with phases("save"), clock.stopped():
                    self._save(done, last=stop or done == self.end)
            if profile and (table := profile.after(step)) and self.monitor:
                for line in table.splitlines():
                    self.monitor.say(line)
            if stop and done < self.end:
                if self.monitor:
                    self.monitor.say(f"stopped at step {done}, as asked; the same command resumes from there")
                return Outcome.STOPPED
        return Outcome.COMPLETE

    def _learn(self, batch: Batch, clock: Clock) -> Tensor:
        """Forward, backward and, after the last micro-batch, update.

        Returns:
            float32 (2,): the sum of this micro-batch's losses over its images, and how many images that were.
        """
        with self.phases("target"):
            prepared = self.task.prepare(batch)
        with self.phases("forward"), clock.working():
            errors, weights = self.task.errors(self.engine, prepared)
            errors = errors * weights
            # A bad sample's weight is 0, and its slot still counts: so the gradients of the others stay the same
            loss = errors.mean()
        with self.phases("backward"):
            self.engine.backward(loss)
        with self.phases("optimizer"):
            self.engine.update()
        finite = errors.detach().isfinite()
        return torch.stack([errors.detach().where(finite, 0).sum(), (weights * finite).sum()])

    def _metrics(self, done: int, losses: Tensor, clock: Clock, not_finite: int) -> Metrics:
        """The numbers of the steps since the last log, over all ranks."""
        counts = self.data.counters()
        own = [clock.own_seconds(), clock.wait / clock.elapsed, len(self.bad), *counts.values()]
        values = torch.cat([losses.double(), torch.tensor(own, dtype=torch.float64, device=losses.device)])
        ranks = self.world.rows(values)
        loss_sum, images, _, data_wait, bad, *totals = ranks.sum(0).tolist()
        seconds = ranks[:, 2].tolist()
        seen = clock.steps * self.recipe.optim.batch_size
        if problem := self.bad.log(int(bad), seen, self.monitor):
            raise TrainingError(problem)
        if self.monitor:
            for rank, times in self.stragglers.name(seconds).items():
                self.monitor.say(f"note: rank {rank} takes {times:.1f} times as long as the median rank")
        return {
            "loss": loss_sum / images if images else math.nan,  # none where every image was bad or no loss finite
            "grad_norm": self.engine.grad_norm(),
            "lr": self.engine.learning_rate,
            "images_per_second": seen / clock.elapsed,
            "data_wait": data_wait / self.world.size,
            "bad_samples": bad,
            "nonfinite_steps": not_finite,
            "skipped_steps": self.engine.skipped_steps(done),
            "slowest_rank": max(seconds),
            "failed_saves": self.saver.failures,
            "memory_gib": _peak_memory(self.world.device) / 2**30,
        } | {f"data/{name}": count for name, count in zip(counts, totals, strict=True)}

    def _roll_back(self, error: TooManyNonFinite) -> Outcome:
        """Have the next life pass over the batches after which no gradient was finite."""
        if self.left_out:
            raise TrainingError(
                f"{error}, after the run had rolled back once: start again with a lower optim.lr, or with "
                f"engine.precision=fp32; to try once more, remove {self.recipe.run.dir}/left-out.json"
            )
        problem = ""
        if self.monitor:
            try:
                path = leave_out(self.recipe.run.dir, error.steps)
            except OSError as failure:
                problem = (
                    f"{error}, and {self.recipe.run.dir}/left-out.json, which would leave these out, cannot be "
                    f"written ({failure.strerror or failure}): make room there, and start the same command again"
                )
            else:
                self.monitor.say(f"{error}: rolling back to the last checkpoint, leaving out these steps, see {path}")
        if problem := self.world.from_first(problem):
            raise TrainingError(problem)
        self.saver.wait()
        self.world.barrier()
        self.engine.deepspeed.destroy()
        return Outcome.ROLLED_BACK

    def _save(self, done: int, *, last: bool) -> None:
        """Begin to save; what goes wrong is told at the next log step, or raised if there is none."""
        if self.monitor:
            self.monitor.flush()
        facts = Facts(done, counters(self.engine), self.identity, self.recipe.plain())
        self.saver.start(capture(self.engine, self.world), facts)
        if last and (problem := self.saver.wait()):
            raise CheckpointError(problem)

    def _profile(self) -> Profile | None:
        steps = self.recipe.run.profile
        first = self.start + SETTLING
        last = min(first + steps, self.end) - 1
        if last < first:
            return None
        return Profile(self.recipe.run.dir / "profile", self.world.rank, first, last, self.world.device)

    def _open_trace(self) -> Growing | None:
        if not self.recipe.run.trace_samples:
            return None
        folder, writing = self.recipe.run.dir, Writing()
        if self.world.rank == 0:  # for ranks that this life no longer has, too
            for path in folder.glob("samples-rank*.jsonl"):
                with writing(path):
                    keep_lines(path, self.start - 1)
        self.world.barrier()
        return Growing(folder / f"samples-rank{self.world.rank}.jsonl", writing)


def _training_data(recipe: TrainingRecipe, world: World, micro_batch: int) -> ExactData | StreamData:
    if recipe.data.mode == "stream":
        return StreamData(recipe, micro_batch, world.device, rank=world.rank, world_size=world.size)
    return ExactData(
        recipe,
        micro_batch,
        world.device,
        rank=world.rank,
        world_size=world.size,
        local_rank=world.local_rank,
        local_size=world.local_size,
    )


def _has_cpp_compiler() -> bool:
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _peak_memory(device: torch.device) -> int:
    """Bytes: allocated on the GPU, or resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
