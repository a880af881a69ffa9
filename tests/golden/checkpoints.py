"""Checkpoints as the published codes write them: their keys and shapes, which keys.json holds, with formula weights."""

import json
from pathlib import Path
from typing import Any

import torch
from golden.formula import weights
from torch import Tensor

KEYS = json.loads((Path(__file__).parent / "keys.json").read_text())
ENTRY = {"slowfast": "model_state", "mmpretrain": "state_dict"}
BUFFERS = ("hogs.", "target_generator.")  # of the target's filters


def tensors(code: str, kind: str) -> dict[str, Tensor]:
    """By key, of `code` "slowfast" or "mmpretrain" and `kind` "pretraining" or "fine_tuned"."""
    shapes = KEYS[code][kind]
    made = weights({key: shape for key, shape in shapes.items() if not key.startswith(BUFFERS)})
    return {key: made.get(key, torch.ones(shape)) for key, shape in shapes.items()}


def write(path: Path, code: str, state: dict[str, Any], **options: Any) -> Path:
    """Save `state` with what else such checkpoints hold; `options` go to torch.save."""
    rest = {
        "slowfast": {"epoch": 299, "optimizer_state": {"state": {}}, "cfg": "TASK: ssl\n"},
        "mmpretrain": {"meta": {}},
    }
    torch.save({ENTRY[code]: state, **rest[code]}, path, **options)
    return path
