"""Settings of the masks."""

from typing import Literal

from pydantic import Field

from pipeline.settings import Section, Share

# The meaning of mask.kind=null for images and for clips. Neither is accepted for the other, so both always equal null
KINDS_OF_NULL = ("block", "cube")


class MaskSettings(Section):
    """The choice of hidden patches."""

    kind: Literal["block", "cube", "tube", "frame", "random"] | None = None
    """`block`: rectangles of an image; of a clip `cube`: boxes, `tube`: rectangles that all frames share, or `frame`:
    whole frames; `random`: any cells, of images and clips; null: `block` for images, `cube` for clips."""
    ratio: Share = 0.4
    """Share of the patches that is hidden."""
    repeats: int = Field(1, ge=1, le=64)
    """Masks of each crop or clip in a step, see docs/explanation/visible.md#several-masks-of-a-crop. `optim.batch_size`
    counts all of them."""
