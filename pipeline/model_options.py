"""The options of networks that a recipe may set by `model.options`."""

from typing import Annotated

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

Rate = Annotated[float, Field(ge=0, lt=1)]


class Options(TypedDict, total=False):
    """Arguments of timm's `VisionTransformer`, `Beit` and `Eva` with which the model sees all patches of an image.

    The last three belong to `model.encoders.mvit.Options` only.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[misc]

    patch_size: Annotated[int, Field(ge=1, le=1024)]
    embed_dim: Annotated[int, Field(ge=1, le=2**16)]
    depth: Annotated[int, Field(ge=1, le=128)]
    num_heads: Annotated[int, Field(ge=1, le=1024)]
    mlp_ratio: Annotated[float, Field(ge=0.1, le=64)]
    swiglu_mlp: bool
    scale_mlp: bool
    scale_mlp_norm: bool
    qkv_bias: bool
    qk_norm: bool
    scale_attn_norm: bool
    proj_bias: bool
    init_values: Annotated[float, Field(ge=0, le=100)] | None
    class_token: bool
    reg_tokens: Annotated[int, Field(ge=0, le=1024)]
    num_reg_tokens: Annotated[int, Field(ge=0, le=1024)]
    no_embed_class: bool
    use_abs_pos_emb: bool
    use_rel_pos_bias: bool
    use_shared_rel_pos_bias: bool
    pre_norm: bool
    final_norm: bool
    drop_rate: Rate
    pos_drop_rate: Rate
    proj_drop_rate: Rate
    attn_drop_rate: Rate
    drop_path_rate: Rate
    stages: list[Annotated[int, Field(ge=0, le=128)]]
    q_stride_blocks: list[Annotated[int, Field(ge=0, le=128)]]
    kv_stride: Annotated[int, Field(ge=1, le=64)]


# Arguments that have a setting of their own
INSTEAD = {"img_size": "data.image_size", "pretrained": "model.init", "checkpoint_path": "model.init"}
