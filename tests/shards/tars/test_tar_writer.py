import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards.tars.writer import TarWriter


@pytest.mark.parametrize("sizes", [[], [0], [1, 511, 512, 513], [9_215, 100], [2**20, 3, 2**21 + 7, 0, 5]])
def test_bytes_offsets_and_hash_are_those_of_pythons_tarfile(sizes: list[int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    members = [(f"{number:09d}.{'x' * (1 + number * 20)}", rng.bytes(size)) for number, size in enumerate(sizes)]
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with TarWriter(tmp_path / "x.tar") as writer:
        offsets = [writer.add(name, data) for name, data in members]
        sha256 = writer.finish()
    written = (tmp_path / "x.tar").read_bytes()
    assert written == expected.getvalue()
    assert [written[at : at + len(data)] for at, (_, data) in zip(offsets, members, strict=True)] == [
        data for _, data in members
    ]
    assert (writer.size, sha256) == (len(written), hashlib.sha256(written).hexdigest())


def test_a_failing_disk_is_an_error_of_the_caller(tmp_path: Path) -> None:
    with TarWriter(Path("/dev/full")) as writer, pytest.raises(OSError, match="No space left on device"):
        for number in range(5):
            writer.add(f"{number}", bytes(2**20))
        writer.finish()
