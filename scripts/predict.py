"""Draw what trained weights make of your own pictures: `--help` has the arguments.

Example:

    python scripts/predict.py cat.jpg dog.jpg --weights runs/photos --neighbours shards/photos
"""

import sys

from pipeline.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
