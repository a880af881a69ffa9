"""Settings of the masks."""

from typing import Literal

from pydantic import Field

from pipeline.settings import Section, Share


class MaskSettings(Section):
    """Which patches are hidden."""

    kind: Literal["block", "cube", "tube", "frame", "random"] | None = None  # None: blocks of images, cubes of clips
    ratio: Share = 0.4
    repeats: int = Field(1, ge=1, le=64)  # masks of each crop or clip in a step; optim.batch_size counts all of them
