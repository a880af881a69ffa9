"""Draw the predictions of trained weights for your own pictures.

    maskfeat predict IMAGE... --weights RUN|EXPORT [--out PICTURE.png] [--neighbours SHARDS]

Each row shows one image: its centre crop, the visible part, the target, the prediction at masked patches, the
attention of the last block, and the nearest neighbours with the cosines of their features. Losses and the names of the
nearest neighbours are printed as well. For a fine-tuned run, the likeliest class of each image is printed.

--weights takes a run.dir, a folder of maskfeat export, any value of model.init, or the name of a timm model.
Target and prediction need the head of pre-training: a run.dir, or an export with --format maskfeat. Neighbours are
searched in a data set of `maskfeat-shards` or, without --neighbours, among the given images.

Examples:

    maskfeat predict cat.jpg dog.jpg --weights runs/photos --neighbours shards/photos

    maskfeat predict *.jpg --weights weights/photos --out picture.png
"""

from pathlib import Path

import torch
from PIL import Image

from model.weights import WeightsError
from pipeline.checkpoints.checkpoint import CheckpointError
from pipeline.data.errors import DataError
from pipeline.data.pictures import read_pictures
from pipeline.files import output
from pipeline.predict.neighbours import ShardImages
from pipeline.predict.predict import predict
from pipeline.settings import ConfigError
from pipeline.trained import Trained, open_trained
from shards.files import ShardError
from shards.terminal import Parser, note, prepare, say

MOST = 32  # images in a picture
NAMED = 3  # neighbours that are printed
SAMPLES = 2000  # images of a data set in which neighbours are searched


def main() -> int:
    """Return 0 when the picture is written, 1 for an error, 2 for wrong arguments."""
    parser = Parser(__doc__)
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help=f"image files, at most {MOST}")
    parser.add_argument("--weights", required=True, metavar="RUN|EXPORT", help="a run.dir, weights, or a timm model")
    parser.add_argument("--out", type=Path, default=Path("predictions.png"), help="the picture, a .png (%(default)s)")
    parser.add_argument("--step", type=int, help="step of a run's older checkpoint")
    parser.add_argument("--neighbours", metavar="SHARDS", help="folder or URL of a data set")
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help="most images of it to search, evenly spread (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the masks (%(default)s)")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="section.key=value",
        help="settings that the weights do not contain, such as target.tokenizer=PATH for an export",
    )
    prepare()
    arguments = parser.parse_args()
    if len(arguments.images) > MOST:
        parser.error(f"{len(arguments.images)} images are too many for one picture: give at most {MOST}")
    if arguments.samples < 1:
        parser.error(f"--samples {arguments.samples} is not a number above 0")
    if arguments.out.suffix != ".png":
        parser.error(f"--out {arguments.out} is not the name of a .png file")
    try:
        trained = _opened(arguments.weights, arguments.step, arguments.set)
        images = read_pictures(arguments.images, trained.recipe.data.image_size)
        bank = ShardImages(arguments.neighbours, trained, arguments.samples) if arguments.neighbours else None
        found = predict(trained, images, [path.name for path in arguments.images], bank, arguments.seed)
        if bank:
            bank.close()
        with output(arguments.out):
            Image.fromarray(found.draw()).save(arguments.out)
    except BrokenPipeError:
        raise
    except (CheckpointError, ConfigError, DataError, ShardError, WeightsError, OSError) as error:
        note(f"error: {error}")
        return 2 if isinstance(error, ConfigError) else 1
    for row, path in enumerate(arguments.images):
        said = []
        if found.classes:
            label, share = found.classes[row]
            said.append(f"{label} {share:.1%}")
        if made := found.reconstruction:
            said.append(f"loss {made.losses[row]:.4f} (predicting zero: {made.losses_of_zero[row]:.4f})")
        if found.neighbours:
            near = found.neighbours[row]
            named = list(zip(near.names, near.cosines.tolist(), strict=True))[:NAMED]
            said.append("nearest " + ", ".join(f"{name} {cosine:.3f}" for name, cosine in named))
        say(f"{path}: {'; '.join(said) or 'drawn'}")
    say(f"{arguments.weights} -> {arguments.out}")
    return 0


def _opened(weights: str, step: int | None, overrides: list[str]) -> Trained:
    """Open weights for images, on a GPU if there is one, and note what they lack. Raises as `open_trained` does."""
    trained = open_trained(weights, step, overrides)
    if trained.recipe.data.frames is not None:
        raise ConfigError(f"{weights} are weights for clips, and pictures are images: give weights for images")
    for line in trained.notes:
        say(f"note: {line}")
    if trained.model is None and not trained.classes:
        say(
            f"note: {weights} does not have a pre-training head, so nothing is predicted: give a run.dir of "
            "pre-training, or an export with --format maskfeat"
        )
    (trained.model or trained.encoder.network).to("cuda" if torch.cuda.is_available() else "cpu")
    return trained
