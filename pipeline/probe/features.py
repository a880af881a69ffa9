"""Pooled features of a data set's images or clips, computed once and cached on disk.

    KEY/part-00000.safetensors   ids, int64 (n,) ascending, and features, float32 (n, width), of one rank's samples
    KEY/identity.json            identity of the features, and size and SHA-256 of the parts; written last

A rank takes a contiguous range of ids, so that each sample occurs once for any number of ranks, and another number of
ranks reads the same rows. Bad samples do not have a row. The clip of a video is that in its middle.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from model.encoders.encoder import Encoder, Pool
from model.size import Sides
from model.writing import write_tensors
from pipeline.cluster.world import World
from pipeline.config import Recipe
from pipeline.data.errors import DataError
from pipeline.data.loader import Loader
from pipeline.data.quarantine import too_many
from pipeline.data.request import centre_requests
from pipeline.data.settings import Clip
from pipeline.device import DTYPES
from pipeline.files import output
from pipeline.pixels import IMAGENET, Statistics, normalise
from pipeline.probe.attention import attention_weights
from pipeline.progress_bar import tracked
from pipeline.settings import ConfigError
from shards.files import fsync, sha256_of
from shards.manifest import Manifest

BATCH = 128  # images, or frames of clips


@dataclass(frozen=True)
class View:
    """The parameters of features besides the data set and the layer.

    Attributes:
        weights: `Source.identity`.
        image_size: the side of square inputs, or height and width, in pixels.
        crop: share of the largest centred crop.
        precision: the encoder's precision; features are stored in float32.
        pool: the mean of the patch tokens, or the class token.
        statistics: normalisation of the encoder's inputs.
        clip: how clips are taken from videos; None: the samples are images.
    """

    weights: str
    image_size: Sides
    crop: float
    precision: str
    pool: Pool
    statistics: Statistics = IMAGENET
    clip: Clip | None = None

    def identity(self) -> dict[str, Any]:
        """Return everything that decides the features, as JSON values; for images without the entries of clips."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, eq=False)
class Features:
    """Some rows: `ids`, int64 (n,) ascending, and `values`, float32 (n, width), on one device."""

    ids: Tensor
    values: Tensor


def at_once(clip: Clip | None) -> int:
    """Return how many inputs are encoded at once: images (None) or such clips."""
    return BATCH if clip is None else max(1, BATCH // clip.frames)


def encode(
    encoder: Encoder,
    inputs: Tensor,
    layers: Sequence[int],
    pool: Pool,
    dtype: torch.dtype,
    statistics: Statistics = IMAGENET,
) -> list[Tensor]:
    """Return pooled outputs of blocks, after the encoder's final norm as in DINO's probes: float32 (B, width) each.

    Args:
        encoder: an encoder on the device of the inputs.
        inputs: uint8 (B, 3, H, W), or clips (B, 3, frames, H, W).
        layers: blocks counted from 0, ascending.
        pool: the pooling of a block's output.
        dtype: precision of autocast; float32: without autocast.
        statistics: normalisation of the encoder's inputs.
    """
    with torch.no_grad(), torch.autocast(inputs.device.type, dtype, enabled=dtype != torch.float32):
        return encoder.pooled_blocks(normalise(inputs, torch.float32, statistics), layers, pool)


def check_encoder(encoder: Encoder, pool: Pool = "mean") -> None:
    """Try on one input whether an encoder on the CPU can be probed. Raises ConfigError where it cannot."""
    inputs = torch.zeros(1, *encoder.input_shape, dtype=torch.uint8)
    try:
        encode(encoder, inputs, [encoder.depth - 1], pool, torch.float32)
        attention_weights(encoder, inputs)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def compute(
    folder: Path, encoder: Encoder, layers: Sequence[int], view: View, manifest: Manifest, recipe: Recipe, world: World
) -> dict[int, Path]:
    """Compute the missing features, and return the folder of each layer's. All ranks call this together.

    Args:
        folder: a folder that all ranks share.
        encoder: an encoder whose network is on the ranks' device.
        layers: blocks counted from 0.

    Raises:
        DataError: too many samples are bad.
        OutputError: features cannot be written.
    """
    identities = {layer: view.identity() | {"data_set": manifest.identity, "layer": layer} for layer in layers}
    places = {layer: folder / _key(identity) for layer, identity in identities.items()}
    missing = world.from_first(
        sorted(layer for layer, place in places.items() if not _complete(place)) if world.rank == 0 else []
    )
    if not missing:
        return places
    partial = {layer: places[layer].with_name(f".{places[layer].name}") for layer in missing}
    if world.rank == 0:
        with output(folder):
            for path in partial.values():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir(parents=True)
    ids, values = _computed(encoder, missing, view, manifest, recipe, world)
    _refuse_too_many_bad(manifest, recipe, world.gather(len(ids)))
    name = f"part-{world.rank:05d}.safetensors"
    with output(folder):
        for layer, rows in zip(missing, values, strict=True):
            write_tensors({"ids": ids, "features": rows}, partial[layer] / name)
            fsync(partial[layer] / name)
    world.barrier()
    if world.rank == 0:
        with output(folder):
            for layer in missing:
                _seal(partial[layer], identities[layer])
                shutil.rmtree(places[layer], ignore_errors=True)
                partial[layer].rename(places[layer])
                fsync(folder)
    world.barrier()
    return places


def load(place: Path, part: int, parts: int, device: torch.device) -> Features:
    """Load the `part`-th of `parts` equal, contiguous parts of the result of `compute`."""
    files: list[Any] = [safe_open(path, framework="pt") for path in sorted(place.glob("part-*"))]
    counts = [file.get_slice("ids").get_shape()[0] for file in files]
    begin, end = (bound * sum(counts) // parts for bound in (part, part + 1))
    ids, values = [], []
    for file, rows in zip(files, counts, strict=True):
        here = slice(min(max(begin, 0), rows), min(max(end, 0), rows))
        ids.append(file.get_slice("ids")[here])
        values.append(file.get_slice("features")[here])
        begin, end = begin - rows, end - rows
    return Features(torch.cat(ids).to(device), torch.cat(values).to(device))


def _computed(
    encoder: Encoder, layers: Sequence[int], view: View, manifest: Manifest, recipe: Recipe, world: World
) -> tuple[Tensor, list[Tensor]]:
    """Return this rank's ids, int64 (n,), and the features of each layer, float32 (n, width), on the CPU."""
    begin, end = (rank * len(manifest) // world.size for rank in (world.rank, world.rank + 1))
    count = at_once(recipe.data.clip)
    loader = Loader(manifest, recipe.data, count, world.device)
    batches = loader.batches(centre_requests(manifest, recipe.data, begin, end, count, view.crop))
    ids: list[Tensor] = []
    values: list[list[Tensor]] = [[torch.empty(0, encoder.block_widths[layer])] for layer in layers]
    total = -(-(end - begin) // count)
    for batch in tracked(batches, f"features of {manifest.root}", total, hidden=world.rank > 0):
        good = batch.weights > 0
        ids.append(torch.from_numpy(batch.request.ids)[good.cpu()])
        dtype = DTYPES[view.precision]
        features = encode(encoder, batch.inputs, layers, view.pool, dtype, view.statistics)
        for rows, more in zip(values, features, strict=True):
            rows.append(more[good].cpu())
    return torch.cat([torch.empty(0, dtype=torch.int64), *ids]), [torch.cat(rows) for rows in values]


def _refuse_too_many_bad(manifest: Manifest, recipe: Recipe, good: list[int]) -> None:
    bad = len(manifest) - sum(good)
    if too_many(bad, len(manifest), recipe.data.bad_in_a_row, recipe.data.bad_share):
        raise DataError(
            f"{manifest.root}: {bad:,} of {len(manifest):,} samples are bad: run `maskfeat-shards verify` and fix it, "
            "or raise data.bad_share"
        )


def _key(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _seal(folder: Path, identity: dict[str, Any]) -> None:
    parts = {path.name: _digest(path) for path in sorted(folder.glob("part-*"))}
    (folder / "identity.json").write_text(json.dumps(identity | {"parts": parts}, indent=1))
    fsync(folder / "identity.json")
    fsync(folder)


def _complete(folder: Path) -> bool:
    """Return whether the features exist, with every byte as written."""
    try:
        sealed = json.loads((folder / "identity.json").read_text())["parts"]
        return bool(sealed == {path.name: _digest(path) for path in folder.glob("part-*")})
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(path: Path) -> list[Any]:
    return [path.stat().st_size, sha256_of(path)]
