"""Find the visual words of a data set: `maskfeat words`, in a checkout. `--help` has the arguments."""

from pipeline.commands.words import main
from pipeline.train.command import leave

if __name__ == "__main__":
    leave(main)
