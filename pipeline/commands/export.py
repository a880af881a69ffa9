"""Export a run's encoder, or a fine-tuned run's classifier, as ordinary timm / Hugging Face weights.

    maskfeat export RUN OUT [--step N] [--format timm torch onnx maskfeat] [--average]

RUN is a run.dir; its newest valid checkpoint is exported, or that of step N, for any ZeRO stage and number of ranks.
The output in OUT depends on the formats:

    timm      model.safetensors, config.json and README.md, a model card: a folder ready for the Hugging Face hub
    torch     encoder.pt, a state dict in timm's names, for torch.load(..., weights_only=True)
    onnx      encoder.onnx and encoder.onnx.data, compared with torch in ONNX Runtime
    maskfeat  maskfeat.safetensors and maskfeat.json: the whole pre-training model, with its mask token and its head,
              which maskfeat predict and pipeline.api.load_model read

For a run on clips, tensors have the names of torchvision's MViT, or of timm's blocks, and the model card has Python
code that reads them. For a run on images, timm is enough, without this project:

    timm.create_model("local-dir:OUT", pretrained=True)                 # features
    timm.create_model("local-dir:OUT", pretrained=True, num_classes=10) # with a fresh head to fine-tune
    transformers.AutoModel.from_pretrained("OUT")                       # the same features

Examples:

    maskfeat export runs/vit_base_300e weights
    maskfeat export runs/vit_base_300e weights --step 100000 --format timm onnx
"""

import io
from collections.abc import Sequence
from pathlib import Path

import torch

from model.classifier import Classifier
from model.export import export_timm
from model.export_video import export_video
from model.maskfeat import MaskFeat
from model.onnx import OnnxError, export_onnx
from model.weights import Normalisation
from pipeline.card import model_card
from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.checkpoint import Checkpoint, CheckpointError
from pipeline.config import Recipe
from pipeline.files import output
from pipeline.finetune.build import class_names
from pipeline.finetune.card import classifier_card
from pipeline.finetune.config import FinetuneRecipe
from pipeline.settings import ConfigError
from pipeline.trained import load_model, recipe_of
from pipeline.whole_model import write_model
from shards.terminal import Parser, note, prepare, say
from shards.text import in_python

FORMATS = ("timm", "torch", "onnx", "maskfeat")


def write_timm(
    run: Path,
    found: Checkpoint,
    model: MaskFeat | Classifier,
    recipe: Recipe | FinetuneRecipe,
    out: Path,
    average: bool,
) -> None:
    """Write the folder that timm, transformers and the Hugging Face hub read."""
    size, options = recipe.data.image_size, dict(recipe.model.options)
    crop, classes = 1.0, []
    if isinstance(model, Classifier):
        assert isinstance(recipe, FinetuneRecipe)
        card = classifier_card(run, found.facts, model, average)
        crop, classes = recipe.data.validation_crop, class_names(run, model.view.classes)
    else:
        card = model_card(run, found.facts, model)
    (out / "README.md").write_text(card, "utf-8")
    mean, std = recipe.model.statistics
    if recipe.data.frames is None:
        export_timm(
            model.encoder, out, image_size=size, options=options, mean=mean, std=std, crop=crop, classes=classes
        )
    else:
        shown = Normalisation(mean, std)
        name = recipe.model.name
        export_video(model.encoder, out, name=name, options=options, normalisation=shown, crop=crop, classes=classes)


def write(
    formats: Sequence[str],
    run: Path,
    found: Checkpoint,
    model: MaskFeat | Classifier,
    recipe: Recipe | FinetuneRecipe,
    out: Path,
    average: bool,
) -> None:
    """Write the formats to an existing folder, and say how each is read."""
    written = f"step {found.facts.step} -> {out}"
    local, encoder, folder = (in_python(name) for name in (f"local-dir:{out}", f"{out}/encoder.pt", f"{out}"))
    if "timm" in formats:
        write_timm(run, found, model, recipe, out, average)
        how = f"timm.create_model({local}, pretrained=True)"
        say(f"{written}: {how if recipe.data.frames is None else 'README.md has the lines that read it'}")
    if "torch" in formats:
        content = io.BytesIO()  # writing to a file, torch.save does not say why it fails
        torch.save(model.encoder.state_dict(), content)
        (out / "encoder.pt").write_bytes(content.getbuffer())
        say(f"{written}: torch.load({encoder}, weights_only=True)")
    if "onnx" in formats:
        difference = export_onnx(model.encoder, out / "encoder.onnx")
        say(f"{written}: {out}/encoder.onnx, within {difference:.1e} of torch in ONNX Runtime")
    if "maskfeat" in formats and isinstance(model, MaskFeat):
        assert isinstance(recipe, Recipe)
        write_model(out, model, recipe, found.facts.step)
        say(f"{written}: pipeline.api.load_model({folder})")


def main() -> int:
    """Return 0 when OUT is complete, 1 when the run cannot be exported."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="a run.dir of maskfeat pretrain or maskfeat finetune")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--step", type=int, help="step of an older checkpoint")
    parser.add_argument("--format", choices=FORMATS, nargs="+", default=["timm"], help="one or several (default: timm)")
    parser.add_argument("--average", action="store_true", help="export the moving average of optim.average")
    prepare()
    arguments = parser.parse_args()
    run, out = arguments.run, arguments.out
    try:
        found = checkpoint.chosen(run, arguments.step)
        recipe = recipe_of(found)
        model = load_model(found, recipe, arguments.average)
        if "maskfeat" in arguments.format and isinstance(model, Classifier):
            raise ConfigError(f"{run} is a run of fine-tuning, without a head of pre-training: leave out maskfeat")
        with output(out):
            out.mkdir(parents=True, exist_ok=True)
            write(arguments.format, run, found, model, recipe, out, arguments.average)
    except BrokenPipeError:
        raise
    except (CheckpointError, ConfigError, OnnxError, OSError) as error:
        note(f"error: {error}")
        return 1
    return 0
