"""A kind of sample that is added from outside: one class, and no line in build, index, verify or preview."""

import base64
import json
from dataclasses import fields
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from making_images import encoded, make_tar, make_tree, picture

from shards.build import build
from shards.files import sha256_of
from shards.index import index_tars
from shards.manifest import Manifest
from shards.media.image import IMAGE
from shards.media.media import Checked, CheckOptions, Rejected, VideoStream
from shards.media.registry import MEDIA
from shards.preview import write_preview
from shards.tables.columns import JPEG_COLUMNS, MANIFEST_SCHEMA, OPTIONAL
from shards.verify import verify

TIMES = VideoStream(
    frames=3,
    fps_num=25,
    fps_den=1,
    duration=0.12,
    codec="toy",
    pix_fmt="gray",
    time_base_num=1,
    time_base_den=1000,
    pts_start=None,
    pts_step=None,
    pts=[0, 40, 90],
    key_frames=[0, 2],
    key_offsets=None,
)
RED = encoded(picture(5, 16, 16), "JPEG")


class Clips:
    """Text such as `CLIP 4 6`: its height and its width."""

    name = "clip"
    suffixes = frozenset({"clip", "film"})
    kept = frozenset({"clip"})
    changed = "never"

    def check(self, data: bytes, options: CheckOptions) -> Checked:
        checked = self.probe(data)
        if checked.height * checked.width > options.max_pixels:
            raise Rejected("too many pixels", "a large clip")
        return checked

    def probe(self, data: bytes) -> Checked:
        kind, *sides = data.split()
        if kind != b"CLIP":
            raise Rejected("corrupt", "not a clip")
        return Checked(data, "clip", *map(int, sides), TIMES)

    def thumbnail(self, data: bytes, side: int) -> bytes:
        return RED

    def moving(self, data: bytes, side: int) -> bytes | None:
        return None


@pytest.fixture(autouse=True)
def clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEDIA, "clip", Clips())


def test_a_source_of_images_and_others_is_built_verified_and_shown(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", 4)
    files = {"ant/a.clip": b"CLIP 4 6", "bee/B.FILM": b"CLIP 8 9", "bee/c.clip": b"torn", "bee/d.clip": b"CLIP 99 999"}
    for name, data in files.items():
        (source / name).write_bytes(data)
    dataset, _ = build(source, tmp_path / "out", max_pixels=9_999, workers=1)
    assert (dataset.samples, dataset.rejects, dataset.ignored) == (6, 2, 0)
    rows = {row["path"]: row for row in pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()}
    for path in ("ant/a.clip", "bee/B.FILM"):
        assert (rows[path]["media"], rows[path]["size"]) == ("clip", len(files[path]))
        assert f"CLIP {rows[path]['height']} {rows[path]['width']}".encode() == files[path]
        listed = OPTIONAL - JPEG_COLUMNS
        assert {name: rows[path][name] for name in listed} == {name: getattr(TIMES, name) for name in listed}
    image = rows["ant/000.JPG"]
    assert image["media"] == "image" and all(image[name] is None for name in listed)
    assert Manifest.load(tmp_path / "out").media == {"image", "clip"}
    assert (tmp_path / "out" / "shard-000000.idx").read_text().count(".clip") == 2
    assert verify(tmp_path / "out") == []
    write_preview(tmp_path / "out", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count(base64.b64encode(RED).decode()) == 2


def test_tars_of_others_are_indexed(tmp_path: Path) -> None:
    members = {"0.clip": b"CLIP 4 6", "0.cls": b"1", "1.jpg": encoded(picture(1), "JPEG"), "2.film": b"CLIP 1 1"}
    make_tar(tmp_path / "a.tar", members | {"3.clip": b"CLIP 2 2", "3.jpg": encoded(picture(3), "JPEG")})
    index_tars([str(tmp_path / "a.tar")], tmp_path / "out", workers=1)
    rows = pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert [(row["key"], row["media"], row["pts"]) for row in rows] == [
        ("0", "clip", [0, 40, 90]),
        ("1", "image", None),
    ]
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert [(reject["path"][-1], reject["reason"]) for reject in rejects] == [
        ("2", "needs rewriting"),
        ("3", "not one image"),
    ]
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("column", "value"),
    [("media", "image"), ("frames", 4), ("pts", [1, 2, 3]), ("key_frames", None), ("pts_step", 5), ("duration", 9.5)],
)
def test_verify_compares_what_only_the_header_of_such_a_file_tells(column: str, value: object, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", 2)
    (source / "ant" / "a.clip").write_bytes(b"CLIP 4 6")
    build(source, tmp_path / "out", workers=1)
    table = pq.read_table(tmp_path / "out" / "manifest.parquet")
    rows = table.to_pylist()
    place = next(index for index, row in enumerate(rows) if row["media"] == "clip")
    rows[place][column] = value
    pq.write_table(table.from_pylist(rows, MANIFEST_SCHEMA), tmp_path / "out" / "manifest.parquet")
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    description["manifest_sha256"] = sha256_of(tmp_path / "out" / "manifest.parquet")
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(description))
    (problem,) = verify(tmp_path / "out")
    assert f"its {column} is {value} in the manifest, " in problem.what


def test_what_is_said_of_a_video_are_the_columns_that_images_leave_null() -> None:
    names = [field.name for field in fields(VideoStream)]
    assert set(names) == OPTIONAL and MANIFEST_SCHEMA.names[-len(names) :] == names


def test_images_are_a_kind_like_any_other() -> None:
    assert MEDIA["image"] is IMAGE
    assert IMAGE.kept < IMAGE.suffixes
    with pytest.raises(Rejected, match="empty"):
        IMAGE.check(b"", CheckOptions())
