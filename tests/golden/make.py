"""Make the golden files by running the published codes, of which nothing is in this project.

    python tests/golden/make.py SLOWFAST MMPRETRAIN

SLOWFAST and MMPRETRAIN are checkouts of github.com/facebookresearch/SlowFast (287ec00) and
github.com/open-mmlab/mmpretrain (ee7f2e8). It takes fvcore, iopath, pytorchvideo, simplejson, mmengine, mmcv-lite and
opencv-python-headless on top of this project. What else those codes import on the way (plots, video, detection) is
replaced by empty modules; their models, target, loss, optimizer, schedule and training loop run as they are, on a CPU.
"""

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # looks through all imported modules, so before the empty ones are there
from golden.formula import CLASSES, SIZE, STEPS_PER_EPOCH, batch, exact_input, masks, pictures, weights
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
WIDTH, HEADS, DEPTH = 128, 2, 2
EMPTY = (
    "detectron2 detectron2.layers matplotlib matplotlib.pyplot matplotlib.patches modelindex "
    "modelindex.load_model_index modelindex.models modelindex.models.Model pandas pytorchvideo.losses "
    "pytorchvideo.losses.soft_target_cross_entropy scipy scipy.io scipy.ndimage scipy.special sklearn sklearn.metrics "
    "vision vision.fair vision.fair.slowfast vision.fair.slowfast.ava_evaluation"
)


class Empty(types.ModuleType):
    """A module from which anything can be imported."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def replace_imports() -> None:
    for name in EMPTY.split():
        sys.modules[name] = Empty(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    import pytorchvideo.layers.distributed as distributed  # the released one lacks a few names

    for name in ["cat_all_gather", "get_local_process_group", "get_local_rank", "get_local_size", "get_world_size"]:
        setattr(distributed, name, getattr(distributed, name, None))
    distributed.init_distributed_training = None
    torch.cuda.synchronize = lambda: None  # called after every step, also without a GPU


def fill(model: nn.Module) -> dict[str, list[int]]:
    """Give the model the formula's weights, and tell all its keys and shapes; buffers (of filters) stay."""
    parameters = {key: list(value.shape) for key, value in model.named_parameters()}
    model.load_state_dict(weights(parameters), strict=False)
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def slowfast_config(recipe: str, root: Path) -> Any:
    from slowfast.config.defaults import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(root / "configs" / "masked_ssl" / f"in1k_VIT_B_MaskFeat_{recipe}.yaml")
    cfg.merge_from_list(["NUM_GPUS", 0, "DATA.TRAIN_CROP_SIZE", SIZE, "DATA.TEST_CROP_SIZE", SIZE])
    cfg.merge_from_list(["MVIT.EMBED_DIM", WIDTH, "MVIT.NUM_HEADS", HEADS, "MVIT.DEPTH", DEPTH])
    cfg.merge_from_list(["MASK.PRETRAIN_DEPTH", [DEPTH - 1], "MODEL.NUM_CLASSES", CLASSES])
    # 20 steps of 10 epochs, 6 of them warm-up, at a rate that moves a small model
    cfg.merge_from_list(["SOLVER.BASE_LR", 2e-3, "SOLVER.MAX_EPOCH", 10, "SOLVER.WARMUP_EPOCHS", 3.0])
    return cfg


class Recorder:
    """Stands where SlowFast's training loop reports to."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float, float]] = []

    def update_stats(self, top1: Any, top5: Any, loss: float, lr: float, grad_norm: float, *_: Any) -> None:
        self.steps.append((loss, grad_norm, lr))

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def slowfast(root: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    sys.path.insert(0, str(root))
    from slowfast.models.losses import get_loss_func
    from slowfast.models.masked import MaskMViT
    from slowfast.models.optimizer import construct_optimizer
    from slowfast.models.video_model_builder import MViT

    sys.path.insert(0, str(root / "tools"))
    from train_net import train_epoch

    cfg = slowfast_config("PT", root)
    model = MaskMViT(cfg)
    keys = {"pretraining": fill(model)}
    images, mask = exact_input(pictures()), masks()
    got = {}
    with torch.no_grad():
        (predictions,), labels = model([images, None, mask[0].float()])
        loss, _ = get_loss_func(cfg.MODEL.LOSS_FUNC)(reduction="mean")([predictions], labels)
        got |= {"predictions": predictions, "targets": labels[0][0], "loss": loss}
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.DATA.MEAN, cfg.DATA.STD))
        (predictions,), labels = model([(pictures() / 255 - mean) / std, None, mask[0].float()])
        got |= {"normalised_predictions": predictions, "normalised_targets": labels[0][0]}

    optimizer = construct_optimizer(model, cfg)
    of = {id(p): name for name, p in model.named_parameters()}
    keys["decayed"] = sorted(of[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"])
    recorder, scaler = Recorder(), torch.amp.GradScaler("cpu", enabled=False)
    for epoch in range(cfg.SOLVER.MAX_EPOCH):
        steps = range(epoch * STEPS_PER_EPOCH, (epoch + 1) * STEPS_PER_EPOCH)
        # images, nothing, masks of one batch, then labels and what else the loop unpacks
        batches = [(step, batch(step)) for step in steps]
        loader = [([images[index], None, mask[step, index].float()], [], None, None, {}) for step, index in batches]
        train_epoch(loader, model, optimizer, scaler, recorder, epoch, cfg)
    got["steps"] = torch.tensor(recorder.steps, dtype=torch.float64)
    got["trained_norms"] = torch.stack([p.detach().double().norm() for p in model.parameters()])
    with torch.no_grad():
        got["trained_predictions"] = model([images, None, mask[0].float()])[0][0]

    classifier = MViT(slowfast_config("FT", root))
    keys["fine_tuned"] = fill(classifier)
    classifier.head.act = None  # a softmax over the logits
    with torch.no_grad():
        got["logits"] = classifier.eval()([images])
    return got, keys


def mmpretrain(root: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    sys.path.insert(0, str(root))
    import mmpretrain.models  # noqa: F401  registers them
    from mmpretrain.registry import MODELS

    arch = {"embed_dims": WIDTH, "num_layers": DEPTH, "num_heads": HEADS, "feedforward_channels": 4 * WIDTH}
    vit = {"arch": arch, "img_size": SIZE, "patch_size": 16}
    images, mask = exact_input(pictures()), masks()[0]
    model = MODELS.build(
        {
            "type": "MaskFeat",
            "backbone": {"type": "MaskFeatViT", **vit},
            "neck": {"type": "LinearNeck", "in_channels": WIDTH, "out_channels": 108, "norm_cfg": None},
            "head": {"type": "MIMHead", "loss": {"type": "PixelReconstructionLoss", "criterion": "L2"}},
            "target_generator": {"type": "HOGGenerator", "nbins": 9, "pool": 8, "gaussian_window": 16},
        }
    )
    keys, got = {"pretraining": fill(model)}, {}
    with torch.no_grad():
        tokens = model.backbone(images, mask.flatten(1))
        predictions = model.neck((tokens.flatten(0, 1),))[0].unflatten(0, tokens.shape[:2])
        got["predictions"] = predictions[:, 1:][mask.flatten(1)]

    model = MODELS.build(
        {
            "type": "ImageClassifier",
            "backbone": {"type": "VisionTransformer", **vit, "out_type": "avg_featmap", "final_norm": False},
            "head": {"type": "LinearClsHead", "num_classes": CLASSES, "in_channels": WIDTH},
        }
    )
    keys["fine_tuned"] = fill(model)
    with torch.no_grad():
        got["logits"] = model.head(model.extract_feat(images))
    return got, keys


if __name__ == "__main__":
    replace_imports()
    all_keys = {}
    for run, root in zip((slowfast, mmpretrain), sys.argv[1:], strict=True):
        got, all_keys[run.__name__] = run(Path(root).resolve())
        np.savez_compressed(HERE / f"{run.__name__}.npz", **{key: np.asarray(value) for key, value in got.items()})
    (HERE / "keys.json").write_text(json.dumps(all_keys) + "\n")
