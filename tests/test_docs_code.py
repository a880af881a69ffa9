"""The Python of the how-to guides runs as it stands."""

import re
from pathlib import Path

import pytest
import torch
from launching import CHECKOUT

from model.export import export_timm
from model.encoders.timm_vit import build_encoder

GUIDES = CHECKOUT / "docs" / "how-to"


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (GUIDES / page).read_text(), re.DOTALL | re.MULTILINE)
