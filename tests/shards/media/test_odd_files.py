"""Odd files: the build and DALI agree on every one, and each is rejected for its own reason."""

import io
import random
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from making_images import check_image, encoded, make_tar
from making_jpegs import scans
from making_odd_files import NOISE, PAGE, Odd, odd_files
from PIL import Image

from model.size import ImageSize
from shards.build import build
from shards.index import index_tars
from shards.manifest import Manifest
from shards.media import jpeg, png
from shards.media.image import IMAGE
from shards.media.media import Checked, Rejected

LIMIT = 100_000_000
TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.fixture(scope="module")
def odd() -> Odd:
    return odd_files()


def outcome(data: bytes, resize: int | None) -> tuple[str, Checked | None]:
    try:
        checked = check_image(data, LIMIT, resize)
    except Rejected as error:
        assert error.detail
        return error.reason, None
    return "kept" if checked.data is data else "rewritten", checked


def problems_of_the_loader(taken: dict[str, Checked]) -> dict[str, str]:
    """Return DALI's errors when it crops the whole of each image, as in training."""
    from pipeline.data.decode.decoder import CpuDecoder, Crops

    encoded: list[np.ndarray | None] = [np.frombuffer(checked.data, np.uint8) for checked in taken.values()]
    windows = np.array([[0, 0, checked.height, checked.width] for checked in taken.values()], np.int32)
    decoder = CpuDecoder(len(taken), ImageSize(32, 32), 2)
    decoder.feed(Crops(encoded, windows, np.zeros(len(taken), np.int32)))
    return {list(taken)[place]: problem for place, problem in decoder.take().problems.items()}


def test_each_is_kept_rewritten_or_refused_for_its_own_reason(odd: Odd) -> None:
    assert {name: outcome(data, None)[0] for name, (data, _) in odd.items()} == {
        name: expected for name, (_, expected) in odd.items()
    }


def test_with_resize_the_same_ones_are_refused_for_the_same_reasons(odd: Odd) -> None:
    for name, (data, expected) in odd.items():
        became, checked = outcome(data, 24)
        if expected not in ("kept", "rewritten"):
            assert (name, became) == (name, expected)
        else:
            assert checked is not None, f"{name}: {became}"
            assert (name, checked.suffix, min(checked.height, checked.width)) == (name, "jpg", 24)


def test_dali_decodes_all_that_are_taken_to_the_pixels_that_pillow_shows(odd: Odd) -> None:
    fn = pytest.importorskip("nvidia.dali.fn")
    from nvidia.dali import pipeline_def, types

    taken: dict[str, Checked] = {}
    for name, (data, _) in odd.items():
        for resize in (None, 24):
            checked = outcome(data, resize)[1]
            if checked is not None:
                taken[f"{name}, {resize}"] = checked
    assert len(taken) > 150
    assert problems_of_the_loader(taken) == {}
    encoded = [np.frombuffer(checked.data, np.uint8) for checked in taken.values()]

    @pipeline_def(batch_size=len(taken), num_threads=2, device_id=None)
    def whole():  # type: ignore[no-untyped-def]
        return fn.decoders.image(fn.external_source(lambda: encoded, dtype=types.UINT8), output_type=types.RGB)

    (images,) = whole().run()
    for (name, checked), image in zip(taken.items(), images, strict=True):
        turn = 1
        if checked.suffix == "jpg":
            header = jpeg.read_header(checked.data)
            turn, plain = header.orientation, jpeg.stripped(checked.data, header)
        else:
            plain = png.read(checked.data).stripped
        shown = TURNS.get(turn, lambda a: a)(np.asarray(Image.open(io.BytesIO(plain)).convert("RGB")))
        decoded = np.asarray(image)
        assert (name, decoded.shape) == (name, (checked.height, checked.width, 3)) == (name, shown.shape)
        assert (name, np.abs(decoded.astype(int) - shown).max() <= 2) == (name, True)


def test_a_jpeg_that_was_cut_off_or_holds_zeros_or_an_error_page_is_found_wherever_that_is() -> None:
    noise = encoded(NOISE, "JPEG", quality=90, subsampling=0)
    begin = scans(noise)[0] + 14
    for at in range(begin, len(noise) - 70, 61):
        for damaged in (
            noise[:at] + b"\xff\xd9",
            noise[:at] + PAGE + noise[at:],
            noise[:at] + bytes(64) + noise[at + 64 :],
        ):
            assert (at, outcome(damaged, None)[0]) == (at, "corrupt")


def mutant(data: bytes, chance: random.Random) -> bytes:
    """The file with a few bytes changed, left out, put in or copied, most often near its beginning."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(min(len(changed), chance.choice((700, len(changed)))))
        span = chance.choice((1, 4, 20))
        match chance.randrange(4):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1 if len(changed) > span:
                del changed[at : at + span]
            case 2:
                changed[at:at] = chance.randbytes(span)
            case _:
                changed[at : at + span] = changed[-span:]
    if changed.startswith(png.SIGNATURE):
        for _, begin, end in list(png._chunks(bytes(changed))):
            changed[end : end + 4] = zlib.crc32(changed[begin - 4 : end]).to_bytes(4, "big")
    return bytes(changed)


def test_mutants_are_refused_or_decode(odd: Odd) -> None:
    pytest.importorskip("nvidia.dali")
    chance = random.Random(0)
    files = [data for data, _ in odd.values() if 20 < len(data) < 50_000]
    taken: dict[str, Checked] = {}
    for number in range(5_000):
        checked = outcome(mutant(chance.choice(files), chance), None)[1]
        if checked is not None and checked.height * checked.width < 100_000:
            taken[str(number)] = checked
    assert len(taken) > 100
    assert problems_of_the_loader(taken) == {}


def test_all_that_are_taken_have_a_thumbnail(odd: Odd) -> None:
    for data, _ in odd.values():
        checked = outcome(data, None)[1]
        if checked is not None:
            height, width = checked.height, checked.width
            small = Image.open(io.BytesIO(IMAGE.thumbnail(checked.data, 20)))
            assert (max(small.size), small.height > small.width) == (20, height > width)


def test_a_build_and_an_index_take_and_refuse_the_same(odd: Odd, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    members, names = {}, {}
    for number, (name, (data, _)) in enumerate(odd.items()):
        names[number] = name
        (source / f"{number:03d}.jpg").write_bytes(data)
        members[f"{number:03d}.jpg"] = data
    build(source, tmp_path / "built", workers=1)
    index_tars([str(make_tar(tmp_path / "odd.tar", members))], tmp_path / "indexed", workers=1)

    def kept(root: Path) -> dict[str, str]:
        manifest = Manifest.load(root)
        return {manifest.path(sample): "kept" for sample in range(len(manifest))}

    def refused(root: Path) -> dict[str, str]:
        rows = pq.read_table(root / "rejects.parquet").to_pylist()
        return {Path(row["path"]).stem + ".jpg": row["reason"] for row in rows}

    built = kept(tmp_path / "built") | refused(tmp_path / "built")
    indexed = kept(tmp_path / "indexed") | refused(tmp_path / "indexed")
    for number, name in names.items():
        expected, path = odd[name][1], f"{number:03d}.jpg"
        assert (name, built[path]) == (name, "kept" if expected == "rewritten" else expected)
        assert (name, indexed[path]) == (name, "needs rewriting" if expected == "rewritten" else expected)
