"""Settings of the target."""

from typing import Literal

from pydantic import Field

from pipeline.settings import LocalPath, Place, Section, Text


class TargetSettings(Section):
    """What is predicted at masked patches. `kind` is a key of `pipeline.targets.registry.TARGETS`."""

    kind: Text = "hog"
    teacher: Place | None = (
        None  # for kind=features or labels: a timm name, or a folder that timm or scripts/export.py wrote
    )
    teacher_weights: LocalPath | None = None  # of a timm name, from a file; None: timm downloads them
    loss: Literal["cosine", "mse"] = "cosine"  # for kind=features
    tokenizer: LocalPath | None = None  # for kind=tokens: what scripts/words.py wrote, or weights of a dVAE's encoder
    top: int = Field(5, ge=1, le=1000)  # for kind=labels: the teacher's likeliest classes of a patch that count
