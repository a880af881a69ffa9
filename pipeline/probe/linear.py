"""Train a linear classifier of frozen features, with many learning rates at once.

All learning rates see the same batches, so they are trained side by side: one matrix product serves them all. The
problem is convex, weights start at zero, and the order of batches depends only on the seed and the samples' ids: the
result does not depend on luck, on the number of ranks, or on the rest of the sweep.

Features are standardised by the mean and deviation of the training set: the BatchNorm without affine of He et al.,
"Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022, appendix A.1), with the whole set as its batch. SGD with
momentum 0.9, a cosine to zero and no weight decay are those of DINO's linear evaluation (Caron et al., ICCV 2021).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.cluster.world import World
from pipeline.metrics import TOP, hits
from pipeline.random import derive

_MOMENTUM = 0.9
_EPSILON = 1e-6  # of a variance; MAE's
_CHUNK = 1024  # rows scored at once


@dataclass(frozen=True, eq=False)
class Sweep:
    """Classifiers, one per learning rate.

    Attributes:
        mean, deviation: those of the training features, (width,).
        weight: (width + 1, rates, classes); the last row is the bias.
    """

    mean: Tensor
    deviation: Tensor
    weight: Tensor

    def inputs(self, features: Tensor) -> Tensor:
        """Standardise features and append a one: (n, width) -> (n, width + 1)."""
        standard = (features - self.mean) / self.deviation
        return torch.cat([standard, standard.new_ones(len(standard), 1)], dim=1)

    def hits(self, features: Tensor, labels: Tensor) -> Tensor:
        """Count hits, float64 (len(TOP), rates), over the samples of this rank; (n, width) and int64 (n,)."""
        found = torch.zeros(len(TOP), self.weight.shape[1], dtype=torch.float64, device=features.device)
        for start in range(0, len(labels), _CHUNK):
            here = slice(start, start + _CHUNK)
            found += hits(_logits(self.inputs(features[here]), self.weight), labels[here])
        return found


def fit(
    features: Tensor,
    labels: Tensor,
    ids: Tensor,
    rates: list[float],
    classes: int,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    world: World,
) -> Sweep:
    """Train on the samples of all ranks, which call this together and get the same up to rounding.

    Args:
        features: this rank's features, float32 (n, width).
        labels: their labels, int64 (n,).
        ids: their ids, int64 (n,); over all ranks each occurs once.
        rates: learning rates for `batch_size` samples, at the start of the cosine.
        batch_size: samples over all ranks; the last batch of an epoch is smaller.
    """
    sweep = _untrained(features, len(rates), classes, world)
    counts = world.gather(len(features))
    first, last = sum(counts[: world.rank]), sum(counts[: world.rank + 1])
    everyone = np.concatenate(world.gather(ids.cpu().numpy()))
    batches = -(-len(everyone) // batch_size)
    weight, velocity = sweep.weight, torch.zeros_like(sweep.weight)
    rate = features.new_tensor(rates)[:, None]
    inputs = sweep.inputs(features)
    for epoch in range(epochs):
        keys = derive(derive(np.full_like(everyone, seed), epoch), everyone)
        order = np.argsort(keys, kind="stable")
        for index in range(batches):
            batch = order[index * batch_size : (index + 1) * batch_size]
            mine = torch.from_numpy(batch[(first <= batch) & (batch < last)] - first).to(features.device)
            chosen, truth = inputs[mine], labels[mine]
            residual = _logits(chosen, weight).softmax(-1)
            residual -= F.one_hot(truth, classes)[:, None]
            gradient = world.sum((chosen.T @ residual.flatten(1)).view_as(weight)) / len(batch)
            velocity.mul_(_MOMENTUM).add_(gradient)
            done = (epoch * batches + index) / (epochs * batches)
            weight -= rate * (1 + math.cos(math.pi * done)) / 2 * velocity
    return sweep


def _untrained(features: Tensor, rates: int, classes: int, world: World) -> Sweep:
    total = world.sum(torch.tensor([float(len(features))], dtype=torch.float64, device=features.device))
    mean = world.sum(features.double().sum(0)) / total
    variance = world.sum((features.double() - mean).square().sum(0)) / total
    weight = features.new_zeros(features.shape[1] + 1, rates, classes)
    return Sweep(mean.float(), (variance + _EPSILON).sqrt().float(), weight)


def _logits(inputs: Tensor, weight: Tensor) -> Tensor:
    """Multiply (n, width + 1) x (width + 1, rates, classes) -> (n, rates, classes)."""
    return (inputs @ weight.flatten(1)).view(len(inputs), *weight.shape[1:])
