"""Draw an encoder's attention and neighbours for a few validation samples."""

import numpy as np
import torch
from torch import Tensor

from model.encoders.encoder import Encoder, Pool
from pipeline.cluster.world import World
from pipeline.data.labels import Int64s
from pipeline.data.loader import Loader
from pipeline.data.request import centre_request
from pipeline.pixels import Statistics, normalise
from pipeline.probe.attention import attended_tokens, attention_weights, looked_at
from pipeline.probe.judge import Judgement
from pipeline.probe.pictures import Picture, draw_attention, draw_neighbours, principal_colours, still
from pipeline.probe.source import Source
from shards.manifest import Manifest

PICTURED, SHOWN = 8, 6  # validation samples in the pictures, and nearest training samples of each


def look(
    source: Source,
    crop: float,
    pool: Pool,
    training: Manifest,
    validation: Manifest,
    judgement: Judgement,
    world: World,
) -> tuple[dict[str, Picture], list[float]]:
    """Draw a few validation samples, by the pictures' names, and return how many tokens each block's queries attend to.

    Neighbours that are clips are drawn as the frame in their middle.

    Args:
        source, training, validation, judgement: the encoder, the data sets, and the result of the probe.
        crop, pool: see `View`.
    """
    chosen = pictured_of(len(judgement.validation_ids))
    ids = judgement.validation_ids[chosen]
    near = judgement.nearest[chosen, :SHOWN]

    def inputs(manifest: Manifest, ids: Int64s) -> torch.Tensor:
        data = source.recipe.data
        loader = Loader(manifest, data, len(ids), world.device)
        (batch,) = loader.batches([centre_request(manifest, data, ids, crop)])
        return batch.inputs

    pictured = inputs(validation, ids)
    neighbours = still(inputs(training, near.flatten()))
    neighbours = neighbours.view(*near.shape, *neighbours.shape[1:])
    names = [validation.classes[label] for label in validation.label[ids]]
    near_names = [[training.classes[label] for label in training.label[row]] for row in near]
    statistics = source.recipe.model.statistics
    looked, attended = _attention(source.encoder, pictured, pool, statistics)
    colours = principal_colours(_features(source.encoder, pictured, statistics))
    cosines = judgement.cosines[chosen, :SHOWN]
    pictures = {
        "neighbours": draw_neighbours(still(pictured), names, neighbours, near_names, cosines),
        "attention": draw_attention(pictured, looked, colours),
    }
    return pictures, attended


def pictured_of(samples: int) -> Int64s:
    """Return which of `samples` samples are drawn, spread evenly: positions, (PICTURED,)."""
    return np.linspace(0, samples - 1, PICTURED).astype(np.int64)


def _attention(encoder: Encoder, inputs: Tensor, pool: Pool, statistics: Statistics) -> tuple[Tensor, list[float]]:
    """Return `looked_at` and each block's `attended_tokens`: one input at a time, since clips have many tokens."""
    looked, tokens = [], []
    for one in inputs:
        weights = attention_weights(encoder, one[None], statistics)
        looked.append(looked_at(weights[-1], encoder, pool))
        tokens.append([attended_tokens(of_block) for of_block in weights])
    return torch.cat(looked), torch.tensor(tokens).log().mean(0).exp().tolist()


def _features(encoder: Encoder, inputs: Tensor, statistics: Statistics) -> Tensor:
    """Return the features of the patches, float32 (B, [frames,] rows, columns, width): of one input at a time, too."""
    with torch.no_grad():
        pixels = [normalise(one[None], torch.float32, statistics) for one in inputs]
        encoded = torch.cat([encoder.encode(encoder.embed(one)) for one in pixels])
    return encoded.view(len(inputs), *encoder.prediction_layout.shape, -1)
