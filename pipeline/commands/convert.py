"""Convert a published MaskFeat checkpoint to ordinary timm, torchvision or Hugging Face weights.

    maskfeat convert IN OUT

IN is a checkpoint of SlowFast or of mmpretrain (or mmselfsup): a ViT, or for clips an MViTv2 or a tubelet ViT, of any
width and depth. model.safetensors and config.json are written to OUT: the encoder of a pre-training checkpoint, or the
classifier of a fine-tuned one. For clips, the Python code that reads them is printed.

Example:

    maskfeat convert maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k.pth vit-b
    python -c 'import timm; timm.create_model("local-dir:vit-b", pretrained=True)'

A pre-training run starts from such a folder, or from IN itself, with model.init=IN.
"""

from pathlib import Path

from model.convert import classifier, maskfeat
from model.export import export_timm
from model.export_video import export_video, loader
from model.geometry import geometry
from model.weights import IMAGENET, KINETICS, WeightsError, read
from pipeline.files import output
from shards.terminal import Parser, note, prepare, say
from shards.text import in_python


def main() -> int:
    """Return 0 when OUT is complete, 1 when IN cannot be converted."""
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", metavar="IN", type=Path, help="a file of torch.save")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    prepare()
    arguments = parser.parse_args()
    try:
        weights = read(arguments.checkpoint)
        name, size, frames, options = geometry(weights)
        encoder = classifier(weights) if weights.fine_tuned else maskfeat(weights).encoder
        out = arguments.out
        with output(out):
            if frames is None:
                export_timm(encoder, out, image_size=size, options=options, mean=IMAGENET.mean, std=IMAGENET.std)
            else:
                export_video(encoder, out, name=name, options=options, normalisation=KINETICS)
    except (WeightsError, OSError) as error:
        note(f"error: {error}")
        return 1
    what = "classifier" if weights.fine_tuned else "encoder"
    if frames is None:
        say(f"{what} -> {arguments.out}: timm.create_model({in_python(f'local-dir:{out}')}, pretrained=True)")
    else:
        say(f"{what} -> {arguments.out}:")
        for line in loader(encoder, name).replace("FOLDER", str(arguments.out)).splitlines():
            say(line)
    return 0
