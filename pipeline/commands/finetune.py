"""Fine-tune a pre-trained vision transformer to name the classes of labelled images or videos.

    deepspeed scripts/finetune.py RECIPE model.init=WEIGHTS [section.key=value ...]

RECIPE is a name in pipeline/recipes/finetune or the path of a YAML file; WEIGHTS is what scripts/export.py wrote, or a
checkpoint of SlowFast, mmpretrain, MAE or timm. Without model.init it trains from scratch. Both data sets need labels.
Runs stop, resume and end like those of scripts/pretrain.py.

Examples, each on one line:

    deepspeed scripts/finetune.py vit_base_100e model.init=weights data.shards=/data/train data.validation=/data/val

    DS_ACCELERATOR=cpu deepspeed --num_gpus 2 scripts/finetune.py small data.shards=train data.validation=val
"""

from pipeline.finetune.config import FinetuneRecipe
from pipeline.finetune.task import Finetuning
from pipeline.train.command import train


def main() -> int:
    """Exit status 0: the run is complete; 1: it cannot go on; 2: it was not understood; 75: it was asked to stop."""
    return train(str(__doc__), FinetuneRecipe, Finetuning)
