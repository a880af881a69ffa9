"""Videos behind URLs that a table lists, as `build` reads them; and images among them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_videos import encoded, film
from PIL import Image
from servers import http_server

from shards.build import build
from shards.manifest import Manifest
from shards.verify import verify


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of two classes, an image, and a page."""
    root = tmp_path_factory.mktemp("served")
    for number in range(6):
        (root / "ab"[number % 2]).mkdir(exist_ok=True)
        codec, container = (("libx264", "mp4"), ("libvpx", "webm"), ("mpeg4", "avi"))[number % 3]
        video = encoded(film(5 + number, seed=number), codec, container, g=4)
        (root / "ab"[number % 2] / f"{number}.{container}").write_bytes(video)
    Image.fromarray(film(1)[0]).save(root / "photo.jpg")
    (root / "gone.mp4").write_text("<html>gone</html>")
    return root


def write_table(path: Path, urls: list[str], labels: list[str]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"url": urls, "label": labels}), path)
    else:
        rows = zip(urls, labels, strict=True)
        path.write_text("url,label\n" + "".join(f"{url},{label}\n" for url, label in rows))
    return path


def facts(root: Path) -> set[tuple[object, ...]]:
    manifest = Manifest.load(root)
    columns = ["crc32c", "label", "media", "frames", "fps_num", "codec"]
    return {tuple(row.values()) for row in manifest.rows(0, len(manifest), columns).select(columns).to_pylist()}


@pytest.mark.parametrize("query", ["", "?v=1"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_videos_behind_urls_are_those_of_the_folder(kind: str, query: str, files: Path, tmp_path: Path) -> None:
    """Also where a query hides the suffix."""
    videos = sorted(path.relative_to(files) for path in files.glob("[ab]/*"))
    with http_server(files) as server:
        urls = [f"{server.url}/{path}{query}" for path in videos]
        source = write_table(tmp_path / f"list.{kind}", urls, [path.parts[0] for path in videos])
        dataset, _ = build(source, tmp_path / "urls", samples_per_shard=4, workers=1)
    local = write_table(tmp_path / f"local.{kind}", [str(files / path) for path in videos], ["a"] * 3 + ["b"] * 3)
    build(local, tmp_path / "local", samples_per_shard=4, workers=1)
    assert (dataset.samples, dataset.rejects, dataset.classes) == (6, 0, ["a", "b"])
    assert facts(tmp_path / "urls") == facts(tmp_path / "local")
    assert verify(tmp_path / "urls", 1) == []


def test_bytes_tell_what_urls_without_a_suffix_hold(files: Path, tmp_path: Path) -> None:
    for number, path in enumerate([*sorted(files.glob("[ab]/*")), files / "photo.jpg", files / "gone.mp4"]):
        (tmp_path / "served").mkdir(exist_ok=True)
        (tmp_path / "served" / str(number)).write_bytes(path.read_bytes())
    (tmp_path / "served" / "named.jpg").write_bytes((files / "a" / "0.mp4").read_bytes())
    with http_server(tmp_path / "served") as server:
        names = [*map(str, range(8)), "named.jpg", "absent.mp4"]
        source = write_table(tmp_path / "list.csv", [f"{server.url}/{name}" for name in names], ["c"] * 10)
        dataset, _ = build(source, tmp_path / "out", workers=1)
    manifest = Manifest.load(tmp_path / "out")
    assert dataset.samples == 7 and manifest.media == {"image", "video"} and manifest.noun == "sample"
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    reasons = {row["path"].rpartition("/")[2]: (row["reason"], row["detail"]) for row in rejects}
    assert reasons.pop("named.jpg") == ("video", "has the name of an image; rename it")
    assert {name: reason for name, (reason, _) in reasons.items()} == {"7": "not an image", "absent.mp4": "unreadable"}
