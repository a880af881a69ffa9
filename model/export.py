"""Write an encoder in timm's folder layout, which timm, transformers and the Hugging Face hub read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.models import VisionTransformer, save_for_hf
from torch import nn

from model.encoders.timm_vit import TimmViT
from model.size import ImageSize, Sides
from model.writing import os_errors, share


def export_timm(
    encoder: TimmViT,
    folder: Path,
    *,
    image_size: Sides,
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
        encoder: a result of `build_encoder`, whose features are its patch tokens after the LayerNorm; or
            a classifier from `model.convert.classifier`.
        folder: created if missing.
        image_size: the side of square inputs, or height and width, in pixels.
        options: the options of `build_encoder` besides the name and image size.
        mean, std: the normalisation of each channel, for values in [0, 1].
        crop: share of the largest centred crop that evaluation takes.
        classes: class names, in the order of the head's outputs; none: they are omitted.
    """
    kept = ("architecture", "first_conv", "classifier")  # the other entries describe timm's own weights of that name
    encoder.pretrained_cfg = {key: encoder.pretrained_cfg[key] for key in kept} | {
        "tag": "maskfeat",
        "num_classes": encoder.num_classes,
        "input_size": (3, *ImageSize.of(image_size)),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": crop,
        "mean": mean,
        "std": std,
    }
    # The LayerNorm is after the pooling or before it
    fc_norm = "fc_norm" if isinstance(encoder, VisionTransformer) else "use_fc_norm"
    with os_errors(folder / "model.safetensors"):
        save_for_hf(
            encoder,
            str(folder),
            safe_serialization=True,
            model_config={"label_names": list(classes)} if classes else None,
            model_args={
                "img_size": image_size,
                "global_pool": "avg",
                fc_norm: not isinstance(encoder.fc_norm, nn.Identity),
                **options,
            },
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
