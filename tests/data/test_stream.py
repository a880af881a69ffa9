"""Training from tars without a manifest: divided among ranks, shuffled, endless, with clear errors."""

import errno
import io
import itertools
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from launching import launch, losses, small_recipe
from making_streams import grey, numbers, seen, stream, write_tar
from PIL import Image
from servers import http_server

from pipeline.data import stream as stream_module
from pipeline.data.errors import DataError
from pipeline.data.stream import _size
from pipeline.settings import ConfigError

PER_TAR = 6


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tars of six images, each image of a grey of its own: 2 * its number."""
    folder = tmp_path_factory.mktemp("tars")
    for tar in range(8):
        numbers = range(tar * PER_TAR, (tar + 1) * PER_TAR)
        write_tar(folder / f"{tar}.tar", {f"image{number:03d}": grey(2 * number) for number in numbers})
    return folder


def test_a_pass_sees_every_image_of_a_rank_s_own_tars(tars: Path) -> None:
    urls = str(tars / "{0..7}.tar")
    for rank in (0, 1):
        own = {tar * PER_TAR + place for tar in range(rank, 8, 2) for place in range(PER_TAR)}
        times = Counter[int]()
        for batch in stream(urls, rank, 2).batches(0, 3000):  # one thread may be far ahead of the other
            times.update(numbers(iter([batch])))
            if times.keys() >= own and min(times.values()) >= 4:
                break
        assert times.keys() == own and min(times.values()) >= 4


def test_the_order_is_shuffled_and_follows_the_seed_and_the_step(tars: Path) -> None:
    def order(seed: int, step: int) -> list[int]:
        return numbers(stream(str(tars / "{0..7}.tar"), seed=seed, read_threads=1).batches(step, 6))

    first = order(0, 0)
    assert first != sorted(first) and len(set(first[:24])) > 12
    assert order(0, 0) == first
    assert order(1, 0) != first and order(0, 5) != first


def test_a_tar_that_was_not_there_is_read_once_it_is(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.stream._PAUSE", 0.05)
    batches = stream(f"{tars}/0.tar::{tmp_path}/late.tar").batches(0, 10**6)
    assert set(numbers(itertools.islice(batches, 20))) == set(range(6))
    shutil.copy(tars / "1.tar", tmp_path / "late.tar")
    found: set[int] = set()
    deadline = time.monotonic() + 60
    while found < set(range(12)):
        assert time.monotonic() < deadline
        found.update(numbers(itertools.islice(batches, 1)))


def test_a_pipe_that_fails_costs_its_tar_only(tars: Path) -> None:
    data = stream(f"pipe:cat {tars}/0.tar; exit 3::{tars}/1.tar", read_threads=1)
    assert set(range(6, 12)) <= set(numbers(data.batches(0, 10))) <= set(range(12))
    assert data.counters()["tar_errors"] >= 1


def test_ids_number_the_slots_of_global_batches(tars: Path) -> None:
    recipe_batch, micro = 16, 8
    for rank in (0, 1):
        batches = list(stream(str(tars / "{0..7}.tar"), rank, 2).batches(3, 2))
        for step, batch in enumerate(batches, 3):
            assert batch.request.step == step
            first = step * recipe_batch + rank * micro
            assert batch.request.ids.tolist() == list(range(first, first + micro))
            assert batch.weights.all()


def test_pipes_and_http_and_joined_lists(tars: Path) -> None:
    with http_server(tars) as server:
        urls = f"pipe:cat {tars}/0.tar::{server.url}/1.tar::{tars}/2.tar"
        data = stream(urls)
        assert seen(data, set(range(18))) == set(range(18))
        assert data.counters()["tar_errors"] == 0


def test_damage_costs_a_tar_or_a_sample_and_is_counted(tars: Path, tmp_path: Path) -> None:
    whole = (tars / "0.tar").read_bytes()
    (tmp_path / "torn.tar").write_bytes(whole[: 4 * 1024 + 512 + 20])  # in the data of the fifth member
    (tmp_path / "text.tar").write_text("this is no tar")
    file = io.BytesIO()
    Image.effect_noise((60, 60), 80).convert("RGB").save(file, "JPEG")
    torn = file.getvalue()[: len(file.getvalue()) // 2]
    write_tar(tmp_path / "bad.tar", {"a": grey(20), "b": torn, "c": b"no image", "d": grey(40)})
    urls = "::".join([f"{tmp_path}/{name}.tar" for name in ("torn", "text", "bad", "missing")] + [f"{tars}/1.tar"])
    data = stream(urls, bad_share=0.9)
    batches = list(itertools.islice(data.batches(0, 20), 20))
    good = {number for batch in batches for number, w in zip(numbers(iter([batch])), batch.weights, strict=True) if w}
    assert {10, 20} | set(range(6, 12)) <= good <= {20} | set(range(12))
    assert any(batch.bad for batch in batches)  # the torn JPEG has its header, so only decoding tells
    counters = data.counters()
    assert counters["tar_errors"] >= 3 and counters["skipped_samples"] >= 1


def test_images_lie_as_the_decoder_lays_them(tmp_path: Path) -> None:
    """It obeys EXIF, if that is whole, and nothing else."""
    noise = Image.effect_noise((80, 40), 80).convert("RGB")
    turned = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 50
    images = {}
    for name, options in (("xmp", {"xmp": turned}), ("exif", {"exif": exif}), ("cut", {"exif": exif.tobytes()[:-30]})):
        file = io.BytesIO()
        noise.save(file, "JPEG", **options)
        images[name] = file.getvalue()
    sizes = {name: _size(image) for name, image in images.items()}
    assert sizes == {"xmp": (40, 80), "exif": (80, 40), "cut": (40, 80)}
    write_tar(tmp_path / "a.tar", images)
    data = stream(f"{tmp_path}/a.tar", crop_scale=[1, 1], crop_ratio=[0.1, 10])
    assert not [bad for batch in data.batches(0, 8) for bad in batch.bad]


def test_the_last_error_says_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, _: object) -> int:
            raise OSError(errno.ETIMEDOUT, "tried for 300 s", "https://h/a.tar?sig=x")

    monkeypatch.setattr(stream_module, "opened", lambda url, deadline: Silent())
    with pytest.raises(DataError, match=r"the last error: https://h/a\.tar\?sig=\*\*\*: tried for 300 s$"):
        next(stream("https://h/a.tar?sig=x").batches(0, 1))


def test_nothing_to_train_on_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("this is no tar")
    with pytest.raises(DataError, match=r"no tar gave an image: 1 could not be read.*text\.tar"):
        next(stream(str(tmp_path / "text.tar")).batches(0, 1))


def test_the_length_of_an_epoch_has_to_be_given() -> None:
    with pytest.raises(ConfigError, match=r"data\.stream_samples"):
        small_recipe(Path("x"), Path("y"), "data.mode=stream")


def test_a_launched_run_says_what_it_does_not_promise(tars: Path, tmp_path: Path) -> None:
    """One tar for two ranks: neither ends early, neither waits for ever."""
    options = ["data.mode=stream", "data.stream_samples=48", "data.stream_buffer=8", "run.max_steps=8"]
    said = launch(tars / "0.tar", tmp_path / "run", *options)
    assert "epochs are not exact" in said and "fewer tars than the 2 ranks" in said
    assert sorted(losses(tmp_path / "run")) == list(range(1, 9))
    assert np.isfinite(list(losses(tmp_path / "run").values())).all()
