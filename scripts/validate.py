"""Measure a run on a validation set, after training: `maskfeat validate`, in a checkout. `--help` has the arguments."""

from pipeline.commands.validate import main
from pipeline.train.command import leave

if __name__ == "__main__":
    leave(main)
