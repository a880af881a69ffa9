import base64
import hashlib
import json
import os
import re
import shutil
import struct
import zlib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_images import decoded, encoded, make_tree, picture
from PIL import Image

from shards.build import build
from shards.files import ShardError
from shards.manifest import Manifest
from shards.page import histogram
from shards.preview import write_preview


class Page(HTMLParser):
    """The images of a page by their title, its text, and everything that it would fetch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: dict[str, np.ndarray] = {}
        self.text, self.fetched = "", []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        kind, _, data = (values.get("src") or "").partition(",")
        if kind == "data:image/jpeg;base64":
            self.images[values["title"] or ""] = decoded(base64.b64decode(data))
        self.fetched += [value for name in ("src", "href") if (value := values.get(name)) and value[:5] != "data:"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_facts_images_rejects_and_duplicates_and_fetches_nothing(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", 10, ("ant", "<b>bee & co"))
    (source / "ant" / "copy.jpg").write_bytes((source / "ant" / "000.JPG").read_bytes())
    (source / "ant" / "<i>.jpg").write_bytes(b"text")
    exif = Image.Exif()
    exif[0x0112] = 6
    red_left = np.zeros((40, 80, 3), np.uint8)
    red_left[:, :40, 0] = 255
    turned = encoded(Image.fromarray(red_left), "JPEG", exif=exif.tobytes(), quality=95)
    (source / "ant" / "turned.jpg").write_bytes(turned)
    build(source, tmp_path / "out", workers=1)
    assert write_preview(tmp_path / "out", tmp_path / "page.html") == 7 + 5 + 1
    page = Page(tmp_path / "page.html")
    assert page.fetched == []
    assert "://" not in (tmp_path / "page.html").read_text()
    for text in ("<b>bee & co 5", "Rejects 1", "<i>.jpg not a readable", "Duplicates 1", "ant/copy.jpg"):
        assert text in page.text
    assert f"identity {Manifest.load(tmp_path / 'out').identity}" in page.text
    upright = page.images["ant/turned.jpg, 40 x 80"]
    assert upright.shape == (80, 40, 3)
    assert upright[10, 20, 0] > 200 and upright[70, 20, 0] < 50
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in ("", ".html")] == []


def test_many_classes_are_thinned_out_evenly(tmp_path: Path) -> None:
    image = encoded(picture(0), "JPEG")
    for number in range(400):
        folder = tmp_path / "source" / f"{number:03d}"
        folder.mkdir(parents=True)
        (folder / "image.jpg").write_bytes(image + b"%d" % number)
    build(tmp_path / "source", tmp_path / "out", workers=1)
    assert write_preview(tmp_path / "out", tmp_path / "page.html") == 200
    assert list(Page(tmp_path / "page.html").images) == [f"{n:03d}/image.jpg, 56 x 40" for n in range(0, 400, 2)]


def test_without_classes_the_images_are_shown_by_shard(tmp_path: Path) -> None:
    build(make_tree(tmp_path / "source", 30, ()), tmp_path / "out", samples_per_shard=4, workers=1)
    assert write_preview(tmp_path / "out", tmp_path / "page.html") == 30
    page = Page(tmp_path / "page.html")
    assert "shard-000007.tar 2" in page.text
    assert "None: every file was kept." in page.text and "None: no two samples" in page.text


def test_a_histogram_counts_every_value_once() -> None:
    values = np.array([64] * 5 + [100] * 2 + [256])
    chart = histogram("title", "note", values, {64: "64", 128: "128", 1024: "1024"})
    bars = re.findall(r"height=([\d.]+)><title>([\d.]+) to ([\d.]+): (\d+)<", chart)
    assert [(float(height), int(count)) for height, _, _, count in bars] == [(130.0, 5), (52.0, 2), (26.0, 1)]
    assert all(
        float(low) <= value <= float(high) for value, (_, low, high, _) in zip((64, 100, 256), bars, strict=True)
    )
    assert re.findall(r">(\d+)</text>", chart) == ["64", "128"]
    assert "<title>1 to 1.02: 7<" in histogram("all alike", "", np.full(7, 1), {})


def test_a_damaged_image_or_an_unwritable_page_is_an_error(tmp_path: Path) -> None:
    build(make_tree(tmp_path / "source", 2), tmp_path / "out", workers=1)
    with pytest.raises(
        ShardError, match=r"nowhere/page\.html: cannot be written \(No such file or directory\); choose another"
    ):
        write_preview(tmp_path / "out", tmp_path / "nowhere" / "page.html")
    tar = tmp_path / "out" / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[Manifest.load(tmp_path / "out").offset[0] + 5] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ShardError, match=r"shard-000000\.tar: ant/000\.JPG is damaged; run `maskfeat-shards verify"):
        write_preview(tmp_path / "out", tmp_path / "page.html")
    tar.unlink()
    with pytest.raises(ShardError, match=r"shard-000000\.tar: No such file or directory; run"):
        write_preview(tmp_path / "out", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def identity(path: Path) -> tuple[int, int, int]:
    """Return the identity of a file, link or folder, which reading does not change."""
    status = path.lstat()
    return status.st_ino, status.st_mode, status.st_mtime_ns


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    build(make_tree(tmp_path / "source", 2), tmp_path / "out", workers=1)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("fifo")
    os.mkfifo(tmp_path / "fifo")
    for name in ("folder", "link", "fifo"):
        before = identity(tmp_path / name)
        with pytest.raises(ShardError, match=rf"{name}: cannot be written \(is not a regular file\)"):
            write_preview(tmp_path / "out", tmp_path / name)
        assert identity(tmp_path / name) == before


MARKUP = "</style></title></script><script src='//evil/x.js'>alert(1)</script>\"'><img src=x onerror=alert(1)><!--"


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def counts(self) -> Counter[str]:
        return Counter(tag for tag, _ in self.tags)

    def attributes(self) -> set[tuple[str, str]]:
        return {(tag, name) for tag, attributes in self.tags for name, _ in attributes}


def with_texts(folder: Path, text: str) -> None:
    """Put a text into every string that a data set without a wrong checksum can hold."""
    for name in ("manifest", "rejects"):
        table = pq.read_table(folder / f"{name}.parquet")
        for column in table.column_names:
            if table.schema.field(column).type == pa.string() and column != "media":  # of which few are known
                texts = pa.array([f"{text}{row}" for row in range(len(table))])
                table = table.set_column(table.column_names.index(column), column, texts)
        pq.write_table(table, folder / f"{name}.parquet")
    described = json.loads((folder / "dataset.json").read_text())
    described["classes"] = [f"{text}{name}" for name in described["classes"]]
    described["fingerprint"] = text
    described["manifest_sha256"] = hashlib.sha256((folder / "manifest.parquet").read_bytes()).hexdigest()
    (folder / described["shards"][0]["name"]).rename(folder / text.replace("/", "_"))
    described["shards"][0]["name"] = text.replace("/", "_")
    (folder / "dataset.json").write_text(json.dumps(described))


@pytest.mark.parametrize("classes", [("ant", "bee"), ()])
def test_no_text_of_a_data_set_is_markup_of_its_page(classes: tuple[str, ...], tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", 8, classes)
    first = sorted(source.rglob("*.*"))[0]
    (first.parent / "copy.jpg").write_bytes(first.read_bytes())
    (first.parent / "text.jpg").write_bytes(b"text")
    plain, odd = tmp_path / "plain", tmp_path / MARKUP.replace("/", "_")
    build(source, plain, workers=1)
    shutil.copytree(plain, odd)
    with_texts(odd, MARKUP)
    for folder in (plain, odd):
        assert write_preview(folder, tmp_path / f"{folder == odd}.html") == 8 + 1 + 1
    expected, page = Tags((tmp_path / "False.html").read_text()), (tmp_path / "True.html").read_text()
    found = Tags(page)
    assert found.counts() == expected.counts()
    assert found.attributes() == expected.attributes()
    assert page.count("onerror=alert") == page.count("&lt;img src=x onerror=alert") > 10


def test_a_page_tells_browsers_to_run_and_fetch_nothing(tmp_path: Path) -> None:
    build(make_tree(tmp_path / "source", 2), tmp_path / "out", workers=1)
    write_preview(tmp_path / "out", tmp_path / "page.html")
    (policy,) = [
        dict(attributes) for tag, attributes in Tags((tmp_path / "page.html").read_text()).tags if tag == "meta"
    ][1:2]
    assert policy == {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'",
    }


def test_halves_of_characters_are_shown_as_escapes(tmp_path: Path) -> None:
    build(make_tree(tmp_path / "source", 4), tmp_path / "out", workers=1)
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())
    described["classes"][0] = "a\ud800b"
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(described))
    write_preview(tmp_path / "out", tmp_path / "page.html")
    assert r"a\ud800b" in (tmp_path / "page.html").read_text()


def replace_image(folder: Path, data: bytes) -> None:
    """Puts another image in the place of the first, under the right checksums."""
    manifest = Manifest.load(folder)
    with (folder / "shard-000000.tar").open("r+b") as tar:
        tar.seek(int(manifest.offset[0]))
        tar.write(data)
    table = pq.read_table(folder / "manifest.parquet")
    for column, value in (("size", len(data)), ("crc32c", google_crc32c.value(data))):
        values = table[column].to_pylist()
        values[0] = value
        place = table.column_names.index(column)
        table = table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type))
    pq.write_table(table, folder / "manifest.parquet")
    described = json.loads((folder / "dataset.json").read_text())
    described["manifest_sha256"] = hashlib.sha256((folder / "manifest.parquet").read_bytes()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(described))


def huge_png() -> bytes:
    """A PNG of 30,000 by 30,000 pixels by its header."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("data", [b"no image", b"\xff\xd8\xff\xe0 torn", huge_png()], ids=["text", "torn", "huge"])
def test_an_image_that_cannot_be_shown_leaves_its_place(data: bytes, tmp_path: Path) -> None:
    build(make_tree(tmp_path / "source", 4), tmp_path / "out", workers=1)
    replace_image(tmp_path / "out", data)
    assert write_preview(tmp_path / "out", tmp_path / "page.html") == 3
    assert Page(tmp_path / "page.html").text.count("cannot be shown") == 1
