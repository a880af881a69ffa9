"""Print the progress and results of a run: `maskfeat report`, in a checkout. `--help` has the arguments."""

import sys

from pipeline.commands.report import main
from shards.program import quietly

if __name__ == "__main__":
    with quietly():
        sys.exit(main())
