"""Export a run's encoder as ordinary timm / Hugging Face weights.

    python scripts/export.py RUN OUT

RUN is a run.dir; its newest valid checkpoint is taken, whatever ZeRO stage and number of ranks wrote it. OUT gets
model.safetensors and config.json. Then, anywhere that has timm, without this project:

    timm.create_model("local-dir:OUT", pretrained=True)                 # features
    timm.create_model("local-dir:OUT", pretrained=True, num_classes=10) # with a fresh head to fine-tune
"""

import argparse
import sys
from pathlib import Path

from model.export import export_timm
from model.maskfeat import MaskFeat
from pipeline.build import build_model
from pipeline.config import ConfigError, Recipe
from pipeline.targets.objective import MEAN, STD
from pipeline.train import checkpoint
from pipeline.train.checkpoint import CheckpointError


def load_run(run: Path) -> tuple[MaskFeat, Recipe, int]:
    """The model of a run's newest valid checkpoint, its recipe, and its step.

    Raises:
        CheckpointError: the run has no checkpoint, or no valid one.
    """
    found = checkpoint.newest(run / "checkpoints", report=lambda text: print(text, file=sys.stderr))
    if found is None:
        raise CheckpointError(f"{run} has no checkpoint yet: train to its first run.save_every, or check the path")
    recipe = Recipe.model_validate(found.facts.recipe)
    model = build_model(recipe)
    model.load_state_dict(found.weights())
    return model, recipe, found.facts.step


def main() -> int:
    """Exit status 0 when OUT is complete, 1 when the run cannot be exported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run.dir of scripts/pretrain.py")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    try:
        model, recipe, step = load_run(arguments.run)
        size = recipe.data.image_size
        export_timm(model.encoder, arguments.out, image_size=size, options=recipe.model.options, mean=MEAN, std=STD)
    except (CheckpointError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f'step {step} -> {arguments.out}: timm.create_model("local-dir:{arguments.out}", pretrained=True)')
    return 0


if __name__ == "__main__":
    sys.exit(main())
