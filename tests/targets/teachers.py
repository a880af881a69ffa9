"""Networks that targets are taken from, for tests: tiny, with random weights, in files."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from golden import dvae
from timm.models import save_for_hf
from torch import nn

TINY: dict[str, Any] = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}


def write_teacher(folder: Path, name: str = "vit_tiny_patch16_224", seed: int = 0, **options: Any) -> Any:
    """Write a random teacher in timm's layout; return it as timm itself has it in memory."""
    torch.manual_seed(seed)
    arguments = TINY | options
    model = timm.create_model(name, **arguments)
    for parameter in model.parameters():  # none of them 0, as some start
        nn.init.normal_(parameter, std=0.2)
    save_for_hf(model, str(folder), safe_serialization=True, model_args=arguments)
    return model.eval()


def write_classifier(folder: Path, name: str, **options: Any) -> Any:
    """Write a random classifier of 11 classes in timm's layout; return it as timm itself has it in memory."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=11, **options)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    save_for_hf(network, str(folder), safe_serialization=True, model_args=options | {"num_classes": 11})
    return network.eval()


def write_dvae(file: Path, names: str = "dall-e") -> Path:
    """Write the weights of the golden dVAE, under the names of DALL-E or FLAVA."""
    golden = json.loads(dvae.FILE.read_text())
    tensors = dvae.weights({name: tuple(shape) for name, shape in golden["shapes"].items()})
    if names == "flava":
        tensors = {
            "image_codebook."
            + name.replace(".block_", ".group.block_")
            .replace(".res_path.", ".res_path.path.")
            .removesuffix(".w")
            .removesuffix(".b")
            + (".weight" if name.endswith(".w") else ".bias"): value
            for name, value in tensors.items()
        }
    torch.save(tensors, file)
    return file
