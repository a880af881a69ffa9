"""The training loop: the order of everything. setup.py sets a run up, step.py computes a step."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pipeline.checkpoints.checkpoint import CheckpointError, Facts
from pipeline.checkpoints.saver import Saver
from pipeline.cluster.phases import Phases
from pipeline.cluster.preemption import Preemption
from pipeline.cluster.world import World
from pipeline.config import TrainingRecipe
from pipeline.data.batch import Batch
from pipeline.data.quarantine import TooManyBad
from pipeline.data.training_data import TrainingData
from pipeline.files import Writing
from pipeline.report.bad_samples import BadSamples
from pipeline.report.profile import Profile
from pipeline.report.report import Report
from pipeline.train.engine import Engine
from pipeline.train.errors import TrainingError
from pipeline.train.histograms import histograms
from pipeline.train.log import TrainingLog
from pipeline.train.nonfinite import TooManyNonFinite, leave_out
from pipeline.train.state import capture, counters
from pipeline.train.step import Stepper
from pipeline.train.task import Task


class Outcome(Enum):
    """The end of an attempt of a run."""

    COMPLETE = "its last step is done"
    STOPPED = "asked to stop"
    ROLLED_BACK = "the next attempt starts from the last checkpoint"


@dataclass
class Training:
    """One attempt of a run, made by `setup.set_up`. All ranks call every method together.

    Attributes:
        recipe, world, phases, data, task, engine, saver, report: those of the run.
        stepper: takes its steps.
        bad: the bad samples of this attempt.
        log: collects the numbers of its steps.
        profile: profiles some of them.
        identity: the identity of the run, for its checkpoints.
        left_out: steps to skip since the run rolled back.
        first_step: the first step of this attempt, which is the number completed before.
        end: the number of steps of the complete run.
    """

    recipe: TrainingRecipe
    world: World
    phases: Phases
    data: TrainingData
    task: Task
    engine: Engine
    saver: Saver
    report: Report
    stepper: Stepper
    bad: BadSamples
    log: TrainingLog
    profile: Profile
    identity: dict[str, Any]
    left_out: list[int]
    first_step: int
    end: int

    def run(self, preemption: Preemption) -> Outcome:
        """Train, with reports, evaluations and saves.

        Raises:
            CheckpointError, DataError, TrainingError: one line that says what to do.
        """
        try:
            with self.saver:
                outcome = self._train(preemption)
            if outcome is Outcome.COMPLETE:
                self._mark_complete()
                self.report.complete(self.task.next_commands)
            return outcome
        except TooManyBad as error:
            self.bad.write_unlogged(error.bad)
            raise
        except TooManyNonFinite as error:
            return self._roll_back(error)
        finally:
            self.data.close()
            self.report.close()

    def _train(self, preemption: Preemption) -> Outcome:
        if self.first_step < self.end:
            with self.log.meter.clock.stopped():
                self.task.before_first_step(self.engine, self.first_step, self.report)
        steps = max(0, self.end - self.first_step)
        batches = self.log.noted(self.data.batches(self.first_step, steps * self.stepper.micro_batches))
        for step in range(self.first_step, self.end):
            with self.profile.of(step):
                self._take(step, batches)
                stop = self._conclude(step + 1, preemption)
            if stop and step + 1 < self.end:
                self.report.say(f"stopped at step {step + 1}, as asked; the same command resumes from there")
                return Outcome.STOPPED
        return Outcome.COMPLETE

    def _take(self, step: int, batches: Iterator[Batch]) -> None:
        """Take a step's batches, and learn from them unless the step is to be skipped. Does not wait for the device."""
        self.phases.step = step
        if step in self.left_out:
            self.stepper.pass_over(step, batches, self.log.meter)
            self.log.passed_over()
        else:
            self.stepper.train(step, batches, self.log.meter)
            self.log.learned(step)

    def _conclude(self, done: int, preemption: Preemption) -> bool:
        """Report, evaluate and save after `done` steps, where due. Return whether to stop."""
        settings = self.recipe.run
        self.report.advance(done)
        with self.phases("agreement"):
            stop = preemption.agreed()
        last = stop or done == self.end
        evaluate = done == self.end or done % settings.eval_every == 0
        every = self.task.probe_every
        probe = every is not None and (done == self.end or done % every == 0)
        save = last or done % settings.save_every == 0
        # At a save, too: a resumed run then logs the same
        if evaluate or probe or save or done % settings.log_every == 0:
            self._log(done, evaluate, probe)
            save = save or self.log.save_overdue
        every = settings.histogram_every
        if every is not None and done % every == 0:
            with self.phases("logging"), self.log.meter.clock.stopped():
                self.report.histograms(done, histograms(self.engine, self.world))
        if save:
            with self.phases("save"), self.log.meter.clock.stopped():
                self._save(done, last)
        return stop

    def _log(self, done: int, evaluate: bool, probe: bool) -> None:
        with self.phases("logging"):
            metrics = self.log.metrics(done)
        if evaluate:
            metrics |= self.task.evaluate(self.engine, done, self.report)
        if probe:
            metrics |= self.task.probe(self.engine, done, self.report)
        self.log.write(done, metrics)

    def _save(self, done: int, last: bool) -> None:
        """Start to save. The next log step reports a failure; after the last step it is raised."""
        self.report.flush()
        facts = Facts(done, counters(self.engine), self.identity, self.recipe.plain())
        self.saver.start(capture(self.engine, self.world), facts)
        if last and (problem := self.saver.wait()):
            raise CheckpointError(problem)

    def _mark_complete(self) -> None:
        """Create the file `complete`, since a launcher's status 0 does not always mean success."""
        complete = self.recipe.run.dir / "complete"
        if self.world.rank == 0:
            with Writing()(complete), suppress(FileExistsError):
                complete.touch(exist_ok=False)  # does not follow links

    def _roll_back(self, error: TooManyNonFinite) -> Outcome:
        """End this attempt; the next one skips the batches after which no gradient was finite."""
        folder = self.recipe.run.dir
        if self.left_out:
            raise TrainingError(
                f"{error}, after the run had rolled back once: start again with a lower optim.lr, or with "
                f"engine.precision=fp32; to try once more, remove {folder}/left-out.json"
            )
        problem = ""
        if self.world.rank == 0:
            try:
                path = leave_out(folder, error.steps)
            except OSError as failure:
                problem = (
                    f"{error}, and {folder}/left-out.json, which would skip these, cannot be "
                    f"written ({failure.strerror or failure}): free space there, and start the same command again"
                )
            else:
                self.report.say(f"{error}: rolling back to the last checkpoint, skipping these steps, see {path}")
        if problem := self.world.from_first(problem):
            raise TrainingError(problem)
        self.saver.wait()
        self.world.barrier()
        self.engine.deepspeed.destroy()
        return Outcome.ROLLED_BACK
