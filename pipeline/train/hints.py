"""Hints about runs whose settings are valid, but were hardly meant."""

from pipeline.sections import Optim, Run


def hints(run: Run, optim: Optim, steps_per_epoch: float, end: int, validates: bool) -> list[str]:
    """Return lines for the operator on a run of too few steps for its own settings.

    Args:
        run, optim: settings of the run.
        steps_per_epoch: may be fractional.
        end: the number of steps of the complete run.
        validates: whether there is a validation set.
    """
    found, warmup = [], round(optim.warmup_epochs * steps_per_epoch)
    if warmup >= end:
        found.append(
            f"optim.warmup_epochs={optim.warmup_epochs:g} are {warmup:,} steps, and the run has {end:,}: its learning "
            "rate never reaches its peak"
        )
    if validates and run.eval_every >= end:
        found.append(f"run.eval_every={run.eval_every}, and the run ends at step {end:,}: only that one is validated")
    return found
