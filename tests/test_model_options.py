"""`model.options` and `model.name`: accepted ones train, and others are one error before anything is created."""

import json
from typing import Any

import pytest
import timm
import torch
from scripting import Hostile
from timm.models import Beit, Eva, VisionTransformer

from model.classifier import Classifier
from model.encoders import mvit
from model.maskfeat import MaskFeat
from pipeline.build import build_model
from pipeline.config import load, load_recipe
from pipeline.finetune.build import build_classifier
from pipeline.finetune.config import FinetuneRecipe
from pipeline.model_options import Options
from pipeline.settings import ConfigError

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
BEIT = ["model.name=beit_base_patch16_224", "model.position_init=random"]


def settings(options: dict[str, Any], *overrides: str) -> list[str]:
    given = ["data.shards=x", "data.validation=y", "data.image_size=32", f"model.options={json.dumps(options)}"]
    return [*given, *overrides]


def maskfeat(options: dict[str, Any], *overrides: str) -> MaskFeat:
    return build_model(load_recipe("demo", settings(options, *overrides))).train()


def classifier(options: dict[str, Any], *overrides: str) -> Classifier:
    return build_classifier(load(FinetuneRecipe, "small", settings(options, *overrides)), 5).train()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"reg_tokens": 4, "qk_norm": True, "init_values": 1e-5, "class_token": False}),
        ("vit_tiny_patch16_224", {"patch_size": 8, "mlp_ratio": 2, "no_embed_class": True, "pre_norm": True}),
        ("vit_tiny_patch16_224", {"qkv_bias": False, "proj_bias": False, "final_norm": False, "scale_mlp_norm": True}),
        ("vit_tiny_patch16_224", {key: 0.1 for key in Options.__annotations__ if key.startswith(("drop", "attn_d"))}),
        ("vit_tiny_patch16_224", {"scale_attn_norm": True, "pos_drop_rate": 0.1, "proj_drop_rate": 0.1}),
        ("beit_base_patch16_224", {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False, "swiglu_mlp": True}),
        ("beit_base_patch16_224", {"use_abs_pos_emb": True, "init_values": None, "scale_mlp": True}),
    ],
)
def test_options_that_are_taken_train(name: str, options: dict[str, Any]) -> None:
    overrides = [f"model.name={name}", "model.position_init=random"]
    model = maskfeat(SMALL | options, *overrides)
    mask = torch.zeros(2, *model.view.mask_layout.shape, dtype=torch.bool)
    mask[:, 0] = True
    predictions = model(torch.randn(2, 3, 32, 32), mask)
    side = 32 // options.get("patch_size", 16)
    assert predictions.shape == (2 * side, 108 if side == 2 else 27)
    predictions.square().sum().backward()
    assert classifier(SMALL | options, *overrides)(torch.randn(2, 3, 32, 32)).shape == (2, 5)


ALL = "not an option that works here, which are patch_size, embed_dim, depth, num_heads, mlp_ratio, "


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("in_chans", 1, ALL),
        ("num_classes", 3, ALL),
        ("global_pool", "token", ALL),
        ("fc_norm", True, ALL),
        ("pool_include_prefix", True, ALL),
        ("dynamic_img_size", True, ALL),
        ("dynamic_img_pad", True, ALL),
        ("patch_drop_rate", 0.5, ALL),
        ("features_only", True, ALL),
        ("cache_dir", "/", ALL),
        ("scriptable", True, ALL),
        ("pretrained_cfg", {"file": "/etc/passwd"}, ALL),
        ("act_layer", "gelu", ALL),
        ("device", "cuda", ALL),
        ("depht", 2, ALL),
        ("img_size", 64, "set data.image_size instead"),
        ("pretrained", True, "set model.init instead"),
        ("checkpoint_path", "/etc/passwd", "set model.init instead"),
        ("embed_dim", 0, "greater than or equal to 1"),
        ("embed_dim", -8, "greater than or equal to 1"),
        ("embed_dim", 50, "divisible by num_heads"),
        ("embed_dim", 10**9, "less than or equal to 65536"),
        ("embed_dim", True, "embed_dim=true: input should be a valid integer"),
        ("embed_dim", [48], "valid integer"),
        ("embed_dim", None, "embed_dim=null"),
        ("num_heads", 0, "greater than or equal to 1"),
        ("num_heads", 5, "divisible by num_heads"),
        ("depth", 0, "greater than or equal to 1"),
        ("depth", 10**9, "less than or equal to 128"),
        ("depth", 2.5, "valid integer"),
        ("patch_size", 64, "a patch of 64 pixels is larger than an image"),
        ("drop_path_rate", 1, "less than 1"),
        ("drop_rate", -0.1, "greater than or equal to 0"),
        ("attn_drop_rate", float("nan"), "finite"),
        ("mlp_ratio", 0, "greater than or equal to 0.1"),
        ("qkv_bias", "maybe", "valid boolean"),
        ("use_rel_pos_bias", True, "has no option use_rel_pos_bias"),
    ],
)
def test_options_that_cannot_work_are_one_error_that_names_them(option: str, value: Any, message: str) -> None:
    for build in (maskfeat, classifier):
        with pytest.raises(ConfigError) as error:
            build(SMALL | {option: value}, "model.position_init=random")
        text = str(error.value)
        assert f"model.options.{option}" in text and message in text
        assert text.isprintable() and len(text) < 700


def test_sizes_that_do_not_fit_images_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for build in (maskfeat, classifier):
        with pytest.raises(
            ConfigError, match=r"^data\.image_size=32 is not a multiple of the 24-pixel patch of vit_tiny"
        ):
            build(SMALL | {"patch_size": 24})
    monkeypatch.setattr("pipeline.build._memory", lambda: 10**10)
    wide = SMALL | {"embed_dim": 6144, "depth": 12}  # 12 * 12 * 6144^2 weights of 4 bytes
    for build in (maskfeat, classifier):
        with pytest.raises(
            ConfigError, match=r"model\.options\.embed_dim=6144, .*: the weights take 22 GB, but this .* 10"
        ):
            build(wide)


def test_options_of_a_vit_are_not_those_of_a_beit() -> None:
    for option in ("reg_tokens", "class_token", "qk_norm"):
        with pytest.raises(ConfigError, match=rf"model\.options\.{option}=.*: beit_.* has no option {option}"):
            maskfeat(SMALL | {option: 0}, *BEIT)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_base_patch16_999", "timm has no model 'vit_base_patch16_999'; near it: vit_base_patch16_"),
        ("vit_base_patch16_224.nothing", "nothing"),
        ("resnet50", "not a plain vision transformer"),
        ("swin_tiny_patch4_window7_224", "not a plain vision transformer"),
        ("deit_tiny_distilled_patch16_224", "distill"),
        ("vit_tiny_r_s16_p8_224", "patch"),
        ("hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", "timm has no model"),
        ("local-dir:{folder}", "timm has no model"),
        ("{folder}", "timm has no model"),
        ("[" * 5000, "timm has no model"),
    ],
)
def test_other_models_are_one_error_and_nothing_is_loaded(name: str, message: str, tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "num_classes": 0}))
    torch.save(Hostile(tmp_path / "ran"), tmp_path / "pytorch_model.bin")
    for build in (maskfeat, classifier):
        with pytest.raises(ConfigError) as error:
            build({}, f"model.name={name.format(folder=tmp_path)}")
        assert message in str(error.value) and len(str(error.value)) < 700 and str(error.value).isprintable()
    teacher = ["target.kind=features", f"target.teacher={name.format(folder='hf-hub:none/none')}"]
    if "plain" not in message and message not in ("distill", "patch"):  # which a teacher need not be
        with pytest.raises(ConfigError) as error:
            maskfeat(SMALL, *teacher)
        assert len(str(error.value)) < 700 and str(error.value).isprintable()
    assert not (tmp_path / "ran").exists()


def test_trying_a_model_changes_no_random_number() -> None:
    options = SMALL | {"drop_path_rate": 0.1, "drop_rate": 0.1, "pos_drop_rate": 0.1}
    torch.manual_seed(0)
    got = maskfeat(options)
    torch.manual_seed(0)
    encoder = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, num_classes=0, global_pool="avg", fc_norm=False, **options
    )
    want = MaskFeat(encoder, 108, "sincos")
    for name, value in want.state_dict().items():
        assert torch.equal(got.state_dict()[name], value), name


def test_every_option_is_one_of_a_family() -> None:
    families = (VisionTransformer.__init__, Beit.__init__, Eva.__init__, mvit.Options)
    known = set().union(*(family.__annotations__ for family in families))
    assert Options.__annotations__.keys() < known
    assert mvit.Options.__annotations__.keys() < Options.__annotations__.keys()
