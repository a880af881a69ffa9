"""What a frozen network sees in a patch.

Algorithm: Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", CVPR 2022, section 3: the
teacher is given the whole image, and its last layer's patch tokens are the targets. Compared are directions: the loss
is one minus the cosine. `mse` is the mean squared error of tokens that are brought to mean 0 and variance 1, as in
Baevski et al., "data2vec", ICML 2022.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.maskfeat import masked_index
from model.weights import Weights, WeightsError, read
from pipeline.targets.objective import Channels, normalise, squared_errors

Loss = Literal["cosine", "mse"]


class TeacherError(ValueError):
    """A teacher cannot be used; the message is one line that names it and the remedy."""


def teacher_width(teacher: str) -> int:
    """Numbers that a teacher says of a patch; reads no weights.

    Args:
        teacher: see `load_teacher`.

    Raises:
        TeacherError: there is no such model.
    """
    return cast(int, build_teacher(teacher, device="meta").num_features)


def load_teacher(teacher: str, weights: Path | None) -> nn.Module:
    """A timm model with trained weights, for evaluation.

    Args:
        teacher: a name of timm's, as `vit_base_patch16_224.dino`, or a folder in timm's Hugging Face layout, as
            `scripts/export.py` writes it.
        weights: a file with the weights of that name; None: those of the folder, or those that timm downloads.

    Returns:
        with `pretrained_cfg["mean"]` and `["std"]` of the images it takes.

    Raises:
        TeacherError: it or its weights are not there, are damaged or do not fit each other.
    """
    given: Weights | None = None
    try:
        given = None if weights is None else read(weights)
    except WeightsError as error:
        raise TeacherError(f"target.teacher_weights: {error}") from error
    if given and Path(teacher).is_dir():
        raise TeacherError(f"{teacher} has weights of its own: leave out target.teacher_weights, or name a model")
    # Classes as the weights have them, since timm compares keys strictly only then
    model = build_teacher(
        teacher, pretrained=True, pretrained_cfg_overlay={"state_dict": given.tensors} if given else None
    )
    model.reset_classifier(0)
    own = given.normalisation if given else None
    mean, std = (own.mean, own.std) if own else (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    model.pretrained_cfg = {"mean": tuple(mean), "std": tuple(std)}
    return cast(nn.Module, model.eval().requires_grad_(False))


class Features:
    """A teacher's patch tokens, for the model's grid of patches.

    Positions of the teacher are resampled to the grid; images are, if its patches are of another size.

    Args:
        teacher: as `load_teacher` made it; it is changed.
        grid: rows and columns of patches.
        loss: see above.
        dtype: that the teacher computes in.
        device: of the teacher.
        compile: let torch compile the teacher.

    Raises:
        TeacherError: it has no tokens for such a grid.
    """

    name = "features"

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
            "target.teacher": _digest(teacher),
        }
        self._mean: Channels = teacher.pretrained_cfg["mean"]
        self._std: Channels = teacher.pretrained_cfg["std"]
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
                f"{type(teacher).__name__} has no token for each of {grid[0]}x{grid[1]} patches: choose a plain vision "
                f"transformer ({_one_line(error)})"
            ) from error
        if tokens.shape != (1, grid[0] * grid[1], self.width):
            raise TeacherError(
                f"{type(teacher).__name__} gives {tuple(tokens.shape[1:])} numbers instead of "
                f"{(grid[0] * grid[1], self.width)}: choose a plain vision transformer"
            )
        if compile:
            self._encode = torch.compile(self._encode, dynamic=False)

    def make(self, images: Tensor, mask: Tensor, masked: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See `Target`; targets are float32 (masked, width)."""
        tokens = self._tokens(images).flatten(0, 1)[masked_index(mask, masked)].float()
        return normalise(images, dtype), self._normalised(tokens)

    def errors(self, predictions: Tensor, targets: Tensor, images: int) -> Tensor:
        """One minus the cosine, which is 1 for a prediction of zero; or the mean squared error."""
        if self._loss == "mse":
            return squared_errors(predictions, targets, images)
        return 1 - F.cosine_similarity(predictions.float(), targets, dim=-1).reshape(images, -1).mean(1)

    def paint(self, images: Tensor, targets: Tensor, values: Tensor) -> Tensor:
        """The three principal components of all `targets` as red, green and blue, one colour a patch."""
        if self._loss == "cosine":
            values = self._normalised(values)
        flat = targets.flatten(0, 2)
        mean = flat.mean(0)
        components = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:3].T
        reach = (2 * ((flat - mean) @ components).std(0)).clamp(min=1e-6)
        colours: Tensor = ((values - mean) @ components / reach + 1) / 2
        return colours.clamp(0, 1).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _tokens(self, images: Tensor) -> Tensor:
        """The last layer's tokens of all patches of uint8 (B, 3, H, W): (B, patches, width)."""
        pixels = normalise(images, torch.float32, self._mean, self._std)
        if images.shape[2:] != self._size:
            pixels = F.interpolate(pixels, self._size, mode="bicubic", antialias=True)
        return cast(Tensor, self._encode(pixels.to(self._dtype)))[:, self._prefix :]

    def _normalised(self, tokens: Tensor) -> Tensor:
        return F.normalize(tokens, dim=-1) if self._loss == "cosine" else F.layer_norm(tokens, tokens.shape[-1:])


def build_teacher(teacher: str, **options: Any) -> Any:
    """`timm.create_model` of a name or a folder, whose every failure is a TeacherError."""
    named = f"target.teacher={teacher[:100]!r}"
    try:
        folder = Path(teacher).is_dir()
    except OSError as error:
        raise TeacherError(f"{named} cannot be read: {error.strerror}") from error
    if folder and not (Path(teacher) / "config.json").is_file():
        raise TeacherError(f"{named} has no config.json: give a folder that scripts/export.py or timm wrote")
    if not folder and not timm.is_model(teacher.partition(".")[0]):
        raise TeacherError(f"{named} is neither a folder nor a model of timm's")
    try:
        return timm.create_model(f"local-dir:{teacher}" if folder else teacher, **options)
    except (
        Exception
    ) as error:  # of timm, the Hugging Face hub, safetensors or torch, whatever is wrong with the weights
        remedy = "" if folder else " (without a network, give its weights as target.teacher_weights)"
        raise TeacherError(f"{named} cannot be loaded{remedy}: {_one_line(error)}") from error


def _digest(teacher: nn.Module) -> str:
    """SHA-256 of all weights with their names, as they were loaded."""
    digest = sha256()
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} ..."
