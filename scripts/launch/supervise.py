"""Keep a run going: `maskfeat supervise`, in a checkout. `--help` has the arguments."""

import sys

from pipeline.supervisor.supervise import main

if __name__ == "__main__":
    sys.exit(main())
