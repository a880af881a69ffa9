"""Make the golden file of videos by running SlowFast's code, of which nothing is in this project.

    PYTHONPATH=tests python tests/golden/make_video.py SLOWFAST

SLOWFAST is a checkout of github.com/facebookresearch/SlowFast (287ec00); see make.py for what else it takes. The models
are narrow ones in the geometry of the configurations k400_MVITv2_S_16x4_{MaskFeat_PT,FT} and, for tubelets, of a plain
transformer with the patches and positions of k400_VIT_B_16x4; and MViTv2-S whole.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # looks through all imported modules, so before the empty ones are there
from golden.clips import CLASSES, CLIPS, FRAMES, MASKS, SIZE, STEPS, STEPS_PER_EPOCH, clips, masks, weights
from golden.formula import exact_input
from golden.make import Recorder, replace_imports
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
ROOT = Path(sys.argv[1]).resolve() / "configs" / "masked_ssl"
WIDENS = [[1, 2.0], [2, 2.0], [4, 2.0]]
NARROW = ["MVIT.EMBED_DIM", 16, "MVIT.DEPTH", 5, "MVIT.DIM_MUL", WIDENS, "MVIT.HEAD_MUL", WIDENS]
TUBELETS = ["MVIT.PATCH_KERNEL", [2, 16, 16], "MVIT.PATCH_STRIDE", [2, 16, 16], "MVIT.PATCH_PADDING", [0, 0, 0]]
PLAIN = [
    *("MVIT.EMBED_DIM", 128, "MVIT.NUM_HEADS", 2, "MVIT.DEPTH", 2, "MVIT.DIM_MUL", [], "MVIT.HEAD_MUL", []),
    *("MVIT.POOL_Q_STRIDE", [], "MVIT.POOL_KV_STRIDE_ADAPTIVE", None, "MVIT.POOL_KVQ_KERNEL", None),
    *("MVIT.USE_ABS_POS", True, "MVIT.REL_POS_SPATIAL", False, "MVIT.REL_POS_TEMPORAL", False),
    *("MVIT.RESIDUAL_POOLING", False, *TUBELETS),
]


def config(kind: str, *settings: Any, frames: int = FRAMES, size: int = SIZE) -> Any:
    """A configuration of SlowFast, `kind` "MaskFeat_PT" or "FT", changed by `settings`."""
    from slowfast.config.defaults import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(ROOT / f"k400_MVITv2_S_16x4_{kind}.yaml")
    cfg.merge_from_list(["NUM_GPUS", 0, "DATA.TRAIN_CROP_SIZE", size, "DATA.TEST_CROP_SIZE", size])
    cfg.merge_from_list(["DATA.NUM_FRAMES", frames, "MODEL.NUM_CLASSES", CLASSES])
    # 10 steps of 5 epochs, 4 of them warm-up, at a rate that moves a small model
    cfg.merge_from_list(["SOLVER.BASE_LR", 2e-3, "SOLVER.MAX_EPOCH", 5, "SOLVER.WARMUP_EPOCHS", 2.0])
    cfg.merge_from_list(list(settings))
    cfg.MASK.PRETRAIN_DEPTH = [cfg.MVIT.DEPTH - 1]
    return cfg


def strides(*blocks: int) -> list[Any]:
    """The settings of query strides of a narrow model, 2 in these blocks."""
    return ["MVIT.POOL_Q_STRIDE", [[block, 1, *[2 if block in blocks else 1] * 2] for block in range(5)]]


def filled(model: nn.Module) -> nn.Module:
    """A model with the formula's weights; its buffers, of filters, stay."""
    model.load_state_dict(weights({key: list(value.shape) for key, value in model.named_parameters()}), strict=False)
    return model.eval()


def shapes(model: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def pretraining(cfg: Any, inputs: Tensor, mask: Tensor) -> tuple[Any, Tensor, Tensor]:
    """The model, its predictions and the official target of normalised inputs."""
    from slowfast.models.masked import MaskMViT

    model = filled(MaskMViT(cfg))
    with torch.no_grad():
        (predictions,), labels = model([inputs, None, mask.float()])
    return model, predictions, labels[0][0]


def logits(cfg: Any, inputs: Tensor) -> tuple[Any, Tensor]:
    """A classifier and its logits."""
    from slowfast.models.video_model_builder import MViT

    model: Any = filled(MViT(cfg))
    model.head.act = None  # a softmax over the logits
    with torch.no_grad():
        return model, model([inputs])


def trajectory(model: Any, cfg: Any, inputs: Tensor) -> dict[str, Any]:
    """Losses, gradient norms and rates of SlowFast's own training loop, and what it ends at."""
    from slowfast.models.optimizer import construct_optimizer
    from train_net import train_epoch

    optimizer = construct_optimizer(model, cfg)
    of = {id(p): name for name, p in model.named_parameters()}
    decayed = sorted(of[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"])
    recorder, scaler = Recorder(), torch.amp.GradScaler("cpu", enabled=False)
    for epoch in range(STEPS // STEPS_PER_EPOCH):
        steps = range(epoch * STEPS_PER_EPOCH, (epoch + 1) * STEPS_PER_EPOCH)
        loader = [([inputs, None, masks()[step].float()], [], None, None, {}) for step in steps]
        train_epoch(loader, model, optimizer, scaler, recorder, epoch, cfg)
    model.eval()
    with torch.no_grad():
        predictions = model([inputs, None, masks()[0].float()])[0][0]
    norms = torch.stack([p.detach().double().norm() for p in model.parameters()])
    return {"steps": torch.tensor(recorder.steps).double(), "predictions": predictions, "norms": norms, "keys": decayed}


def whole() -> tuple[dict[str, list[int]], Tensor, dict[str, list[int]]]:
    """Keys of MViTv2-S, some predictions of it, and keys of its classifier."""
    from slowfast.models.video_model_builder import MViT

    inputs = exact_input(clips(16, 224)[:1])
    mask = (torch.arange(8 * 7 * 7).reshape(1, 8, 7, 7) * 5) % 13 < 5
    model, predictions, _ = pretraining(config("MaskFeat_PT", frames=16, size=224), inputs, mask)
    return shapes(model), predictions[::61], shapes(MViT(config("FT", frames=16, size=224)))


def main() -> None:
    inputs, mask = exact_input(clips()), masks()[0]
    got: dict[str, Any] = {}
    keys: dict[str, Any] = {}

    cfg = config("MaskFeat_PT", *NARROW, *strides(1, 2), "AUG.MASK_WINDOW_SIZE", list(MASKS))
    model, got["predictions"], got["targets"] = pretraining(cfg, inputs, mask)
    keys["pretraining"] = shapes(model)
    trained = trajectory(model.train(), cfg, inputs)
    keys["decayed"] = trained.pop("keys")
    got |= {f"trained_{key}": value for key, value in trained.items()}

    model, got["logits"] = logits(config("FT", *NARROW, *strides(1, 2, 4)), inputs)
    keys["fine_tuned"] = shapes(model)
    model, got["uneven_logits"] = logits(config("FT", *NARROW, *strides(1, 2, 4), size=80), inputs[..., :80, :80])
    keys["uneven_fine_tuned"] = shapes(model)

    plain = [*PLAIN, "AUG.MASK_WINDOW_SIZE", list(MASKS)]
    model, got["tubelet_predictions"], _ = pretraining(config("MaskFeat_PT", *plain), inputs, mask)
    keys["tubelet_pretraining"] = shapes(model)
    model, got["tubelet_logits"] = logits(config("FT", *PLAIN), inputs)
    keys["tubelet_fine_tuned"] = shapes(model)

    keys["small_pretraining"], got["small_predictions"], keys["small_fine_tuned"] = whole()
    assert len(inputs) == CLIPS
    np.savez_compressed(HERE / "video.npz", **{key: np.asarray(value) for key, value in got.items()})
    (HERE / "video_keys.json").write_text(json.dumps(keys) + "\n")
    for key, value in got.items():
        print(key, tuple(value.shape), value.abs().mean().item())


if __name__ == "__main__":
    replace_imports()
    sys.path[:0] = [str(ROOT.parents[1]), str(ROOT.parents[1] / "tools")]
    main()
