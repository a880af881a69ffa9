"""Settings of the target."""

from typing import Literal

from pydantic import Field

from pipeline.settings import LocalPath, Place, Section, Text


class TargetSettings(Section):
    """The target at masked patches. `kind` is a key of `pipeline.targets.registry.TARGETS`."""

    kind: Text = "hog"
    teacher: Place | None = (
        None  # for kind=features or labels: a timm name, or a folder in timm's layout or of maskfeat export
    )
    teacher_weights: LocalPath | None = None  # a file with weights for a timm name; None: timm downloads them
    loss: Literal["cosine", "mse"] = "cosine"  # for kind=features
    tokenizer: LocalPath | None = None  # for kind=tokens: output of maskfeat words, or weights of a dVAE's encoder
    top: int = Field(5, ge=1, le=1000)  # for kind=labels: number of the teacher's likeliest classes per patch
