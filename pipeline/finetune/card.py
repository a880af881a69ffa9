"""Write the model card of a fine-tuned run's exported weights."""

from pathlib import Path

import timm
import torch

from model.classifier import Classifier
from model.export_video import loader
from pipeline.card import clip_of, front, inputs_of, logged, number, quoted, steps_of, table
from pipeline.checkpoints.checkpoint import Facts
from pipeline.finetune.config import FinetuneRecipe
from pipeline.metrics import OF_AVERAGE

# No license: whoever publishes the weights chooses it
_FRONT = {
    "library_name": "timm",
    "pipeline_tag": "image-classification",
    "tags": ["maskfeat", "vision-transformer", "image-classification", "timm", "transformers"],
}

_USE_OF_IMAGES = """\
## Use

```python
import timm, torch
from PIL import Image

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # "hf-hub:USER/NAME" once it is uploaded
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = transform(Image.open("image.jpg").convert("RGB"))[None]
with torch.no_grad():
    label = model.pretrained_cfg["label_names"][model(image).argmax()]
```

The same by transformers, which names the five most likely classes with their probabilities:

```python
from transformers import pipeline

classify = pipeline("image-classification", model="FOLDER")  # "USER/NAME" once it is uploaded
classes = classify("image.jpg")
```
"""

_USE_OF_CLIPS = """\
## Use

```python
{loader}label = config["pretrained_cfg"]["label_names"][outputs.argmax()]
```

{clip}
"""

_CARD = """\
---
{front}---

# {name} fine-tuned after MaskFeat

A vision transformer of {parameters:.1f} million parameters that tells {classes:,} classes apart, whose names stand in
`config.json`, in {inputs}.

{use}
## Training

{training}

All that decides the numbers of the run, its data set and the weights that it started from included:

```yaml
{identity}```

Exported with torch {torch} and timm {timm}.
"""


def classifier_card(run: Path, facts: Facts, model: Classifier, average: bool) -> str:
    """Return Markdown with the YAML front matter of the Hugging Face hub.

    Args:
        run: the run's folder; accuracies are quoted from its metrics.jsonl, if present.
        facts: those of the checkpoint.
        model: the exported model.
        average: whether its weights are the run's moving average.
    """
    recipe = FinetuneRecipe.model_validate(facts.recipe)
    rows = {
        "steps": steps_of(facts, recipe),
        "weights": f"{'moving average' if average else 'those'} of step {facts.step:,}",
    }
    suffix = OF_AVERAGE if average else ""
    told = [line for line in logged(run) if "val_top1" in line and line["step"] <= facts.step]
    if told:
        for key, name in (("val_top1", "top-1"), ("val_top5", "top-5")):
            rows[f"{name} on validation at step {told[-1]['step']:,}"] = number(told[-1].get(key + suffix), ".2%")
    frames, use = recipe.data.frames, _USE_OF_IMAGES
    if frames is not None:
        code = loader(model.encoder, recipe.model.name)
        use = _USE_OF_CLIPS.format(loader=code, clip=clip_of(recipe.data, recipe.model.statistics))
    return _CARD.format(
        front=front(_FRONT, frames),
        name=recipe.model.name,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        classes=model.view.classes,
        inputs=inputs_of(recipe.data.size, frames),
        use=use,
        training=table(rows),
        identity=quoted(facts.identity),
        torch=torch.__version__,
        timm=timm.__version__,
    )
