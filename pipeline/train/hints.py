"""Hints about settings that are valid together, but probably not intended."""

from pipeline.sections import Optim, Run
from pipeline.train.engine import warmup_steps


def hints(run: Run, optim: Optim, steps_per_epoch: float, end: int, validates: bool) -> list[str]:
    """Return lines for the operator on settings that have no effect, such as a warm-up longer than the run.

    Args:
        run, optim: settings of the run.
        steps_per_epoch: may be fractional.
        end: the number of steps of the complete run.
        validates: whether there is a validation set.
    """
    found, warmup = [], warmup_steps(optim, steps_per_epoch)
    if warmup >= end:
        found.append(
            f"optim.warmup_epochs={optim.warmup_epochs:g} are {warmup:,} steps, but the run ends at step {end:,}: the "
            "learning rate does not reach its peak"
        )
    if validates and run.eval_every >= end:
        found.append(f"run.eval_every={run.eval_every}, but the run ends at step {end:,}: only that step is validated")
    if run.histogram_every is not None and not {"tensorboard", "wandb"} & {*run.boards}:
        found.append("run.histogram_every has no effect: none of run.boards shows histograms, add tensorboard or wandb")
    return found
