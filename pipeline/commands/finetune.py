"""Fine-tune a pre-trained vision transformer to name the classes of labelled images or videos.

    maskfeat finetune RECIPE model.init=WEIGHTS [section.key=value ...]

RECIPE is a name that --list prints, or the path of a YAML file; WEIGHTS is what `maskfeat export` wrote, or a
checkpoint of SlowFast, mmpretrain, MAE or timm. Without model.init it trains from scratch. Both data sets need labels.
Runs stop, resume and end like those of `maskfeat pretrain`.

Examples, each on one line:

    maskfeat finetune vit_base_100e model.init=weights data.shards=/data/train data.validation=/data/val

    maskfeat finetune --processes 2 small data.shards=train data.validation=val
"""

from pipeline.finetune.config import FinetuneRecipe
from pipeline.finetune.task import Finetuning
from pipeline.train.command import train


def main() -> int:
    """Exit status 0: the run is complete; 1: it cannot go on; 2: it was not understood; 75: it was asked to stop."""
    return train(str(__doc__), FinetuneRecipe, Finetuning)
