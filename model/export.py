"""An encoder in timm's folder layout, which `timm.create_model("local-dir:FOLDER")` and the Hugging Face hub read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.models import VisionTransformer, save_for_hf
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
    if classes:
        encoder.pretrained_cfg["label_names"] = list(classes)
    # A LayerNorm is behind the pooling or before it
    fc_norm = "fc_norm" if isinstance(encoder, VisionTransformer) else "use_fc_norm"
    save_for_hf(
        encoder,
        str(folder),
        safe_serialization=True,
        model_args={
            "img_size": image_size,
            "num_classes": encoder.num_classes,
            "global_pool": "avg",
            fc_norm: not isinstance(encoder.fc_norm, nn.Identity),
            **options,
        },
    )
    share(folder / "model.safetensors")
