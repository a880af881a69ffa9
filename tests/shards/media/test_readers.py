"""Other programs read the shards: webdataset, and DALI's WebDataset reader through the `.idx` files."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from making_images import check_image, encoded, make_tree, picture
from PIL import Image

from shards.build import build
from shards.files import ShardError
from shards.manifest import Manifest
from shards.tars.samples import dali_index, samples_of


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("readers")
    source = make_tree(root / "source", 17)
    (source / "bee" / "005.JPG").write_bytes(b"")
    build(source, root / "out", samples_per_shard=6, workers=1)
    return root / "out"


def expected(root: Path) -> list[tuple[str, int, bytes]]:
    """(key, label, image bytes) of every sample, by the manifest."""
    manifest = Manifest.load(root)
    tars = [(root / name).read_bytes() for name in manifest.shard_names]
    return [
        (manifest.key(sample), int(manifest.label[sample]), tars[manifest.shard[sample]][at : at + size])
        for sample, (at, size) in enumerate(zip(manifest.offset, manifest.size, strict=True))
    ]


def test_webdataset_reads_every_key_label_and_byte(built: Path) -> None:
    import webdataset

    urls = [str(built / name) for name in Manifest.load(built).shard_names]
    read = [
        (sample["__key__"], int(sample["cls"]), sample.get("jpg", sample.get("png")))
        for sample in webdataset.WebDataset(urls, shardshuffle=False)
    ]
    assert read == expected(built)
    assert len(read) == 16


def test_dali_reads_every_label_and_byte_through_the_index(built: Path) -> None:
    fn = pytest.importorskip("nvidia.dali.fn")
    from nvidia.dali import pipeline_def

    names = Manifest.load(built).shard_names
    paths = [str(built / name) for name in names]

    @pipeline_def(batch_size=16, num_threads=1, device_id=None)
    def pipeline():  # type: ignore[no-untyped-def]
        images, labels = fn.readers.webdataset(
            paths=paths,
            index_paths=[path.replace(".tar", ".idx") for path in paths],
            ext=["jpg;png", "cls"],
            missing_component_behavior="error",
        )
        return images, labels

    images, labels = pipeline().run()
    read = [
        (int(bytes(np.asarray(label))), bytes(np.asarray(image))) for image, label in zip(images, labels, strict=True)
    ]
    assert read == [(label, data) for _, label, data in expected(built)]


def test_dali_decodes_to_the_sizes_in_the_manifest_whatever_the_exif() -> None:
    fn = pytest.importorskip("nvidia.dali.fn")
    from nvidia.dali import pipeline_def, types

    def jpeg(exif: bytes) -> bytes:
        return encoded(picture(0), "JPEG", exif=exif)

    def tiff(order: str, kind: int, value: bytes, end: bytes = b"\0\0\0\0") -> bytes:
        head = b"II*\0\x08\0\0\0" if order == "little" else b"MM\0*\0\0\0\x08"
        numbers = [(1, 2), (0x0112, 2), (kind, 2), (1, 4)]
        return b"Exif\0\0" + head + b"".join(n.to_bytes(size, order) for n, size in numbers) + value + end

    def directory(order: str, tags: list[tuple[int, int, int, int]], entries: int | None = None) -> bytes:
        """These tags, then 48 bytes."""
        sizes = (2, 2, 4, 4)
        head = b"II*\0\x08\0\0\0" if order == "little" else b"MM\0*\0\0\0\x08"
        body = (len(tags) if entries is None else entries).to_bytes(2, order)
        for tag in tags:
            body += b"".join(number.to_bytes(size, order) for number, size in zip(tag, sizes, strict=True))
        return b"Exif\0\0" + head + body + bytes(48)

    exifs = []
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        exifs.append(exif.tobytes())
    exifs += [b"Exif\0\0garbage", tiff("little", 3, b"\6\0\0\0", b""), tiff("big", 3, b"\0\6\0\0")]
    exifs += [tiff("little", kind, b"\6\0\0\0") for kind in (1, 4)]
    exifs += [tiff("big", 1, b"\6\0\0\0"), tiff("big", 4, b"\0\0\0\6")]
    for order in ("little", "big"):
        turn = (0x0112, 3, 1, 6 if order == "little" else 6 << 16)
        exifs += [directory(order, [turn], entries) for entries in (0, 1, 2, 9)]
        for tag in (0x0100, 0x010E, 0x0110, 0x0112, 0x011B, 0x0128, 0x0131, 0x013F, 0x0211, 0x8298, 0x8769):
            for length, place in ((4, 4), (30, 40), (48, 38), (49, 38), (1, 500)):  # the last two are beyond the end
                other = (tag, 2, length, place)
                exifs += [directory(order, [other, turn]), directory(order, [turn, other])]
    stored = [check_image(jpeg(exif), 10_000, None) for exif in exifs]
    stored.append(check_image(encoded(picture(0), "PNG", exif=exifs[6]), 10_000, None))

    @pipeline_def(batch_size=len(stored), num_threads=1, device_id=None)
    def pipeline():  # type: ignore[no-untyped-def]
        files = fn.external_source(lambda: [np.frombuffer(image.data, np.uint8) for image in stored], dtype=types.UINT8)
        return fn.decoders.image(files)

    (decoded,) = pipeline().run()
    sizes = [np.asarray(image).shape[:2] for image in decoded]
    assert sizes == [(image.height, image.width) for image in stored]
    assert (56, 40) in sizes


def test_members_that_must_not_be_read_are_named_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "odd.tar"
    path.write_bytes(b"x" * 2048)
    with pytest.raises(ShardError, match=r"odd\.tar: not a readable tar"):
        samples_of(path)
    with tarfile.open(path, "w") as tar:
        for name, kind in [
            ("a.b/0.jpg", tarfile.REGTYPE),
            ("a.b/0.cls", tarfile.SYMTYPE),
            ("1.jpg", tarfile.LNKTYPE),
            ("2.jpg", tarfile.CHRTYPE),
            ("3.jpg", tarfile.FIFOTYPE),
            ("/4.jpg", tarfile.REGTYPE),
            ("x/../5.jpg", tarfile.REGTYPE),
            ("folder", tarfile.DIRTYPE),
            ("6.jpg", tarfile.REGTYPE),
            ("6.jpg", tarfile.REGTYPE),
            ("7.cap tion", tarfile.REGTYPE),
            ("7.seg.png", tarfile.REGTYPE),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "elsewhere"
            tar.addfile(member)
    samples = samples_of(path)
    assert [(key, list(parts), unsafe) for key, parts, unsafe in samples] == [
        ("1", [], "1.jpg is a hard link to elsewhere, which is not in the tar before it"),
        ("2", [], "2.jpg is not a regular file"),
        ("3", [], "3.jpg is not a regular file"),
        ("/4", [], "/4.jpg has an absolute or .. path"),
        ("x/../5", [], "x/../5.jpg has an absolute or .. path"),
        ("a.b/0", ["jpg"], "a.b/0.cls is not a regular file"),
        ("6", ["jpg"], "6.jpg is there twice"),
        ("7", ["cap tion", "seg.png"], None),
    ]
    assert dali_index(samples[-1:]) == f"v1.2 1\nseg.png {samples[-1].members['seg.png'][0]} 0 7.seg.png\n"
