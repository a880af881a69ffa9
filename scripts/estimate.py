"""Estimate what a recipe takes on many GPUs: `maskfeat estimate`, in a checkout. `--help` has the arguments."""

import sys

from pipeline.commands.estimate import main

if __name__ == "__main__":
    sys.exit(main())
