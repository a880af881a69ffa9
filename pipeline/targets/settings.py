"""Settings of the target."""

from typing import Literal

from pydantic import Field

from pipeline.settings import LocalPath, Place, Section, Text


class TargetSettings(Section):
    """The target that the model predicts at masked patches, see docs/explanation/targets.md."""

    kind: Text = "hog"
    """A key of `pipeline.targets.registry.TARGETS`: `hog` (the paper's choice), `hog_scales` (of cells of four sizes),
    `pixels` (normalised by patch), `features` (of a frozen teacher), `tokens` (of a tokenizer) or `labels` (of a
    classifier)."""
    teacher: Place | None = None
    """For `features` and `labels`: a timm model, such as `vit_base_patch16_224.dino`, or a folder that `maskfeat
    export` or timm wrote. A run is bound to the SHA-256 of its weights."""
    teacher_weights: LocalPath | None = None
    """A file with weights for the model that `target.teacher` names; null: those that timm downloads."""
    loss: Literal["cosine", "mse"] = "cosine"
    """For `features`: `cosine` (the paper), or `mse` of tokens of mean 0 and variance 1."""
    tokenizer: LocalPath | None = None
    """For `tokens`: a folder that `maskfeat words` wrote, or the weights of a dVAE's encoder, a file or a folder. A run
    is bound to their SHA-256."""
    top: int = Field(5, ge=1, le=1000)
    """For `labels`: number of the teacher's likeliest classes of a patch that count."""
