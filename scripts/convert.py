"""Convert a published MaskFeat checkpoint: `maskfeat convert`, in a checkout. `--help` has the arguments."""

import sys

from pipeline.commands.convert import main
from shards.program import quietly

if __name__ == "__main__":
    with quietly():
        sys.exit(main())
