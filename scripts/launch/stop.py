"""Signal the ranks of a run on this machine: `maskfeat stop`, in a checkout. `--help` has the arguments."""

import sys

from pipeline.supervisor.stop import main

if __name__ == "__main__":
    sys.exit(main())
