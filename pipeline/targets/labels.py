"""Pseudo-labels: a trained classifier's classes for each patch.

Algorithm: Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", CVPR 2022, section 3, after
Jiang et al., "All Tokens Matter: Token Labeling for Training Better Vision Transformers", NeurIPS 2021: the classifier
is applied to every position of its last feature map, and the few largest logits per position are kept. There, maps are
stored once for each image and cropped; here, they are computed from the model's crop.
"""

from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from model.layout import Mask
from pipeline.pixels import Statistics, normalise
from pipeline.targets.classes import Classes
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions
from pipeline.targets.teacher import TeacherError, classes_of, digest, fit, forward_macs, load_teacher, one_line


class Labels(Classes):
    """The likeliest classes of each patch in a classifier's class map. See `Target`.

    The map is computed from the model's crop, and resampled bilinearly where its grid differs.

    Args:
        teacher: a result of `load_teacher`, with its classifier; it is modified.
        grid: rows and columns of patches.
        size: height and width of the inputs in pixels.
        top: number of classes per patch; their shares are scaled to sum to 1.
        computing: that of the teacher.

    Raises:
        TeacherError: it does not have a class map.
    """

    label: ClassVar[str] = "pseudo-labels"
    described: ClassVar[str] = "a classifier's labels"
    requires: ClassVar[tuple[str, ...]] = ("teacher",)
    accepts: ClassVar[tuple[str, ...]] = ("teacher_weights",)

    def __init__(
        self, teacher: Any, grid: tuple[int, int], size: tuple[int, int], top: int, computing: Computing
    ) -> None:
        self.width: int = teacher.num_classes
        self._top = min(top, self.width)
        self.identity: dict[str, Any] = {
            "target.kind": "labels",
            "target.top": self._top,
            "target.teacher": digest(teacher),
        }
        self._statistics = Statistics(teacher.pretrained_cfg["mean"], teacher.pretrained_cfg["std"])
        self._grid, self._dtype = grid, computing.dtype
        teacher.to(computing.device, computing.dtype)
        self._teacher = teacher
        self._size = size
        self._logits = torch.compile(self._class_map, dynamic=False) if computing.compile_teacher else self._class_map
        try:
            self._size = fit(teacher, size, grid)
            shape = self._map(torch.zeros(1, 3, *size, dtype=torch.uint8, device=computing.device)).shape
        except (AttributeError, TypeError, ValueError, RuntimeError, AssertionError, IndexError) as error:
            raise TeacherError(
                f"{type(teacher).__name__} lacks a class map: choose another timm classifier ({one_line(error)})"
            ) from error
        if shape != (1, self.width, *grid):
            raise TeacherError(f"{type(teacher).__name__} gives a class map {tuple(shape)}: choose another classifier")

    @staticmethod
    def output_width(settings: TargetSettings, predictions: Predictions) -> int:
        """See `Target`. Reads the classifier's weights where `target.teacher_weights` names them."""
        assert settings.teacher is not None  # required
        return classes_of(settings.teacher, settings.teacher_weights)

    @staticmethod
    def macs(settings: TargetSettings, predictions: Predictions) -> int:
        """See `Target`: the multiply-adds of the teacher, as torch counts them."""
        assert settings.teacher is not None  # required
        layout = predictions.layout
        return forward_macs(settings.teacher, predictions.size, (layout.rows, layout.columns))

    @classmethod
    def build(cls, settings: TargetSettings, predictions: Predictions, computing: Computing) -> Self:
        """See `Target`."""
        assert settings.teacher is not None  # required
        teacher = load_teacher(settings.teacher, settings.teacher_weights, classifier=True)
        grid = predictions.layout.rows, predictions.layout.columns
        return cls(teacher, grid, predictions.size, settings.top, computing)

    def describe(self, inputs: Tensor, mask: Mask) -> Tensor:
        """See `Target`; targets are float32 (masked, top, 2), see `Classes`."""
        logits = self._map(inputs).flatten(2).transpose(1, 2).flatten(0, 1)[mask.indices]
        largest, classes = logits.topk(self._top, dim=1)
        return torch.stack([classes.float(), largest.softmax(1)], dim=-1)

    @torch.no_grad()
    def _map(self, inputs: Tensor) -> Tensor:
        """Return logits of uint8 (B, 3, H, W) on the model's grid: float32 (B, classes, rows, columns)."""
        pixels = normalise(inputs, torch.float32, self._statistics)
        if inputs.shape[2:] != self._size:
            pixels = F.interpolate(pixels, self._size, mode="bicubic", antialias=True)
        logits = self._logits(pixels.to(self._dtype)).float()
        if logits.shape[2:] != self._grid:
            logits = F.interpolate(logits, self._grid, mode="bilinear")
        return logits

    def _class_map(self, pixels: Tensor) -> Tensor:
        """Apply the classifier to every position of the last feature map: (B, classes, height, width).

        Each position is passed to the classifier's head as a feature map of its own, so that any head of timm's treats
        it like a pooled feature.
        """
        teacher = self._teacher
        features = teacher.forward_features(pixels)
        if features.ndim == 3:  # a transformer: each patch token replaces every token
            prefix = teacher.num_prefix_tokens
            rows, columns = self._grid
            places = features[:, prefix:].flatten(0, 1)[:, None].expand(-1, prefix + 1, -1)
        elif getattr(teacher, "output_fmt", "NCHW") == "NHWC":
            rows, columns = features.shape[1:3]
            places = features.flatten(0, 2)[:, None, None]
        else:
            rows, columns = features.shape[2:]
            places = features.permute(0, 2, 3, 1).flatten(0, 2)[..., None, None]
        logits = teacher.forward_head(places)
        return cast(Tensor, logits.view(len(pixels), rows, columns, -1).permute(0, 3, 1, 2))
