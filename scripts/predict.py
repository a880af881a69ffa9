"""Draw predictions for your own pictures: `maskfeat predict`, in a checkout. `--help` has the arguments."""

import sys

from pipeline.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
