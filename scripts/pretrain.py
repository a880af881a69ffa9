"""Pre-train a vision transformer with MaskFeat: `maskfeat pretrain`, in a checkout. `--help` has the arguments."""

from pipeline.commands.pretrain import main
from pipeline.train.command import leave

if __name__ == "__main__":
    leave(main)
