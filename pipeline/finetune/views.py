"""Multi-view testing: the average softmax of several clips and crops of a video."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from pipeline.cluster.phases import Phases
from pipeline.cluster.world import World
from pipeline.data.errors import no_validation_image
from pipeline.data.loader import Loader
from pipeline.data.order import Int64s
from pipeline.data.views import view_requests, views
from pipeline.device import to_device
from pipeline.finetune.config import FinetuneRecipe
from pipeline.metrics import TOP, hits
from pipeline.pixels import normalise
from pipeline.train.task import Evaluator
from shards.manifest import Manifest


def accuracy_by_views(
    model: Evaluator,
    manifest: Manifest,
    labels: Int64s,
    recipe: FinetuneRecipe,
    world: World,
    phases: Phases,
    clips: Sequence[int],
    crops: int,
) -> dict[str, float]:
    """Return `top1_NxC` and `top5_NxC` for N clips and C crops of each video, for all N of `clips` in one pass.

    Every video is read, decoded and counted once for any number of ranks, which call this together.

    Args:
        model: the classifier.
        manifest: manifest of the videos; for images the views are crops.
        labels: labels of all videos, int64 (n,).
        recipe, world, phases: those of the run.
        clips: numbers of clips per video.
        crops: crops per clip, 1 or 3.

    Raises:
        DataError: no video can be used.
        ValueError: the number of crops is another one.
    """
    chosen = [view for number in clips for view in views(number, crops)]
    samples = min(recipe.data.validation_samples or len(manifest), len(manifest))
    most = recipe.micro_batch(world.size)  # clips that are computed at once
    micro_batch = max(1, most // len(chosen))
    loader = Loader(manifest, recipe.data, micro_batch * len(chosen), world.device, repeats=len(chosen))
    requests = view_requests(
        manifest,
        recipe.data,
        chosen,
        samples=samples,
        micro_batch=micro_batch,
        rank=world.rank,
        world_size=world.size,
    )
    known = torch.from_numpy(labels)
    sums = torch.zeros(len(TOP), len(clips), dtype=torch.float64, device=world.device)
    good = torch.zeros(1, dtype=torch.float64, device=world.device)
    try:
        with model.evaluating():
            for batch in loader.batches(requests):
                with phases("validation"):
                    parts = torch.split(normalise(batch.inputs, model.dtype, recipe.model.statistics), most)
                    logits = torch.cat([model.predict(part).float() for part in parts])
                    shares = averaged(logits.softmax(1).view(micro_batch, len(chosen), -1), clips, crops)
                    counted = batch.weights.view(micro_batch, -1)[:, 0] > 0
                    shares = torch.where(counted[:, None, None], shares, torch.nan)  # which is not a hit
                    own = to_device(known[torch.from_numpy(batch.request.ids)], world.device)
                    sums += hits(shares, own)
                    good += counted.sum()
    finally:
        loader.close()
    *right, videos = world.sum(torch.cat([sums.flatten(), good])).tolist()
    if not videos:
        raise no_validation_image(manifest.root)
    names = [f"top{top}_{number}x{crops}" for top in TOP for number in clips]
    return {name: value / videos for name, value in zip(names, right, strict=True)}


def averaged(shares: Tensor, clips: Sequence[int], crops: int) -> Tensor:
    """Average the class probabilities over the views of each number of clips.

    Args:
        shares: (n, views, classes), those of `clips[0]` clips first.
        clips, crops: see `accuracy_by_views`.

    Returns:
        (n, len(clips), classes).
    """
    ends = list(accumulate(number * crops for number in clips))
    parts = [shares[:, begin:end] for begin, end in pairwise([0, *ends])]
    return torch.stack([part.mean(1) for part in parts], dim=1)
