"""Fine-tune a pre-trained vision transformer: `maskfeat finetune`, in a checkout. `--help` has the arguments."""

from pipeline.commands.finetune import main
from pipeline.train.command import leave

if __name__ == "__main__":
    leave(main)
