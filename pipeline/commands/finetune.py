"""Fine-tune a pre-trained vision transformer as a classifier of labelled images or videos.

    maskfeat finetune RECIPE model.init=WEIGHTS [section.key=value ...]

RECIPE is a name that --list prints, or the path of a YAML file; WEIGHTS is an output of `maskfeat export`, or a
checkpoint of SlowFast, mmpretrain, MAE or timm. Without model.init it trains from scratch. Both data sets need
labels. Runs stop, resume and end like those of `maskfeat pretrain`.

Examples, each on one line:

    maskfeat finetune vit_base_100e model.init=weights data.shards=/data/train data.validation=/data/val

    maskfeat finetune --processes 2 small data.shards=train data.validation=val
"""

from pipeline.finetune.config import FinetuneRecipe
from pipeline.finetune.task import Finetuning
from pipeline.train.command import train


def main() -> int:
    """Return 0 for a complete run, 1 for an error, 2 for wrong usage, 75 if asked to stop."""
    return train(str(__doc__), FinetuneRecipe, Finetuning)
