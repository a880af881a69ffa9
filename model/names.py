"""The names of the parts of a MaskFeat in other code bases.

The names are those of the published code bases: github.com/facebookresearch/SlowFast, open-mmlab/mmpretrain and, before
it, open-mmlab/mmselfsup; for clips mmpretrain's projects/maskfeat_video, which builds on open-mmlab/mmaction2.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The names in a code base for the parts of `MaskFeat`, and for encoder.fc_norm and encoder.head of classifiers.

    An MViT has torchvision's names, except its LayerNorm after the pooling, which is fc_norm as in other encoders.

    Attributes:
        code: the name of the code base.
        renamed: pairs of prefixes, ours and theirs, as regular expressions; the first match counts.
        ignored: prefixes of their keys that have no counterpart.
    """

    code: str
    renamed: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]

    def key(self, name: str) -> str:
        """Return their name for our `name`."""
        for ours, theirs in self.renamed:
            if re.match(ours, name):
                return re.sub(ours, theirs, name, count=1)
        return name


_MVIT = (  # the original names of an MViT's parts, by our names, which are torchvision's
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
OURS = Layout("this project", (), ())  # of a whole pre-training model
TIMM = Layout(
    "timm",
    ((r"encoder\.", ""),),
    ignored=("mask_token", "decoder_", "lm_head.", "cls_pt_"),  # from the pre-training of MAE and BEiT
)
