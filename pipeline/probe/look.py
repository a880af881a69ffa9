"""Look at a few validation images as an encoder does."""

from typing import Any

import numpy as np
import torch

from model.encoders.encoder import Pool
from pipeline.cluster.world import World
from pipeline.data.loader import Loader
from pipeline.data.request import centre_request
from pipeline.probe.attention import attended_tokens, attention_weights, looked_at
from pipeline.probe.judge import Judgement
from pipeline.probe.pictures import Picture, draw_attention, draw_neighbours
from pipeline.probe.source import Source
from shards.manifest import Manifest

PICTURED, SHOWN = 8, 6  # validation images in the pictures, and nearest training images of each


def look(
    source: Source,
    crop: float,
    pool: Pool,
    training: Manifest,
    validation: Manifest,
    judgement: Judgement,
    world: World,
) -> tuple[dict[str, Picture], list[float]]:
    """Pictures of a few validation images, by their names, and how many tokens a query of each block attends to.

    Args:
        source, training, validation, judgement: what was probed on what, and how that went.
        crop, pool: as in `View`.
    """
    chosen = np.linspace(0, len(judgement.validation_ids) - 1, PICTURED).astype(np.int64)
    ids = judgement.validation_ids[chosen]
    near = judgement.nearest[chosen, :SHOWN]

    def images(manifest: Manifest, ids: np.ndarray[Any, np.dtype[np.int64]]) -> torch.Tensor:
        loader = Loader(manifest, source.recipe.data, len(ids), world.device)
        (batch,) = loader.batches([centre_request(manifest, ids, crop, clip=source.recipe.data.clip)])
        return batch.inputs

    pictured = images(validation, ids)
    neighbours = images(training, near.flatten())
    neighbours = neighbours.view(*near.shape, *neighbours.shape[1:])
    names = [validation.classes[label] for label in validation.label[ids]]
    near_names = [[training.classes[label] for label in training.label[row]] for row in near]
    weights = attention_weights(source.encoder, pictured, source.recipe.model.statistics)
    pictures = {
        "neighbours": draw_neighbours(pictured, names, neighbours, near_names, judgement.cosines[chosen, :SHOWN]),
        "attention": draw_attention(pictured, looked_at(weights[-1], source.encoder, pool)),
    }
    return pictures, [attended_tokens(of_block) for of_block in weights]
