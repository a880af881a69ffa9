"""The settings of a fine-tuning recipe against the published ones, and its initial model."""

from pathlib import Path

import pytest
import torch
from launching import finetune_recipe

from model.convert import fill
from model.maskfeat import MaskFeat, build_encoder
from model.weights import TIMM, Weights
from pipeline.config import Recipe, load
from pipeline.finetune.build import build_classifier, layer_groups
from pipeline.finetune.config import FinetuneRecipe
from pipeline.settings import ConfigError


def test_rates_fall_from_layer_to_layer_and_only_matrices_decay(tmp_path: Path) -> None:
    """Layer 0 embeds, block i is layer i + 1, all after the last block is one more, as in the published codes."""
    recipe = finetune_recipe("none", "none", tmp_path, "optim.layer_decay=0.5", "optim.weight_decay=0.1")
    model = build_classifier(recipe, 3)
    depth = len(model.encoder.blocks)

    def layer(name: str) -> int:
        name = name.removeprefix("encoder.")
        if name.startswith(("cls_token", "pos_embed", "patch_embed.")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth + 1

    name_of = {parameter: name for name, parameter in model.named_parameters()}
    seen = {}
    for group in layer_groups(model, recipe.optim):
        for parameter in group["params"]:
            seen[name_of[parameter]] = (group["lr_scale"], group["weight_decay"])
    assert seen == {
        name: (0.5 ** (depth + 1 - layer(name)), 0.1 if parameter.ndim > 1 else 0.0)
        for name, parameter in model.named_parameters()
    }


def test_starts_from_pretrained_weights_but_for_norm_and_head(tmp_path: Path) -> None:
    encoder = build_encoder("vit_tiny_patch16_224", 32, embed_dim=32, depth=2, num_heads=1)
    MaskFeat(encoder)
    weights = encoder.state_dict()
    recipe = finetune_recipe("none", "none", tmp_path)
    model = build_classifier(recipe, 3)
    notes = fill(model, Weights(tmp_path, TIMM, weights))
    state = model.encoder.state_dict()
    assert state.keys() - weights.keys() == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert all(torch.equal(state[name], weights[name]) for name in state.keys() & weights.keys())
    assert torch.equal(state["fc_norm.weight"], torch.ones(32)) and not state["head.bias"].any()
    assert 1e-5 < state["head.weight"].std() < 3e-5
    assert notes[0].startswith("encoder.fc_norm.weight") and "norm.weight, norm.bias passed over" in notes[1]

    classifier = Weights(tmp_path, TIMM, {name: tensor + 1 for name, tensor in state.items()})  # fine-tuned before
    again = build_classifier(recipe, 3)
    fill(again, classifier)
    assert torch.equal(again.encoder.cls_token, state["cls_token"] + 1)
    assert torch.equal(again.encoder.fc_norm.weight, torch.ones(32))


@pytest.mark.parametrize("name", ["small", "small_video"])
def test_small_recipes_fine_tune_the_model_of_the_pre_training_recipe_of_their_name(name: str) -> None:
    before = load(Recipe, name, ["data.shards=a"])
    recipe = load(FinetuneRecipe, name, ["data.shards=a", "data.validation=b"])
    assert recipe.model == before.model
    assert (recipe.data.clip, recipe.data.image_size) == (before.data.clip, before.data.image_size)


@pytest.mark.parametrize(
    ("name", "epochs", "warmup", "batch", "rate", "decay", "drop_path"),
    [
        ("vit_base_100e", 100, 20, 4096, 1.6e-2, 0.65, 0.1),
        ("vit_base_100e_slowfast", 100, 20, 512, 2e-3, 0.65, 0.1),
        ("vit_large_50e", 50, 5, 256, 1e-3, 0.75, 0.1),
    ],
)
def test_recipes_are_the_published_ones(
    name: str, epochs: int, warmup: int, batch: int, rate: float, decay: float, drop_path: float
) -> None:
    recipe = load(FinetuneRecipe, name, ["data.shards=a", "data.validation=b"])
    optim, augment = recipe.optim, recipe.augment
    assert (optim.epochs, optim.warmup_epochs, optim.batch_size, optim.layer_decay) == (epochs, warmup, batch, decay)
    assert optim.lr * batch / 256 == pytest.approx(rate) and (optim.weight_decay, optim.clip) == (0.05, None)
    assert recipe.model.options == {"drop_path_rate": drop_path}
    assert (augment.randaugment, augment.erasing, augment.smoothing) == (9, 0.25, 0.1)
    assert (augment.mixup, augment.cutmix, augment.cutmix_share) == (0.8, 1.0, 0.5)
    assert recipe.data.crop_scale == (0.08, 1) and recipe.data.validation_crop == 224 / 256


def test_a_patch_that_does_not_divide_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size=40 is not a multiple of the 16-pixel patch"):
        build_classifier(finetune_recipe("none", "none", tmp_path, "data.image_size=40"), 3)
