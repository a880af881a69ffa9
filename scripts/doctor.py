"""Find the problems of a cluster before a run does: `maskfeat doctor`, in a checkout. `--help` has the arguments."""

from pipeline.commands.doctor import main
from pipeline.train.command import leave

if __name__ == "__main__":
    leave(main)
