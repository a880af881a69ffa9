"""Export an encoder to ONNX, and compare it with torch in ONNX Runtime."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.encoders.registry import encoder_of

TOLERANCE = 1e-4  # relative to an output's largest number; reordered float32 sums differ by a tenth of it
_CHECKED_BATCHES = (1, 3)


class OnnxError(Exception):
    """The encoder cannot be exported to ONNX. The message says why and what to do."""


def export_onnx(encoder: nn.Module, path: Path) -> float:
    """Write an encoder's graph to `path`, and its weights to PATH.data, since a single file is limited to 2 GiB.

    The input is `images`, float32 (batch, 3, height, width), or `clips`, float32 (batch, 3, frames, height, width),
    normalised. The outputs are `pooled`, float32 (batch, width), the mean of the patch tokens, `patches`, float32
    (batch, predictions, width), frame by frame, row-major, and for a classifier `logits`, float32 (batch, classes); a
    classifier of clips has `pooled`, the input of its head, and `logits`. The batch may have any size.

    Returns:
        The largest difference in any output between ONNX Runtime on a CPU and torch, on random inputs.

    Raises:
        OnnxError: a package is missing, or the two differ by more than `TOLERANCE`.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OnnxError(f"ONNX needs more packages ({error}): pip install 'maskfeat-pipeline[onnx]'") from error
    view = encoder_of(encoder)
    of_clips = len(view.input_shape) == 4
    features: nn.Module = (_ClipFeatures(encoder) if of_clips else _Features(encoder)).eval()
    outputs = ["pooled", *([] if of_clips and view.classes else ["patches"]), *(["logits"] if view.classes else [])]
    inputs = "clips" if of_clips else "images"
    exported = deepcopy(features)
    for module in exported.modules():
        if "fused_attn" in vars(module):  # torch cannot decompose fused attention with BEiT's biases
            vars(module)["fused_attn"] = False
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(batch, *view.input_shape, generator=generator) for batch in _CHECKED_BATCHES]
    torch.onnx.export(
        exported,
        (samples[-1],),
        path,
        dynamo=True,
        input_names=[inputs],
        output_names=outputs,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    largest = 0.0
    for sample in samples:
        with torch.no_grad():
            wanted = features(sample)
        for name, ours, theirs in zip(outputs, wanted, session.run(outputs, {inputs: sample.numpy()}), strict=True):
            difference = (ours - torch.from_numpy(theirs)).abs().max().item()
            if not difference <= TOLERANCE * max(1.0, ours.abs().max().item()):
                raise OnnxError(
                    f"{path}: {name} differs by {difference:.1e} between ONNX Runtime and torch: do not use it"
                )
            largest = max(largest, difference)
    return largest


class _Features(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = deepcopy(encoder)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        tokens = self.encoder.forward_features(images)
        patches = tokens[:, self.encoder.num_prefix_tokens :]
        logits = [self.encoder.forward_head(tokens)] if self.encoder.num_classes else []
        return patches.mean(1), patches, *logits


class _ClipFeatures(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = deepcopy(encoder)

    def forward(self, clips: Tensor) -> tuple[Tensor, ...]:
        view = encoder_of(self.encoder)
        if view.classes:
            feature = view.pooled(clips)
            return feature, view.head(feature)
        patches = view.encode(view.embed(clips))
        return patches.mean(1), patches
