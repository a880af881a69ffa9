"""Evaluate frozen features: `maskfeat probe`, in a checkout. `--help` has the arguments."""

from pipeline.commands.probe import main
from pipeline.train.command import leave

if __name__ == "__main__":
    leave(main)
