"""The command `maskfeat-shards build`."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from shards import build as builder
from shards.files import ShardError
from shards.making.engines import run, run_on_ray
from shards.making.holdout import Validation
from shards.manifest import Dataset, Manifest
from shards.media.media import DEFAULT_MAX_PIXELS, Alpha, Check, Depth, Frames
from shards.output import judge, progress, resumable, summarise
from shards.terminal import note, say

Out = Annotated[str, typer.Argument(metavar="OUT", help="Folder or object-store URL to create.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Parallel workers.", show_default="one per CPU core")]
Engine = Literal["local", "ray"]
MaxPixels = Annotated[int, typer.Option(min=1, help="Reject larger images and videos.")]
MaxRejects = Annotated[int, typer.Option(min=0, help="With more rejects, exit with status 1.")]


def build(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder, tar of class tars, table, or Parquet files.")],
    out: Out,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Samples assigned to each shard.")] = 1000,
    resize: Annotated[
        int | None,
        typer.Option(min=1, metavar="PX", help="Shrink short sides to PX; store JPEG and H.264.", show_default="off"),
    ] = None,
    workers: Workers = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of the samples.")] = 0,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    check: Annotated[Check, typer.Option(help="How to check images: decode all, or trust headers.")] = "decode",
    frames: Annotated[
        Frames | None, typer.Option(help="Store videos as JPEGs of their frames.", show_default="off")
    ] = None,
    frame_stride: Annotated[
        int, typer.Option(min=1, metavar="N", help="With --frames, store every N-th frame only.")
    ] = 1,
    alpha: Annotated[
        Alpha, typer.Option(help="Transparent images: reject, put on a background, or drop the transparency.")
    ] = "reject",
    depth: Annotated[
        Depth, typer.Option(help="Images of 9 to 16 bits per channel: reject, or keep the top 8 bits.")
    ] = "reject",
    validation: Annotated[
        str | None,
        typer.Option(metavar="N%|N", help="Hold out part of the files as a second data set.", show_default="none"),
    ] = None,
    validation_out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where to write the hold-out.", show_default="OUT-validation")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of a table; keep equal rows together.", show_default="group"),
    ] = None,
    engine: Annotated[Engine, typer.Option(help="Where the workers run.")] = "local",
    ray_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address of the Ray cluster.", show_default="$RAY_ADDRESS")
    ] = None,
    max_rejects: MaxRejects = 0,
) -> None:
    """Write the images and videos in SRC to a data set in OUT.

    Every file is checked; those that are not fit for training are left out and listed.

    SRC is a folder (SRC/<class>/**/<file>, or SRC/<file>), a tar of <class>.tar files as ImageNet is published,
    a .csv or .parquet table with a column `path` (files or URLs) and, for classes, `label` (names or integers), or
    .parquet files that hold the images, as on Hugging Face: a file, a folder, or a pattern, 'data/train-*.parquet'.
    docs/reference/sources.md lists the other names of these columns, and the folders and files that are ignored.

    OUT may be the URL of an object store, such as s3://bucket/set. Credentials come from the environment, as the
    store's own tools; shards are kept in the folder for temporary files ($TMPDIR) until they are uploaded.

    With --frames jpeg, training reads and decodes only the frames of a clip, as images: for nodes with few CPU cores.
    Such a data set is several times larger; docs/how-to/video.md says by how much, and how to choose --frame-stride.

    With --engine ray, the workers run on a Ray cluster, where SRC and OUT must have the same paths or URLs on every
    node, for instance on a shared file system. The result is the same, byte for byte.

    --validation 5%, or a number of files, holds out part of SRC as a second data set, OUT-validation, with the same
    classes. The seed and the paths of the files decide which. Rows with the same value in the column `group`, or the
    one that --group-by names, stay together, and OUT omits samples whose bytes are in the validation set.

    An interrupted build resumes when the same command is run again; the result is the same, byte for byte.
    Files that cannot be used are omitted and listed, with the reason, in OUT/rejects.parquet.

    8-bit JPEG and PNG files keep their bytes. Other images (WebP, BMP, TIFF, GIF; AVIF, JPEG 2000 and HEIC where the
    decoder is installed) are stored as lossless PNG or, with --resize, as JPEG of quality 95.

    \b
    Examples:
      maskfeat-shards build imagenet/train shards/train
      maskfeat-shards build ILSVRC2012_img_train.tar shards/train-256 --resize 256
      maskfeat-shards build kinetics400/train shards/k400 --resize 256 --samples-per-shard 200
      maskfeat-shards build kinetics400/train shards/k400-jpeg --resize 256 --frames jpeg --samples-per-shard 200
      maskfeat-shards build photos shards/photos --resize 128 --validation 5%
      maskfeat-shards build photos.csv shards/photos --samples-per-shard 5000 --max-rejects 100
      maskfeat-shards build /mnt/photos s3://bucket/photos --engine ray --ray-address auto
    """
    begun = time.monotonic()
    held_out = _validation(out, validation, validation_out, group_by)
    roots = [out] if held_out is None else [held_out.out, out]
    with resumable(*roots), progress("build", "files") as report:
        _, finished_before = builder.build(
            source,
            out,
            samples_per_shard=samples_per_shard,
            resize=resize,
            workers=workers,
            seed=seed,
            max_pixels=max_pixels,
            check=check,
            frames=frames,
            frame_stride=frame_stride,
            alpha=alpha,
            depth=depth,
            validation=held_out,
            engine=partial(run_on_ray, address=ray_address) if engine == "ray" else run,
            progress=report,
            note=note,
        )
    datasets = {root: Dataset.load(root) for root in roots}
    for root, dataset in datasets.items():
        if finished_before:
            say(f"{root}: already built from these {Manifest.load(root).noun}s with these options; nothing to do")
        else:
            summarise(root, dataset, time.monotonic() - begun if held_out is None else None)
    judge(roots, max_rejects)


def _validation(out: str, share: str | None, validation_out: str | None, group_by: str | None) -> Validation | None:
    """Return what the options on the hold-out ask for. Raises ShardError for options without `--validation`."""
    if share is not None:
        return Validation(share, validation_out or f"{out.rstrip('/')}-validation", group_by)
    for option, value in (("--validation-out", validation_out), ("--group-by", group_by)):
        if value is not None:
            raise ShardError(f"{option} {value}: belongs to --validation; give both, or neither")
    return None
