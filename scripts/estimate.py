"""Estimate the needs of a recipe on many GPUs: `maskfeat estimate`, in a checkout. `--help` has the arguments."""

import sys

from pipeline.commands.estimate import main
from shards.program import quietly

if __name__ == "__main__":
    with quietly():
        sys.exit(main())
