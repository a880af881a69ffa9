"""Write the model card of a run's exported weights: what they are, how they were trained, how to use them."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
import yaml

from model.export_video import loader
from model.maskfeat import MaskFeat
from model.size import ImageSize
from pipeline.checkpoints.checkpoint import Facts
from pipeline.config import Recipe, TrainingRecipe
from pipeline.data.settings import Data
from pipeline.files import entries
from pipeline.pixels import Statistics
from pipeline.pretrain.baselines import IMAGES, file_of, read_baselines
from pipeline.report.result import BASELINES
from pipeline.targets.registry import TARGETS
from shards.secrets import masked_values
from shards.text import counted

# No license: whoever publishes the weights chooses it
_FRONT = {
    "library_name": "timm",
    "pipeline_tag": "image-feature-extraction",
    "tags": ["maskfeat", "self-supervised", "vision-transformer", "image-feature-extraction", "timm", "transformers"],
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
    feature = model(image)  # (1, {width})
    tokens = model.forward_features(image)[:, {prefix}:]  # (1, {patches}, {width})
```

The same numbers by transformers:

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("FOLDER")  # "USER/NAME" once it is uploaded
model = AutoModel.from_pretrained("FOLDER").eval()
with torch.no_grad():
    outputs = model(**processor(Image.open("image.jpg").convert("RGB")))
feature = outputs.pooler_output  # (1, {width})
tokens = outputs.last_hidden_state[:, {prefix}:]  # (1, {patches}, {width})
```

With `num_classes=N`, timm gives the model a fresh classifier to fine-tune, and so does `num_labels=N` for transformers'
`AutoModelForImageClassification`. Images are resized (bicubic) and cropped to {size}, and normalised with mean
{mean} and deviation {std}.
"""

_USE_OF_CLIPS = """\
## Use

```python
{loader}```

`outputs` are its features, (1, {width}). {clip}
"""

_CARD = """\
---
{front}---

# {name} pre-trained with MaskFeat

A vision transformer of {parameters:.1f} million parameters for {inputs}, pre-trained by
predicting {targets} of masked patches
([Wei et al., 2022](https://arxiv.org/abs/2112.09133)). {encoding}It has no classifier. Its feature of {one} is
the mean of its {grid} patch tokens, {width} numbers{unused}.

{use}
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

_VISIBLE = """\
In training it encoded the visible patches only, and a small decoder predicted the others
([He et al., 2022](https://arxiv.org/abs/2111.06377), [Wang et al., 2023](https://arxiv.org/abs/2303.05251)).
"""


def model_card(
    run: Path,
    facts: Facts,
    model: MaskFeat,
) -> str:
    """Return Markdown with the YAML front matter of the Hugging Face hub.

    Args:
        run: the run's folder; losses are quoted from its metrics.jsonl and baselines.json, if present.
        facts: those of the checkpoint.
        model: the model of the checkpoint.
    """
    recipe, encoder = Recipe.model_validate(facts.recipe), model.encoder
    view, target = model.view, TARGETS[recipe.target.kind]
    size, frames, name = recipe.data.size, recipe.data.frames, recipe.model.name
    class_token = any(parameter.endswith(("cls_token", "class_token")) for parameter, _ in encoder.named_parameters())
    use = (_USE_OF_IMAGES if frames is None else _USE_OF_CLIPS).format(
        size=size,
        patches=view.prediction_layout.cells,
        width=view.width,
        prefix=view.prefix,
        mean=recipe.model.mean,
        std=recipe.model.std,
        loader="" if frames is None else loader(encoder, name),
        clip="" if frames is None else clip_of(recipe.data, recipe.model.statistics),
    )
    return _CARD.format(
        front=front(_FRONT, frames),
        name=name,
        parameters=sum(parameter.numel() for parameter in encoder.parameters()) / 1e6,
        inputs=inputs_of(size, frames),
        encoding=_VISIBLE if recipe.model.decoder else "",
        one="an image" if frames is None else "a clip",
        grid=view.prediction_layout,
        width=view.width,
        unused="; no loss reached the output of its class token" if class_token else "",
        use=use,
        targets=target.described,
        loss=target.loss_name(recipe.target),
        training=table(_training(run, facts, recipe)),
        identity=quoted(facts.identity),
        torch=torch.__version__,
        timm=timm.__version__,
    )


def _training(run: Path, facts: Facts, recipe: Recipe) -> dict[str, str]:
    each = f", {recipe.masks} masks of each crop" if recipe.masks > 1 else ""
    rows = {
        "steps": f"{steps_of(facts, recipe)}: {facts.step * recipe.optim.batch_size:,} in all{each}",
        "computed in": f"{recipe.engine.precision}, weights and moments in fp32",
    }
    told = [line for line in logged(run) if line["step"] <= facts.step]
    if any("loss/image" in line for line in told):
        rows["inputs"] = "clips of videos, and images as clips of one frame, in steps of one kind each"
    if told:
        rows[f"training loss at step {told[-1]['step']:,}"] = number(told[-1].get("loss"), ".4f")
    validated = [line for line in told if "val_loss" in line]
    if validated:
        rows[f"validation loss at step {validated[-1]['step']:,}"] = number(validated[-1]["val_loss"], ".4f")
        rows |= _beside(read_baselines(run), "")
        if (loss := validated[-1].get(f"val_{IMAGES}_loss")) is not None:  # in a mixture of images and videos
            rows[f"validation loss of images at step {validated[-1]['step']:,}"] = number(loss, ".4f")
            rows |= _beside(read_baselines(run, file_of(IMAGES)), "images, ")
    return rows


def _beside(baselines: dict[str, Any], of: str) -> dict[str, str]:
    """Return the rows of losses to compare with."""
    named = BASELINES | {"untrained": "the untrained model"}
    return {f"validation loss of {of}{named[key]}": number(baselines[key], ".4f") for key in named if key in baselines}


def front(entries: dict[str, Any], frames: int | None) -> str:
    """Return the front matter of a card; for clips, task and library differ."""
    if frames is not None:
        tags = [tag.replace("image-", "video-") for tag in entries["tags"] if tag not in ("timm", "transformers")]
        tags.append("video")
        entries = {"pipeline_tag": entries["pipeline_tag"].replace("image-", "video-"), "tags": tags}
    return yaml.safe_dump(entries, sort_keys=False)


def inputs_of(size: ImageSize, frames: int | None) -> str:
    """Describe the inputs of a network."""
    return f"{size} images" if frames is None else f"clips of {frames} frames of {size} pixels"


def steps_of(facts: Facts, recipe: TrainingRecipe) -> str:
    """Describe how many steps a checkpoint has seen, and how many inputs."""
    return f"{facts.step:,} of {recipe.optim.batch_size:,} {recipe.inputs}"


def clip_of(data: Data, statistics: Statistics) -> str:
    """Describe the frames of a clip, and their normalisation, in a sentence."""
    clip = data.clip
    assert clip is not None
    taken = {
        "nominal": f"taken evenly from {clip.frames * clip.stride / 30:.3g} seconds of the video",
        "stride": f"{counted(int(clip.stride), 'frame')} of the video apart",
        "fps": f"taken {clip.fps or 0:g} times a second",
        "segments": "one of each of as many equal parts of the video",
    }[clip.sampling]
    return (
        f"A clip is {counted(clip.frames, 'frame')} of {data.size} pixels,\n"
        f"{taken}, normalised with mean {statistics.mean} and deviation {statistics.std}."
    )


def number(value: object, form: str) -> str:
    """Format a number from a log by `form`."""
    return format(value, form) if type(value) in (int, float) else "not finite"  # which logs write as null


def table(rows: dict[str, str]) -> str:
    """Return a Markdown table of names and values."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def quoted(identity: dict[str, Any]) -> str:
    """Return a run's identity as YAML without secrets, safe inside a code block."""
    return yaml.safe_dump(masked_values(identity), sort_keys=False).replace("```", "~~~")


def logged(run: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's metrics.jsonl, none if the file is missing or cannot be read."""
    with suppress(OSError):
        return list(entries(run / "metrics.jsonl"))
    return []
