"""Settings of the masks."""

from typing import Literal

from pydantic import Field

from pipeline.settings import Section, Share

# What mask.kind=null means, of images and of clips. Neither is accepted for the other, so both always equal null
KINDS_OF_NULL = ("block", "cube")


class MaskSettings(Section):
    """The choice of hidden patches."""

    kind: Literal["block", "cube", "tube", "frame", "random"] | None = None  # None: blocks for images, cubes for clips
    ratio: Share = 0.4
    repeats: int = Field(1, ge=1, le=64)  # masks per crop or clip; optim.batch_size counts each
