"""Export a run's encoder or classifier: `maskfeat export`, in a checkout. `--help` has the arguments."""

import sys

from pipeline.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
