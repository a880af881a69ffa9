"""Features of a frozen teacher.

Algorithm: Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", CVPR 2022, section 3: the
teacher sees the whole image, and its last layer's patch tokens are the targets. Only directions count: the loss
is one minus the cosine. `mse` is the mean squared error of tokens normalised to mean 0 and variance 1, as in
Baevski et al., "data2vec", ICML 2022.
"""

from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from model.encoders.timm_vit import transformer_macs
from model.layout import Mask
from pipeline.pixels import Statistics, normalise
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions, Regression
from pipeline.targets.teacher import TeacherError, build_teacher, digest, load_teacher, one_line, teacher_width

Loss = Literal["cosine", "mse"]


class Features(Regression):
    """A teacher's patch tokens, for the model's grid of patches. See `Target`.

    The teacher's positions are resampled to the grid, and so are images, if its patches have another size.

    Args:
        teacher: a result of `load_teacher`; it is modified.
        grid: rows and columns of patches.
        loss: as above.
        dtype: the teacher's precision.
        device: the teacher's device.
        compile: compile the teacher by torch.

    Raises:
        TeacherError: it does not have tokens for such a grid.
    """

    label: ClassVar[str] = "features"
    described: ClassVar[str] = "a frozen teacher's features"
    requires: ClassVar[tuple[str, ...]] = ("teacher",)
    accepts: ClassVar[tuple[str, ...]] = ("teacher_weights",)

    def __init__(
        self,
        teacher: Any,
        grid: tuple[int, int],
        loss: Loss,
        dtype: torch.dtype,
        device: torch.device,
        compile: bool = False,
    ) -> None:
        self.width: int = teacher.num_features
        self.identity: dict[str, Any] = {
            "target.kind": "features",
            "target.loss": loss,
            "target.teacher": digest(teacher),
        }
        self._statistics = Statistics(teacher.pretrained_cfg["mean"], teacher.pretrained_cfg["std"])
        self._loss, self._dtype = loss, dtype
        try:
            high, wide = teacher.patch_embed.patch_size
            self._size = grid[0] * high, grid[1] * wide
            teacher.set_input_size(img_size=self._size)
            self._prefix: int = teacher.num_prefix_tokens
            self._encode = teacher.to(device, dtype).forward_features
            tokens = self._tokens(torch.zeros(1, 3, *self._size, dtype=torch.uint8, device=device))
        except (AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise TeacherError(
                f"{type(teacher).__name__} does not have a token for each of {grid[0]}x{grid[1]} patches: choose "
                f"a plain vision transformer ({one_line(error)})"
            ) from error
        if tokens.shape != (1, grid[0] * grid[1], self.width):
            raise TeacherError(
                f"{type(teacher).__name__} gives {tuple(tokens.shape[1:])} numbers instead of "
                f"{(grid[0] * grid[1], self.width)}: choose a plain vision transformer"
            )
        if compile:
            self._encode = torch.compile(self._encode, dynamic=False)

    @staticmethod
    def loss_name(settings: TargetSettings) -> str:
        """See `Target`."""
        return "one minus the cosine" if settings.loss == "cosine" else "squared errors"

    @staticmethod
    def output_width(settings: TargetSettings, predictions: Predictions) -> int:
        """See `Target`."""
        assert settings.teacher is not None  # required
        return teacher_width(settings.teacher)

    @staticmethod
    def macs(settings: TargetSettings, predictions: Predictions) -> int:
        """See `Target`: the multiply-adds of the teacher."""
        assert settings.teacher is not None  # required
        return transformer_macs(build_teacher(settings.teacher, device="meta"), predictions.layout.cells)

    @classmethod
    def build(cls, settings: TargetSettings, predictions: Predictions, computing: Computing) -> Self:
        """See `Target`."""
        assert settings.teacher is not None  # required
        teacher = load_teacher(settings.teacher, settings.teacher_weights)
        grid = predictions.layout.rows, predictions.layout.columns
        return cls(teacher, grid, settings.loss, computing.dtype, computing.device, computing.compile_teacher)

    def describe(self, inputs: Tensor, mask: Mask) -> Tensor:
        """See `Target`; targets are float32 (masked, width)."""
        return self._normalised(self._tokens(inputs).flatten(0, 1)[mask.indices].float())

    def losses(self, outputs: Tensor, targets: Tensor, batch_size: int) -> Tensor:
        """Return one minus the cosine, which is 1 for a prediction of zero; or the mean squared error."""
        if self._loss == "mse":
            return super().losses(outputs, targets, batch_size)
        return 1 - F.cosine_similarity(outputs.float(), targets, dim=-1).reshape(batch_size, -1).mean(1)

    def paint(self, inputs: Tensor, targets: Tensor, outputs: Tensor | None = None) -> Tensor:
        """See `Target`: the three principal components of all targets as red, green and blue, one colour per patch."""
        values = targets if outputs is None else outputs
        if self._loss == "cosine":
            values = self._normalised(values)
        flat = targets.flatten(0, 2)
        mean = flat.mean(0)
        components = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:3].T
        components = F.pad(components, (0, 3 - components.shape[1]))  # fewer than three patches have fewer components
        reach = (2 * ((flat - mean) @ components).std(0, correction=0)).clamp(min=1e-6)
        colours: Tensor = ((values - mean) @ components / reach + 1) / 2
        return colours.clamp(0, 1).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _tokens(self, images: Tensor) -> Tensor:
        """Return the last layer's tokens of all patches of uint8 (B, 3, H, W): (B, patches, width)."""
        pixels = normalise(images, torch.float32, self._statistics)
        if images.shape[2:] != self._size:
            pixels = F.interpolate(pixels, self._size, mode="bicubic", antialias=True)
        return cast(Tensor, self._encode(pixels.to(self._dtype)))[:, self._prefix :]

    def _normalised(self, tokens: Tensor) -> Tensor:
        return F.normalize(tokens, dim=-1) if self._loss == "cosine" else F.layer_norm(tokens, tokens.shape[-1:])
