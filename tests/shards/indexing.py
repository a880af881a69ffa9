"""Tars of a few images, and their index."""

from pathlib import Path

import pyarrow.parquet as pq
from making_images import encoded, picture

from shards.index import index_tars
from shards.manifest import Manifest
from shards.verify import verify

JPEGS = [encoded(picture(seed), "JPEG") for seed in range(6)]


def indexed(root: Path, *tars: Path) -> dict[str, tuple[bytes, str | None]]:
    """Key to image and class, by the manifest of a data set of these tars that `verify` finds whole."""
    out = root / "out"
    index_tars([str(tar) for tar in tars], out, workers=1)
    assert verify(out, workers=1) == []
    manifest = Manifest.load(out)
    places = list(zip(manifest.shard.tolist(), manifest.offset.tolist(), strict=True))
    assert places == sorted(places)
    found = {}
    for sample, (key, _) in enumerate(manifest.names(0, len(manifest))):
        content = Path(manifest.shard_location(manifest.shard[sample])).read_bytes()
        label = manifest.label[sample]
        image = content[manifest.offset[sample] :][: manifest.size[sample]]
        found[key] = (image, manifest.classes[label] if label >= 0 else None)
    return found


def rejects(root: Path) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(root / "out" / "rejects.parquet").to_pylist()
    return {Path(row["path"]).name: (row["reason"], row["detail"]) for row in rows}


def samples() -> dict[str, bytes]:
    members = {}
    for number, image in enumerate(JPEGS):
        members |= {f"{number}.jpg": image, f"{number}.cls": b"%d" % (number % 3), f"{number}.txt": b"words"}
    return members
