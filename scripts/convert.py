"""Convert a published MaskFeat checkpoint: `maskfeat convert`, in a checkout. `--help` has the arguments."""

import sys

from pipeline.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
