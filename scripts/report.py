"""Print the progress and results of a run: `maskfeat report`, in a checkout. `--help` has the arguments."""

import sys

from pipeline.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
