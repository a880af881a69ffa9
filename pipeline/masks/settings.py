"""Settings of the masks."""

from typing import Literal

from pipeline.settings import Section, Share


class MaskSettings(Section):
    """Which patches are hidden."""

    kind: Literal["block", "cube", "tube", "frame"] | None = None  # None: blocks of images, cubes of clips
    ratio: Share = 0.4
