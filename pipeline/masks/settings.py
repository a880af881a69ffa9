"""Settings of the masks."""

from pipeline.settings import Section, Share


class MaskSettings(Section):
    """Which patches are hidden."""

    ratio: Share = 0.4
