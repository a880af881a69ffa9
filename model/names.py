"""The names that other codes give to the parts of a MaskFeat.

Names are those that the published codes write: github.com/facebookresearch/SlowFast, open-mmlab/mmpretrain and, before
it, open-mmlab/mmselfsup; of clips those of mmpretrain's projects/maskfeat_video, which builds on open-mmlab/mmaction2.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The names that a code gives to the parts of `MaskFeat`, and of classifiers to encoder.fc_norm and encoder.head.

    A MViT has the names of torchvision's, and its LayerNorm behind the pooling that of other encoders, fc_norm.

    Attributes:
        code: whose names these are.
        renamed: beginnings of our name and of theirs, as regular expressions; the first that matches counts.
        ignored: beginnings of their keys that hold nothing of ours.
    """

    code: str
    renamed: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]

    def key(self, name: str) -> str:
        """Their name of our `name`."""
        for ours, theirs in self.renamed:
            if re.match(ours, name):
                return re.sub(ours, theirs, name, count=1)
        return name


_MVIT = (  # what our names of a MViT's parts, which are torchvision's, become in the codes that it comes from
    (r"encoder\.pos_encoding\.class_token", "cls_token"),
    (r"encoder\.(blocks\.\d+\.attn\.)project\.0\.", r"\1proj."),
    (r"encoder\.(blocks\.\d+\.attn\.)pool_([qkv])\.pool\.", r"\1pool_\2."),
    (r"encoder\.(blocks\.\d+\.attn\.)pool_([qkv])\.norm_act\.0\.", r"\1norm_\2."),
    (r"encoder\.(blocks\.\d+\.mlp\.)0\.", r"\1fc1."),
    (r"encoder\.(blocks\.\d+\.mlp\.)3\.", r"\1fc2."),
    (r"encoder\.(blocks\.\d+\.)project\.", r"\1proj."),
)
SLOWFAST = Layout(
    "SlowFast",
    (
        *_MVIT,
        (r"encoder\.conv_proj\.", "patch_embed.proj."),
        (r"encoder\.head\.1\.", "head.projection."),
        (r"encoder\.norm\.", "pred_head.transforms.0.0."),
        (r"encoder\.fc_norm\.", "norm."),
        (r"encoder\.head\.", "head.projection."),
        (r"encoder\.", ""),
        (r"head\.", "pred_head.projections.0."),
    ),
    ignored=("hogs.",),
)
MMPRETRAIN = Layout(
    "mmpretrain",
    (
        (r"encoder\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
        (r"encoder\.blocks\.(\d+)\.norm", r"backbone.layers.\1.ln"),
        (r"encoder\.blocks\.(\d+)\.mlp\.fc1\.", r"backbone.layers.\1.ffn.layers.0.0."),
        (r"encoder\.blocks\.(\d+)\.mlp\.fc2\.", r"backbone.layers.\1.ffn.layers.1."),
        (r"encoder\.blocks\.", "backbone.layers."),
        (r"encoder\.norm\.", "backbone.ln1."),
        (r"encoder\.fc_norm\.", "backbone.ln2."),
        (r"encoder\.head\.", "head.fc."),
        (r"encoder\.", "backbone."),
        (r"mask_token", "backbone.mask_token"),
        (r"head\.", "neck.fc."),
    ),
    ignored=("target_generator.", "hog_layer.", "data_preprocessor."),
)
MMPRETRAIN_VIDEO = Layout(
    "mmpretrain's video project",
    (
        *((ours, f"backbone.{theirs}") for ours, theirs in _MVIT),
        (r"encoder\.conv_proj\.", "backbone.patch_embed.projection."),
        (r"encoder\.norm\.", "backbone.norm2."),
        (r"encoder\.fc_norm\.", "backbone.norm3."),
        (r"encoder\.head\.", "cls_head.fc_cls."),
        (r"encoder\.", "backbone."),
        (r"mask_token", "backbone.mask_token"),
        (r"head\.", "neck.fc."),
    ),
    ignored=("target_generator.", "data_preprocessor."),
)
TIMM = Layout(
    "timm",
    ((r"encoder\.", ""),),
    ignored=("mask_token", "decoder_", "lm_head.", "cls_pt_"),  # of the pre-training of MAE and BEiT
)
