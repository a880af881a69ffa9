"""Draw predictions for your own pictures: `maskfeat predict`, in a checkout. `--help` has the arguments."""

import sys

from pipeline.commands.predict import main
from shards.program import quietly

if __name__ == "__main__":
    with quietly():
        sys.exit(main())
