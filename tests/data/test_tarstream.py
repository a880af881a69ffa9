"""Tars that are read on as they come: what counts as an image there, and hostile ones."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launching import small_recipe
from making_tars import END, base256, header, hostile, member
from PIL import Image

from pipeline.data.errors import DataError
from pipeline.data.stream import StreamData
from pipeline.data.tarstream import images_in
from pipeline.data.training_data import Part


def grey(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (48, 40), value).save(file, "PNG")
    return file.getvalue()


A, B, C = grey(10), grey(20), grey(30)


def found(content: bytes) -> list[bytes | None]:
    return list(images_in(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("members", "images"),
    [
        ([("a.png", A), ("a.cls", b"1"), ("b.png", B)], [A, B]),
        ([("a.PNG", A), ("b.input.png", B), ("b.output.cls", b"1")], [A, B]),
        ([("a.png", A), ("a.seg.png", B), ("a.json", b"{}")], [A]),
        ([("a.seg.png", B), ("a.png", A)], [A]),
        ([("a.v1.png", A), ("a.v2.png", B), ("b.png", C)], [None, C]),
        ([("a.png", A), ("a.jpg", B), ("b.txt", b"x")], [None, None]),
        ([("a.png", A), ("a.png", B)], [None]),
        ([("._a.png", b"x"), ("a.png", A), ("._a.cls", b"x"), ("__MACOSX/a.png", B), (".x/b.png", B)], [A, B]),
        ([("/a.png", A), ("../b.png", B), ("x/c.d/e.png", C)], [None, None, C]),
        ([], []),
    ],
)
@pytest.mark.parametrize("packed", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_the_images_are_those_that_index_takes(
    packed: Callable[[bytes], bytes], members: list[tuple[str, bytes]], images: list[bytes | None]
) -> None:
    content = b"".join(member(name.encode(), data) for name, data in members) + END
    assert found(packed(content)) == images


def test_hostile_tars_end_with_an_error_behind_what_is_good() -> None:
    for name, (content, _) in hostile(A).items():
        images: list[bytes | None] = []
        begun = time.process_time()
        if name == "two-tars":  # a stream ends with the first, as for webdataset
            assert found(content) == [A]
            continue
        with pytest.raises(tarfile.TarError) as caught:
            for image in images_in(io.BytesIO(content)):
                images.append(image)
        assert time.process_time() - begun < 1, name
        assert "\n" not in str(caught.value)
        assert [image for image in images if image] == ([] if name in ("empty-file", "text", "noise") else [A]), name


def test_a_stream_that_claims_much_takes_little_memory() -> None:
    class Endless(io.RawIOBase):
        """A member of 2^40 bytes, of which none end up in memory, as each is made when it is read."""

        def __init__(self) -> None:
            self.given, self.largest = 0, 0
            self.head = member(b"a.png", A) + header(b"b.png", base256(2**40))

        def read(self, size: int = -1) -> bytes:
            self.largest = max(self.largest, size)
            if self.given > 2**26:
                raise TimeoutError("that is enough")
            data = self.head[self.given : self.given + size] or bytes(size)
            self.given += len(data)
            return data

    stream = Endless()
    images = images_in(stream)
    assert next(images) == A
    with pytest.raises(TimeoutError):
        list(images)
    assert stream.largest <= 2**20


def test_a_hostile_tar_costs_a_run_that_tar_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, (content, _) in hostile(A).items():
        (tmp_path / f"{name}.tar").write_bytes(content)
    os.mkfifo(tmp_path / "zz-fifo.tar")
    (tmp_path / "zz-folder.tar").mkdir()
    (tmp_path / "zzz.tar").write_bytes(b"".join(member(b"%d.png" % n, C) for n in range(6)) + END)
    urls = "::".join(sorted(str(path) for path in tmp_path.glob("*.tar")))
    overrides = ["data.mode=stream", "data.stream_samples=48", "data.read_threads=1", "data.stream_buffer=8"]
    recipe = small_recipe(Path("unused"), Path("unused"), *overrides)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"shards": urls})})
    data = StreamData(recipe.data, Part(16, 8, 0, torch.device("cpu")))
    shown = {round(float(image.float().mean())) for batch in data.batches(0, 12) for image in batch.inputs}
    assert shown == {10, 30}
    for name, (_, why) in hostile(A).items():
        said = [line for line in caplog.messages if f"/{name}.tar: " in line]
        assert len(said) == (name != "two-tars"), name  # once, in however many rounds
        # How long the tar is shows only at its end
        assert all(why in line or "no header at byte" in line for line in said)
    assert f"tar skipped: {tmp_path}/zz-fifo.tar: is not a regular file" in caplog.messages
    assert f"tar skipped: {tmp_path}/zz-folder.tar: is not a regular file" in caplog.messages


def test_nothing_but_hostile_tars_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(header(b"x.png", base256(-512)) + END)
    recipe = small_recipe(Path("unused"), Path("unused"), "data.mode=stream", "data.stream_samples=48")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"shards": f"{tmp_path}/bad.tar"})})
    data = StreamData(recipe.data, Part(16, 8, 0, torch.device("cpu")))
    with pytest.raises(
        DataError, match=r"no tar gave an image: 1 could not be read.*/bad\.tar: the header at byte 0 cl"
    ):
        next(data.batches(0, 1))
