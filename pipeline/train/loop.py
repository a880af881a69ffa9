"""Pre-training, from the start or from the newest checkpoint, to the end."""

import json
import math
import os
import resource
import shutil
from dataclasses import asdict
from itertools import chain
from typing import Any, TextIO

import torch
from torch import Tensor

from pipeline.build import build_model, init_identity, start_from_init
from pipeline.config import ConfigError, Recipe
from pipeline.data.exact import ExactData
from pipeline.data.quarantine import BadSample, TooManyBad, too_many
from pipeline.data.stream import StreamData
from pipeline.random import mix_int
from pipeline.targets.objective import Objective, squared_errors
from pipeline.train import checkpoint
from pipeline.train.checkpoint import Checkpoint, CheckpointError, Facts
from pipeline.train.engine import DTYPES, Engine, total_steps
from pipeline.train.evaluate import Validation, mean_target
from pipeline.train.monitor import Clock, Metrics, Monitor, keep_lines
from pipeline.train.preemption import Preemption
from pipeline.train.state import capture, counters, restore
from pipeline.train.world import World

MEAN_BATCHES = 64  # micro-batches of each rank that the mean predictor is measured on

# Settings of `data` that a run may change between its lives: they decide where bytes come from and how fast.
FREE = {
    "shards",
    "validation",
    "validation_samples",
    "cache",
    "cache_size",
    "deadline",
    "bad_in_a_row",
    "bad_share",
    "read_threads",
    "requests",
    "decode_threads",
}


class TrainingError(Exception):
    """Training cannot go on. The message says why and what to do."""


class Pretraining:
    """One life of a run: from building or resuming it to its end. All ranks do everything together.

    Raises:
        ConfigError, ShardError, CheckpointError, DataError, TrainingError: one line that says what to do.
    """

    def __init__(self, recipe: Recipe, world: World) -> None:
        if recipe.engine.compile != "none" and world.gpu is None and not _has_cpp_compiler():
            raise ConfigError(
                "engine.compile needs a C++ compiler on a CPU: install g++, name one in CXX, or set it to none"
            )
        torch.manual_seed(recipe.run.seed)
        self.recipe, self.world = recipe, world
        self.micro_batch = recipe.micro_batch(world.size)
        self.micro_batches = recipe.optim.batch_size // (self.micro_batch * world.size)

        # Data and targets
        model = build_model(recipe)
        self.data = _training_data(recipe, world, self.micro_batch)
        self.bad: list[BadSample] = []  # of this rank, since the last log
        self.all_bad = self.all_seen = 0  # of all ranks, since this process began
        self.objective = Objective(
            model.grid, model.patch, recipe.mask.ratio, DTYPES[recipe.engine.precision], recipe.engine.compile != "none"
        )
        self.validation = None
        if recipe.data.validation:
            self.validation = Validation(recipe.data.validation, recipe, world, self.micro_batch, self.objective)

        # Model, from the newest checkpoint if there is one
        self.identity = identity(recipe, self.data.identity)
        resumed = self._find_checkpoint()
        if resumed:
            model.load_state_dict(resumed.weights())
        else:
            start_from_init(model, recipe)
        if recipe.engine.compile == "all":
            model.compile(dynamic=False)
        steps_per_epoch = self.data.samples / recipe.optim.batch_size
        scheduled = total_steps(recipe.optim, steps_per_epoch)
        self.start = resumed.facts.step if resumed else 0
        self.end = min(scheduled, recipe.run.max_steps or scheduled)
        parameters = sum(parameter.numel() for parameter in model.parameters())  # before ZeRO 3 takes them apart
        self.engine = Engine(model, recipe, world, steps_per_epoch)
        if resumed:
            restore(self.engine, resumed)

        # What a person watches
        self.monitor: Monitor | None = None
        if world.rank == 0:
            recipe.run.dir.mkdir(parents=True, exist_ok=True)
            (recipe.run.dir / "config.yaml").write_text(recipe.to_yaml())
            self.monitor = Monitor(recipe.run.dir, recipe.model_dump(mode="json"), self.start, self.end)
            self.monitor.say(
                f"{parameters / 1e6:.1f}M parameters, {self.data.samples:,} images, "
                f"{world.size} ranks x {self.micro_batches} x {self.micro_batch} images a step, "
                f"ZeRO {recipe.engine.zero_stage}, {recipe.engine.precision}"
            )
            for note in self.data.notes:
                self.monitor.say(f"note: {note}")
            self.monitor.say(
                f"steps {self.start} to {self.end} of a schedule of {scheduled}"
                if self.start < self.end
                else f"nothing to do: {recipe.run.dir} has reached step {self.start}"
            )

    def run(self) -> bool:
        """Train, reporting, validating and saving on the way; whether to the end, or else until asked to stop."""
        try:
            with Preemption(self.world) as preemption:
                return self._train(preemption)
        except TooManyBad as error:
            self._leave_bad_samples(error.bad)
            raise
        finally:
            if self.monitor:
                self.monitor.close()

    def _train(self, preemption: Preemption) -> bool:
        engine, settings = self.engine, self.recipe.run
        baselines = self._baselines() if self.start < self.end and self.validation else {}
        trace = self._open_trace()

        batches = self.data.batches(self.start, (self.end - self.start) * self.micro_batches)
        losses = torch.zeros(2, device=self.world.device)  # their sum over images, and how many images that were
        clock = Clock()
        for step in range(self.start, self.end):
            engine.schedule.step_update(step)
            ids: list[int] = []
            for micro_batch in range(self.micro_batches):
                # Drop path, where a recipe has it, draws from torch's generator: here, too, no state is saved
                counter = (step * self.micro_batches + micro_batch) * self.world.size + self.world.rank
                torch.manual_seed(mix_int(mix_int(settings.seed) + counter))
                with clock.waiting():
                    batch = next(batches)
                example = self.objective.example(batch.images, batch.mask_keys)
                predictions = engine.predict(example.images, example.mask, example.masked)
                # A bad sample's weight is 0, and its slot still counts: so the gradients of the others stay the same
                errors = squared_errors(predictions, example.targets, len(batch.images)) * batch.weights
                engine.backward(errors.mean())
                engine.update()
                losses += torch.stack([errors.detach().sum(), batch.weights.sum()])
                ids += batch.request.ids.tolist()
                self.bad += batch.bad
            clock.steps += 1
            if trace:
                trace.write(json.dumps({"step": step, "ids": ids}) + "\n")

            # On most steps that is all, and nothing above waits for the device
            done = step + 1
            if self.monitor:
                self.monitor.advance(done)
            validate = self.validation is not None and (done == self.end or done % settings.eval_every == 0)
            stop = preemption.agreed()
            save = stop or done == self.end or done % settings.save_every == 0
            if validate or save or done % settings.log_every == 0:  # a save too: a resumed run then logs the same
                metrics = self._metrics(done, losses, clock)
                if validate:
                    metrics["val_loss"], metrics["val_bad_samples"] = self._validate(done)
                if self.monitor:
                    self.monitor.log(done, metrics)
                    self.monitor.levels(done, baselines if validate else {})
                losses.zero_()
                clock = Clock()
            if save:
                with clock.stopped():
                    self._save(done)
            if stop and done < self.end:
                if self.monitor:
                    self.monitor.say(f"stopped at step {done}, as asked; the same command goes on from there")
                return False
        return True

    def _metrics(self, done: int, losses: Tensor, clock: Clock) -> Metrics:
        """The numbers of the steps since the last log, over all ranks."""
        counters = self.data.counters()
        numbers = [clock.wait / clock.elapsed, len(self.bad), *counters.values()]
        sums = torch.cat([losses.double(), torch.tensor(numbers, dtype=torch.float64, device=losses.device)])
        loss_sum, images, data_wait, bad, *counts = self.world.sum(sums).tolist()
        self.all_bad += int(bad)
        self.all_seen += clock.steps * self.recipe.optim.batch_size
        if bad:
            self._log_bad_samples()
        data = self.recipe.data
        if too_many(self.all_bad, self.all_seen, data.bad_in_a_row, data.bad_share):
            raise TrainingError(
                f"{self.all_bad:,} of {self.all_seen:,} samples are bad, see {self.recipe.run.dir}/quarantine.jsonl: "
                "mend the data set, or raise data.bad_share"
            )
        loss = loss_sum / images if images else math.nan  # none at all where every sample was bad
        if images and not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {done}: start again with a lower optim.lr, or go on from the last "
                f"checkpoint in {self.recipe.run.dir} with engine.precision=fp32"
            )
        return {
            "loss": loss,
            "grad_norm": self.engine.grad_norm(),
            "lr": self.engine.learning_rate,
            "images_per_second": clock.steps * self.recipe.optim.batch_size / clock.elapsed,
            "data_wait": data_wait / self.world.size,
            "bad_samples": bad,
            "skipped_steps": self.engine.deepspeed.skipped_steps,
            "memory_gib": _peak_memory(self.world.device) / 2**30,
        } | {f"data/{name}": count for name, count in zip(counters, counts, strict=True)}

    def _log_bad_samples(self) -> None:
        """Write those of all ranks to quarantine.jsonl."""
        bad = sorted(chain(*self.world.gather(self.bad)), key=lambda sample: (sample.step, sample.id))
        if self.monitor:
            self.monitor.quarantine([asdict(sample) | self.data.names(sample.id) for sample in bad])
        self.bad.clear()

    def _leave_bad_samples(self, last: list[BadSample]) -> None:
        """Write those that no log has yet to a file of this rank's own, since the other ranks may be gone."""
        path = self.recipe.run.dir / f"quarantine-rank{self.world.rank}.jsonl"
        path.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in [*self.bad, *last]))

    def _validate(self, done: int) -> tuple[float, int]:
        assert self.validation
        loss, bad = self.validation.loss(self.engine)
        picture = self.validation.picture(self.engine)
        if self.monitor:
            self.monitor.picture(done, picture)
        return loss, bad

    def _baselines(self) -> Metrics:
        """Validation losses of constant predictions and, if it is still there, of the untrained model."""
        assert self.validation
        path = self.recipe.run.dir / "baselines.json"
        of = {"validation": self.validation.identity, "samples": self.recipe.data.validation_samples}
        known = self.world.from_first(json.loads(path.read_text()) if path.exists() else {})
        if known.get("of") != of:
            if self.monitor:
                self.monitor.say("measuring the losses of predicting zero and of predicting the mean target ...")
            batches = self.data.batches(0, MEAN_BATCHES)
            zero, mean = self.validation.constant_losses(mean_target(self.objective, batches, self.world))
            known = {"of": of, "zero": zero, "mean": mean}
            if not self.start:
                known["untrained"], _ = self._validate(0)
            if self.monitor:
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(known) + "\n")
                partial.rename(path)
        losses = {name: known[name] for name in ("zero", "mean", "untrained") if name in known}
        if self.monitor:
            self.monitor.say("validation loss: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
        return {name: losses[name] for name in ("zero", "mean")}

    def _find_checkpoint(self) -> Checkpoint | None:
        """The newest valid checkpoint, chosen and checked by rank 0 for all."""
        found: Checkpoint | None = None
        problem = None
        if self.world.rank == 0:
            try:
                found = checkpoint.newest(self.recipe.run.dir / "checkpoints", report=print)
                if found:
                    checkpoint.check_identity(found, self.identity)
            except CheckpointError as error:
                problem = str(error)
        found, problem = self.world.from_first((found, problem))
        if problem:
            raise CheckpointError(problem)
        return found

    def _save(self, done: int) -> None:
        if self.monitor:
            self.monitor.flush()
        checkpoint.save(
            self.recipe.run.dir / "checkpoints",
            self.world,
            capture(self.engine, self.world),
            Facts(done, counters(self.engine), self.identity, self.recipe.model_dump(mode="json")),
            keep=self.recipe.run.keep,
        )

    def _open_trace(self) -> TextIO | None:
        if not self.recipe.run.trace_samples:
            return None
        folder = self.recipe.run.dir
        if self.world.rank == 0:  # for ranks that this life no longer has, too
            for path in folder.glob("samples-rank*.jsonl"):
                keep_lines(path, self.start - 1)
        self.world.barrier()
        return (folder / f"samples-rank{self.world.rank}.jsonl").open("a", buffering=1)


def identity(recipe: Recipe, data: dict[str, Any]) -> dict[str, Any]:
    """All that decides a run's numbers: the lives of one run must agree in it. JSON, "section.key" to value."""
    settings = recipe.model_dump(mode="json")
    return (
        {"run.seed": recipe.run.seed}
        | data
        | {
            f"{section}.{key}": value
            for section in ("data", "mask", "model", "optim")
            for key, value in settings[section].items()
            if key not in FREE
        }
        | {"model.init": init_identity(recipe)}
    )


def _training_data(recipe: Recipe, world: World, micro_batch: int) -> ExactData | StreamData:
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
