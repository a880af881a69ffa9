"""The model card of a run's exported weights: what they are, how they were trained, how to use them."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
import yaml

from model.maskfeat import MaskFeat
from pipeline.checkpoints.checkpoint import Facts
from pipeline.config import Recipe
from pipeline.files import entries
from pipeline.pretrain.baselines import read_baselines
from pipeline.targets.registry import TARGETS
from shards.secrets import masked_values

# No license: it is for those to choose who publish the weights
_FRONT = {
    "library_name": "timm",
    "pipeline_tag": "image-feature-extraction",
    "tags": ["maskfeat", "self-supervised", "vision-transformer", "image-feature-extraction", "timm"],
}

_CARD = """\
---
{front}---

# {name} pre-trained with MaskFeat

A vision transformer of {parameters:.1f} million parameters for {size}x{size} images, pre-trained by
predicting {targets} of masked patches
([Wei et al., 2022](https://arxiv.org/abs/2112.09133)). It has no classifier. Its feature of an image is the mean of its
{grid} patch tokens, {width} numbers; no loss reached the output of its class token.

## Use

```python
import timm, torch
from PIL import Image

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # "hf-hub:USER/NAME" once it is uploaded
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = transform(Image.open("image.jpg").convert("RGB"))[None]
with torch.no_grad():
    feature = model(image)  # (1, {width})
    tokens = model.forward_features(image)[:, {prefix}:]  # (1, {patches}, {width})
```

With `num_classes=N` the model gets a fresh classifier to fine-tune. Images are resized (bicubic) and cropped to
{size}x{size}, and normalised with mean {mean} and deviation {std}.

## Training

{training}

Losses are means over masked patches, of {loss}. All that decides the numbers of the run, its data
set included:

```yaml
{identity}```

Exported with torch {torch} and timm {timm}.

## Citation

```bibtex
@inproceedings{{wei2022maskfeat,
  title     = {{Masked Feature Prediction for Self-Supervised Visual Pre-Training}},
  author    = {{Wei, Chen and Fan, Haoqi and Xie, Saining and Wu, Chao-Yuan and Yuille, Alan and
               Feichtenhofer, Christoph}},
  booktitle = {{Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)}},
  year      = {{2022}},
}}
```
"""


def model_card(
    run: Path,
    facts: Facts,
    model: MaskFeat,
) -> str:
    """Markdown with the YAML front matter of the Hugging Face hub.

    Args:
        run: the run's folder, of whose metrics.jsonl and baselines.json losses are quoted as far as they are there.
        facts: of the checkpoint.
        model: as in the checkpoint.
    """
    recipe, encoder = Recipe.model_validate(facts.recipe), model.encoder
    grid, target = model.view.prediction_layout, TARGETS[recipe.target.kind]
    return _CARD.format(
        front=yaml.safe_dump(_FRONT, sort_keys=False),
        name=recipe.model.name,
        parameters=sum(parameter.numel() for parameter in encoder.parameters()) / 1e6,
        size=recipe.data.image_size,
        grid=grid,
        patches=grid.cells,
        width=model.view.width,
        prefix=model.view.prefix,
        mean=recipe.model.mean,
        std=recipe.model.std,
        targets=target.described,
        loss=target.loss_name(recipe.target),
        training=table(_training(run, facts, recipe)),
        identity=quoted(facts.identity),
        torch=torch.__version__,
        timm=timm.__version__,
    )


def _training(run: Path, facts: Facts, recipe: Recipe) -> dict[str, str]:
    images = facts.step * recipe.optim.batch_size
    rows = {
        "steps": f"{facts.step:,} of {recipe.optim.batch_size:,} images: {images:,} in all",
        "computed in": f"{recipe.engine.precision}, weights and moments in fp32",
    }
    told = [line for line in logged(run) if line["step"] <= facts.step]
    if told:
        rows[f"training loss at step {told[-1]['step']:,}"] = number(told[-1].get("loss"), ".4f")
    validated = [line for line in told if "val_loss" in line]
    if validated:
        rows[f"validation loss at step {validated[-1]['step']:,}"] = number(validated[-1]["val_loss"], ".4f")
    if validated and (baselines := read_baselines(run)):
        named = {
            "zero": "predicting zero",
            "mean": "the best constant prediction",
            "copy": "copying the nearest visible frame",
            "untrained": "the untrained model",
        }
        rows |= {f"validation loss of {named[key]}": number(baselines[key], ".4f") for key in named if key in baselines}
    return rows


def number(value: object, form: str) -> str:
    """Format a number from a log by `form`."""
    return format(value, form) if type(value) in (int, float) else "not finite"  # which logs write as null


def table(rows: dict[str, str]) -> str:
    """Markdown of names and values."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def quoted(identity: dict[str, Any]) -> str:
    """A run's identity as YAML without secrets, for a block of code, which nothing in it ends."""
    return yaml.safe_dump(masked_values(identity), sort_keys=False).replace("```", "~~~")


def logged(run: Path) -> list[dict[str, Any]]:
    """The entries of a run's metrics.jsonl, none if there is no such file or it cannot be read."""
    with suppress(OSError):
        return list(entries(run / "metrics.jsonl"))
    return []
