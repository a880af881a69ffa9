"""Export a run's encoder or classifier: `maskfeat export`, in a checkout. `--help` has the arguments."""

import sys

from pipeline.commands.export import main
from shards.program import quietly

if __name__ == "__main__":
    with quietly():
        sys.exit(main())
