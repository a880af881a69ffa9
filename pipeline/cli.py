"""The program `maskfeat-shards`: the commands of `shards.cli`, and `plan`, which needs the order of samples."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from pipeline.data.cache.simulate import Fleet, Forecast, forecast
from pipeline.data.cache.sizes import MOST_SAMPLES, ShardSizes, remedies, shards_of, shared_out
from pipeline.data.mixture import whole
from pipeline.data.plan import BLOCK, LANES, MOST_IN_BLOCK, MOST_LANES
from shards import cli
from shards.media.registry import MEDIA
from shards.storage import printable_url
from shards.terminal import note, say
from shards.text import counted

_MOST = 2**62  # bytes
_MOST_SHARDS = 10**8  # so that arrays fit in memory


def _bytes(text: str) -> int:
    """Parse a size in bytes, "500GB" or "1.5TiB", or a rate in bytes per second, "25Gbit" or "3GB/s"."""
    try:
        size = int(TypeAdapter(ByteSize).validate_python(text.removesuffix("/s")))
    except (ValidationError, OverflowError):
        size = 0
    if not 0 < size < _MOST:
        raise typer.BadParameter(f"{text!r} is not a size such as 500GB, 1.5TiB, 25Gbit or 3GB/s")
    return size


def _number(text: str) -> int:
    """Parse a whole number, including forms such as "10e9"."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1 <= number <= MOST_SAMPLES or not number.is_integer():
        raise typer.BadParameter(f"{text!r} is not a whole number from 1 to 1e15 such as 1281167 or 10e9")
    return int(number)


def _medium(text: str) -> str:
    if text not in MEDIA:
        raise typer.BadParameter(f"{text!r} is not {' or '.join(MEDIA)}")
    return text


def main() -> None:
    """Run the command line."""
    cli.main([*cli.COMMANDS, plan])


def plan(
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")],
    batch: Annotated[int, typer.Option(min=1, help="The recipe's optim.batch_size.")],
    cache: Annotated[int, typer.Option(parser=_bytes, metavar="SIZE", help="A node's cache, such as 500GB.")],
    roots: Annotated[
        list[str] | None, typer.Argument(metavar="DIR", help="A finished data set, or its URL; several are mixed.")
    ] = None,
    weights: Annotated[
        list[float] | None, typer.Option("--weight", min=1e-6, max=1e9, help="Weight of each DIR, in order.")
    ] = None,
    media: Annotated[
        list[str] | None,
        typer.Option("--medium", parser=_medium, metavar="image|video", help="Medium of each DIR, if there are both."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(parser=_number, metavar="N", help="Number of samples, instead of DIR.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--bytes", parser=_bytes, metavar="SIZE", help="Total size, instead of DIR.")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(parser=_number, metavar="N", help="Number of shards, instead of DIR.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=4096, help="The recipe's data.repeats x mask.repeats.")] = 1,
    ranks_per_node: Annotated[int, typer.Option(min=1, help="Processes (GPUs) per node.")] = 8,
    lanes: Annotated[int, typer.Option(min=1, max=MOST_LANES, help="The recipe's data.lanes.")] = LANES,
    block: Annotated[int, typer.Option(min=1, max=MOST_IN_BLOCK, help="The recipe's data.block.")] = BLOCK,
    seed: Annotated[int, typer.Option(min=0, max=2**62 - 1, help="The recipe's run.seed.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to simulate.")] = 3,
    bandwidth: Annotated[
        int, typer.Option(parser=_bytes, metavar="RATE", help="From storage to a node, such as 25Gbit or 3GB/s.")
    ] = "10Gbit",  # type: ignore[assignment]  # typer parses defaults too
    images_per_second: Annotated[
        float | None,
        typer.Option(
            "--images-per-second",
            "--clips-per-second",
            min=1,
            max=1e12,
            help="Training speed on all nodes, in inputs of the model.",
            show_default="unknown",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, sizes in bytes.")] = False,
) -> None:
    """Simulate the load of a run on storage and on the nodes' caches.

    DIR is a data set, of which only dataset.json is read; --samples, --bytes and --shards describe a hypothetical one.
    Give the data sets of a mixture in the order of their names in data.mixture, with --weight for each unless they have
    none there; in a mixture of images and videos, give all data sets of images first, with --medium for each.
    A sample is an image or a video, which counts with all its bytes, even if only some frames are used. With
    --repeats N, a batch has N views of each of its samples: clips or crops, under each of their masks.
    If a node's cache is too small for one step, prints what would be enough, and exits with status 1.

    \b
    Examples:
      maskfeat-shards plan shards/train --nodes 8 --batch 4096 --cache 500GB --bandwidth 25Gbit
      maskfeat-shards plan shards/k400 --nodes 8 --batch 512 --repeats 4 --cache 500GB --clips-per-second 1500
      maskfeat-shards plan photos --weight 3 sketches --weight 1 --nodes 8 --batch 4096 --cache 500GB
      maskfeat-shards plan photos --medium image clips --medium video --nodes 8 --batch 512 --cache 500GB
      maskfeat-shards plan --samples 10e9 --bytes 1PB --shards 1e6 --nodes 512 --batch 65536 --lanes 4096 --cache 8TB
    """
    if batch % (nodes * ranks_per_node * repeats):
        of_each = f", {repeats} of each sample" if repeats > 1 else ""
        raise typer.BadParameter(
            f"--batch {batch} cannot be divided evenly among {nodes} nodes of {ranks_per_node} ranks{of_each}; "
            f"change it, --nodes or --ranks-per-node{' or --repeats' if repeats > 1 else ''}"
        )
    at_once = batch // repeats
    sets = _data_sets(roots, weights, media, samples, size, shards)
    fleet, order = Fleet(nodes, ranks_per_node, at_once, cache), sets.order(seed, lanes, block, at_once)
    shard_bytes = sets.shard_bytes
    found = forecast(order, shard_bytes, fleet, epochs)
    total = int(shard_bytes.sum())
    if as_json:
        data_set = {"samples": order.samples, "shards": len(shard_bytes), "bytes": total}
        settings = asdict(fleet) | {"repeats": repeats, "lanes": lanes, "block": block, "bandwidth": bandwidth}
        print(json.dumps(data_set | settings | asdict(found), indent=1))
    else:
        machines = counted(nodes, "node")
        rows = [
            ("data set", f"{counted(order.samples, 'sample')} in {counted(len(shard_bytes), 'shard')}, {_text(total)}"),
            *_mixed(roots or [], sets, order.samples),
            (
                "run",
                f"{machines} of {counted(ranks_per_node, 'rank')}, {order.samples / at_once:,.1f} batches per epoch",
            ),
            ("order", f"{counted(lanes, 'lane')}, blocks of {block:,} samples"),
            ("simulated", f"{found.nodes_simulated:,} of {machines}"),
            *_outlook(found, total, bandwidth),
        ]
        if images_per_second and found.most_node_reads:
            epoch = order.samples * repeats / images_per_second
            rate = max(found.most_node_reads) / epoch
            share = f"{_text(rate)}/s, {rate / bandwidth:.0%} of its bandwidth"
            rows.append(("training", f"takes {_time(epoch)} per epoch, in which a node reads {share}"))
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            say(f"{name:<{width}}  {value}")
    if lanes % nodes or at_once % lanes:
        of_lanes = "--lanes" if repeats == 1 else "--lanes times --repeats"
        note(
            "nodes share lanes and read each other's shards: make --lanes a multiple of --nodes, and --batch of "
            f"{of_lanes}"
        )
    if cache < found.smallest_cache:
        note(f"a cache of {_text(cache)} is too small: {_text(found.smallest_cache)} are needed")
        for change, need in remedies(sets, order, fleet):
            note(f"or use {change}, with which {_text(need)} are needed")
        raise typer.Exit(1)


def _data_sets(
    roots: list[str] | None,
    weights: list[float] | None,
    media: list[str] | None,
    samples: int | None,
    size: int | None,
    shards: int | None,
) -> ShardSizes:
    """Return the data sets in `roots`, or a hypothetical one with even shards."""
    imagined = (samples, size, shards)
    if roots and not any(imagined):
        if weights and len(weights) != len(roots):
            raise typer.BadParameter("give --weight as often as DIR, in the same order, or not at all")
        if media and len(media) != len(roots):
            raise typer.BadParameter("give --medium as often as DIR, in the same order, or not at all")
        if media and media != sorted(media):
            raise typer.BadParameter("give all data sets of images before those of videos")
        for root in roots:
            if roots.count(root) > 1:
                raise typer.BadParameter(f"{printable_url(root)} is given twice: give it once, with a larger weight")
        counts, sizes = zip(*(shards_of(root) for root in roots), strict=True)
        return ShardSizes([*counts], [*sizes], whole(weights or [int(of_set.sum()) for of_set in counts]), media)
    if roots or weights or media or samples is None or size is None or shards is None:
        raise typer.BadParameter("give either DIR or all of --samples, --bytes and --shards")
    if shards > _MOST_SHARDS:
        raise typer.BadParameter(f"{shards:,} shards are more than {_MOST_SHARDS:,}; lower --shards")
    if shards > samples:
        raise typer.BadParameter(f"{samples:,} samples cannot fill {shards:,} shards; lower --shards")
    return ShardSizes([shared_out(samples, shards)], [shared_out(size, shards)], [1])


def _mixed(roots: list[str], sets: ShardSizes, samples: int) -> Iterator[tuple[str, str]]:
    """Yield how often each data set of a mixture is drawn from; nothing for a single data set."""
    if len(roots) < 2:
        return
    for root, counts, weight in zip(roots, sets.counts, sets.weights, strict=True):
        share, own = weight / sum(sets.weights), int(counts.sum())
        epochs = f"{share * samples / own:.3g} of its epochs per epoch of the run"
        yield "mixed", f"{share:.1%} from {printable_url(root)}: {counted(own, 'sample')}, {epochs}"


def _outlook(found: Forecast, data_set_bytes: int, bandwidth: int) -> Iterator[tuple[str, str]]:
    need = _text(found.smallest_cache)
    yield (
        "in use",
        f"at most {counted(found.shards_in_use, 'shard')} at one step on a node; {need} is the smallest cache",
    )
    ranges = f"{_time(found.first_batch / bandwidth)} by ranges ({_text(found.first_batch)} a node)"
    whole = f"{_time(found.first_batch_shards / bandwidth)} by whole shards ({_text(found.first_batch_shards)})"
    yield "first batch", f"after {ranges}, {whole}"
    for epoch, egress in enumerate(found.egress):
        most = found.most_node_reads[epoch]
        yield (
            f"epoch {epoch + 1}",
            f"a node reads {_text(found.node_reads[epoch])}, at most {_text(most)} in {_time(most / bandwidth)}; "
            f"{found.hit_rate[epoch]:.0%} from caches; in all {_text(egress)}, {egress / data_set_bytes:.2f} data sets",
        )


def _text(size: float) -> str:
    return ByteSize(size).human_readable(decimal=True, separator=" ")


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:,.0f} ms"
    return f"{seconds:,.0f} s" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


if __name__ == "__main__":
    main()
