"""Evaluate the features of two data sets: accuracies of both probes."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.cluster.world import World
from pipeline.data.labels import Int64s, held_out
from pipeline.metrics import hits
from pipeline.probe.features import Features
from pipeline.probe.linear import fit
from pipeline.probe.neighbours import nearest, votes
from pipeline.settings import ConfigError

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


@dataclass(frozen=True, eq=False)
class Judgement:
    """The evaluation of one layer's features. Accuracies are in [0, 1].

    Attributes:
        neighbours: by k, top-1 and top-5 on validation.
        linear: by learning rate, top-1 on held-out samples, top-1 and top-5 on validation.
        chosen: the best learning rate on held-out samples, the smallest of several.
        trained, held_out, validated, bad: numbers of images.
        validation_ids: ids of the evaluated images, (v,).
        nearest, cosines: the nearest training images of each, ids and float32 on the CPU, (v, k).
    """

    neighbours: dict[int, tuple[float, float]]
    linear: dict[float, tuple[float, float, float]]
    chosen: float
    trained: int
    held_out: int
    validated: int
    bad: int
    validation_ids: Int64s
    nearest: Int64s
    cosines: Tensor

    def report(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        _, top1, top5 = self.linear[self.chosen]
        rates = [
            {"rate": rate, "held_out_top1": own, "top1": top1, "top5": top5}
            for rate, (own, top1, top5) in self.linear.items()
        ]
        return {
            "neighbours": [{"k": k, "top1": top1, "top5": top5} for k, (top1, top5) in self.neighbours.items()],
            "linear": {"rate": self.chosen, "top1": top1, "top5": top5, "rates": rates},
            "images": {
                "trained": self.trained,
                "held_out": self.held_out,
                "validated": self.validated,
                "bad": self.bad,
            },
        }


@dataclass(frozen=True)
class Settings:
    """The parameters of the probes.

    Attributes:
        k: numbers of neighbours that vote.
        temperature: temperature of their votes.
        rates: learning rates for `batch_size` images.
        epochs, batch_size: those of the linear classifiers' training.
        held_out: share of the training images on which the rate is chosen.
        seed: seed of the order of the training images.
    """

    k: list[int] = field(default_factory=lambda: [20])
    temperature: float = 0.07
    rates: list[float] = field(default_factory=lambda: [*RATES])
    epochs: int = 100
    batch_size: int = 1024
    held_out: float = 0.1
    seed: int = 0


def judge(
    bank: Features,
    queries: Features,
    samples: int,
    labels: tuple[Int64s, Int64s],
    classes: int,
    settings: Settings,
    world: World,
) -> Judgement:
    """Run both probes on one layer. All ranks call this together.

    Args:
        bank: this rank's share of the training features.
        queries: all validation features, the same on all ranks.
        samples: number of samples in both data sets, including bad ones.
        labels: labels of all samples of both data sets, by id.

    Raises:
        ConfigError: there are too few training images.
    """
    truth_of_bank, truth = (
        torch.from_numpy(of)[rows.ids.cpu()].to(world.device) for of, rows in zip(labels, (bank, queries), strict=True)
    )
    own = torch.from_numpy(held_out(bank.ids.cpu().numpy(), settings.held_out)).to(world.device)
    counts = torch.tensor([len(own), int(own.sum())], dtype=torch.float64, device=world.device)
    total, kept_out = (int(count) for count in world.sum(counts).tolist())
    if not (max(settings.k) <= total and 0 < kept_out < total):
        raise ConfigError(
            f"{total:,} good training samples, {kept_out:,} of them held out, are too few for {max(settings.k)} "
            f"neighbours (--k of `maskfeat probe`) and a held-out share of {settings.held_out:g} (--held-out)"
        )

    # All ranks have the neighbours of all validation images
    cosines, near = nearest(queries.values, bank.values, bank.ids, max(settings.k), world)
    near_labels = torch.from_numpy(labels[0])[near.cpu()].to(world.device)
    neighbours = {}
    for k in settings.k:
        right = hits(votes(cosines[:, :k], near_labels[:, :k], classes, settings.temperature), truth)
        neighbours[k] = _pair(right / len(truth))

    # Each rank scores its part of the validation images
    sweep = fit(
        bank.values[~own],
        truth_of_bank[~own],
        bank.ids[~own],
        settings.rates,
        classes,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        world=world,
    )
    part = slice(*(rank * len(truth) // world.size for rank in (world.rank, world.rank + 1)))
    chosen_by = world.sum(sweep.hits(bank.values[own], truth_of_bank[own]))[0] / kept_out
    right = world.sum(sweep.hits(queries.values[part], truth[part])) / len(truth)
    best = int(chosen_by.argmax())
    return Judgement(
        neighbours,
        {rate: (chosen_by[i].item(), *_pair(right[:, i])) for i, rate in enumerate(settings.rates)},
        settings.rates[best],
        total - kept_out,
        kept_out,
        len(truth),
        samples - total - len(truth),
        queries.ids.cpu().numpy(),
        near.cpu().numpy(),
        cosines.cpu(),
    )


def _pair(accuracies: Tensor) -> tuple[float, float]:
    top1, top5 = accuracies.tolist()
    return top1, top5
