"""An encoder in timm's folder layout, which timm, transformers and the Hugging Face hub read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.models import Beit, save_for_hf
from torch import nn

from model.encoders.timm_vit import TimmViT
from model.weights import share


def export_timm(
    encoder: TimmViT,
    folder: Path,
    *,
    image_size: int,
    options: dict[str, Any],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    crop: float = 1.0,
    classes: Sequence[str] = (),
) -> None:
    """Write model.safetensors and config.json.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` and `transformers.AutoModel.from_pretrained("FOLDER")` read
    them.

    Args:
        encoder: as `build_encoder` built it, whose features are its patch tokens after the LayerNorm; or
            a classifier, as `model.convert.classifier` gives it.
        folder: created if it is not there.
        image_size: side in pixels.
        options: what the encoder was built with besides its name and image size.
        mean, std: of the images' normalisation, per channel, of values in [0, 1].
        crop: share of the short side that is seen when the model is used.
        classes: names, in the order of the head's outputs; none: they are not told.
    """
    kept = ("architecture", "first_conv", "classifier")  # the rest describes timm's own weights of that name
    encoder.pretrained_cfg = {key: encoder.pretrained_cfg[key] for key in kept} | {
        "tag": "maskfeat",
        "num_classes": encoder.num_classes,
        "input_size": (3, image_size, image_size),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": crop,
        "mean": mean,
        "std": std,
    }
    # A LayerNorm is behind the pooling or before it
    fc_norm = {"use_fc_norm" if isinstance(encoder, Beit) else "fc_norm": not isinstance(encoder.fc_norm, nn.Identity)}
    save_for_hf(
        encoder,
        str(folder),
        safe_serialization=True,
        model_config={"label_names": list(classes)} if classes else None,
        model_args={"img_size": image_size, "global_pool": "avg", **fc_norm, **options},
    )
    _keep_number_of_classes_once(folder / "config.json")
    share(folder / "model.safetensors")


def _keep_number_of_classes_once(config: Path) -> None:
    """Remove `num_classes` from the arguments of the network: transformers passes it as well and would then fail.

    timm takes the number from where it stands otherwise, outside of `model_args`.
    """
    stated = json.loads(config.read_bytes())
    stated["model_args"].pop("num_classes", None)
    config.write_text(json.dumps(stated, indent=2) + "\n", "utf-8")
