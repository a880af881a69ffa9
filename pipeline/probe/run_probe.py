"""Probe a run while it trains: both accuracies, and signs that attention or the features have collapsed."""

import copy
import math
import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.encoders.registry import encoder_of
from pipeline.cluster.phases import Phases
from pipeline.cluster.world import World
from pipeline.config import Recipe
from pipeline.data.labels import Int64s, held_out, labels_of
from pipeline.data.views import CENTRE
from pipeline.device import DTYPES
from pipeline.probe.attention import attended_tokens, attention_weights
from pipeline.probe.effective_rank import effective_rank
from pipeline.probe.features import Features, check_encoder, encode
from pipeline.probe.judge import Settings, judge
from pipeline.probe.kept_crops import KeptCrops
from pipeline.probe.look import pictured_of
from pipeline.report.report import Metrics
from pipeline.settings import ConfigError
from pipeline.train.engine import Engine
from pipeline.train.state import full_weights
from shards.manifest import Manifest

COLLAPSED = 2.0  # tokens that a query attends to; below that, attention has collapsed


class RunProbe:
    """Evaluates the frozen encoder of a run on labelled samples of its training and its validation set.

    It uses a copy of the encoder, which gets the fp32 weights each time, so that the model and its engine are not
    affected, at every ZeRO stage. Results are those of `maskfeat probe` with its default settings, where both data
    sets have at most `run.probe_samples` samples.

    All ranks call every method together.

    Args:
        recipe: recipe of the run.
        network: its encoder's network, before an engine wraps it.
        training, validation: data sets, of which `run.probe_samples` labelled samples each are used, spread evenly.
        world, phases: those of the run.

    Raises:
        ConfigError: samples have no labels, or are too few, or the encoder cannot be probed.
    """

    def __init__(
        self, recipe: Recipe, network: Any, training: Manifest, validation: Manifest, world: World, phases: Phases
    ) -> None:
        self._world, self._phases = world, phases
        self._labels, self._classes = labels_of(training, validation, partly=True), len(training.classes)
        self._settings = Settings(seed=recipe.run.seed)
        banked, asked = (_spread(labels, recipe.run.probe_samples) for labels in self._labels)
        self._check(banked)
        self._samples = len(banked) + len(asked)
        self._pictured = asked[pictured_of(len(asked))]
        self._bank, self._queries = (
            KeptCrops(manifest, ids, recipe.data, CENTRE, world)
            for manifest, ids in ((training, banked), (validation, asked))
        )
        self._encoder = encoder_of(copy.deepcopy(network).eval().requires_grad_(False))
        self._dtype, self._statistics = DTYPES[recipe.engine.precision], recipe.model.statistics
        check_encoder(self._encoder)

    def _check(self, ids: Int64s) -> None:
        """Raise ConfigError where there are too few training samples."""
        most, out = max(self._settings.k), int(held_out(ids, self._settings.held_out).sum())
        if len(ids) < most or not 0 < out < len(ids):
            raise ConfigError(f"{len(ids)} training samples are too few for {most} neighbours")

    def measure(self, engine: Engine) -> Metrics:
        """Return both accuracies in [0, 1], `attended_tokens`, `effective_rank`, and the seconds that this took.

        `attended_tokens` is that of the last block, and `attended_tokens_median` the median of all blocks.

        Raises:
            ConfigError: too few of the training samples are good.
            DataError: too many samples in a row are bad, or the storage is unreachable.
        """
        started = time.perf_counter()
        with self._phases("validation"):
            self._take_weights(engine)
        bank, _ = self._features(self._bank)
        own, tokens = self._features(self._queries, self._pictured)
        self._encoder.network.cpu()
        with self._phases("validation"):
            queries = self._of_all(own)
            samples, labels = self._samples, self._labels
            judged = judge(bank, queries, samples, labels, self._classes, self._settings, self._world)
            (knn, _), (_, linear, _) = judged.neighbours[self._settings.k[0]], judged.linear[judged.chosen]
            rank = effective_rank(queries.values)
        return {
            "probe_linear": linear,
            "probe_knn": knn,
            "attended_tokens": tokens[-1],
            "attended_tokens_median": statistics.median_low(tokens),
            "effective_rank": rank,
            "probe_seconds": time.perf_counter() - started,
        }

    def _take_weights(self, engine: Engine) -> None:
        """Load the encoder's weights into the copy, as a checkpoint would have them."""
        network = self._encoder.network.to(self._world.device)
        own = {f"encoder.{name}": parameter for name, parameter in network.named_parameters()}
        for name, weight in full_weights(engine):
            if name in own:
                own[name].copy_(weight)

    def _features(self, crops: KeptCrops, looked_at: Int64s | None = None) -> tuple[Features, list[float]]:
        """Return this rank's features of the last block, and how many tokens queries attend to, in each block.

        Args:
            crops: this rank's crops.
            looked_at: ids of the samples whose attention is measured, over all ranks; None: the results are nan.
        """
        depth, chosen = self._encoder.depth, set([] if looked_at is None else looked_at.tolist())
        last = depth - 1
        ids: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
        values: list[Tensor] = [torch.empty(0, self._encoder.block_widths[last], device=self._world.device)]
        # Sums over the samples of the entropy in each block, and the number of samples
        entropy = torch.zeros(depth + 1, dtype=torch.float64, device=self._world.device)
        for of_batch, inputs in crops.batches():
            with self._phases("validation"):
                values += encode(self._encoder, inputs, [last], "mean", self._dtype, self._statistics)
                ids.append(of_batch)
                for place in [place for place, sample in enumerate(of_batch.tolist()) if sample in chosen]:
                    weights = attention_weights(self._encoder, inputs[place : place + 1], self._statistics)
                    entropy += entropy.new_tensor([*(math.log(attended_tokens(block)) for block in weights), 1])
        features = Features(torch.cat(ids).to(self._world.device), torch.cat(values))
        *totals, count = self._world.sum(entropy).tolist()
        return features, [math.exp(total / count) if count else math.nan for total in totals]

    def _of_all(self, own: Features) -> Features:
        """Gather the features of all ranks, in the order of their ids."""
        parts = self._world.gather((own.ids.cpu(), own.values.cpu()))
        ids, values = (torch.cat(of_ranks).to(self._world.device) for of_ranks in zip(*parts, strict=True))
        return Features(ids, values)


def described(metrics: Metrics) -> str:
    """Describe the results for the operator."""
    return (
        f"linear {metrics['probe_linear']:.1%}, k-NN {metrics['probe_knn']:.1%}, "
        f"{metrics['attended_tokens']:.3g} tokens attended to, effective rank {metrics['effective_rank']:.3g} "
        f"({metrics['probe_seconds']:.1f} s)"
    )


def collapse(metrics: Metrics) -> str | None:
    """Return a warning for the operator if attention has collapsed in most blocks, see `attended_tokens`."""
    tokens = metrics["attended_tokens_median"]
    if not tokens < COLLAPSED:
        return None
    return (
        f"warning: attention has collapsed: in half of the blocks, a query attends to at most {tokens:.2g} tokens. "
        "Such an encoder learns badly from here on, also in fine-tuning, although its loss may fall: stop this run, "
        "and start another with a lower optim.lr, such as half or a quarter (see docs/explanation/results.md)"
    )


def _spread(labels: Int64s, most: int) -> Int64s:
    """Return the ids of at most `most` samples with a label, spread evenly over all of these, ascending."""
    ids = np.flatnonzero(labels >= 0)
    count = min(len(ids), most)
    return ids[np.arange(count) * len(ids) // count]
