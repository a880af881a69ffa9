"""Manifests whose checksums are right and whose contents are not: one line that names the file, or the row."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from resealing import put, retype, rewrite, seal

from shards.files import ShardError
from shards.manifest import Manifest
from shards.tables.duplicates import load_duplicates
from shards.tables.rejects import count_rejects
from shards.verify import verify

IMPOSSIBLE = {
    "a negative offset": (put("offset", 3, -1), "sample 3: its offset and size are not inside its tar"),
    "a negative size": (put("size", 3, -5), "sample 3: its offset and size"),
    "no size": (put("size", 4, 0), "sample 4: its offset and size"),
    "a huge size": (put("size", 3, 2**40), "sample 3: its offset and size"),
    "sizes that overflow": (put("size", 12, 2**63 - 1), "sample 12: its offset and size"),
    "a huge offset": (put("offset", 0, 2**63 - 1), "sample 0: its offset and size"),
    "no height": (put("height", 1, 0), "sample 1: its height and width are not positive"),
    "a negative width": (put("width", 1, -1), "sample 1: its height and width are not positive"),
    "a huge height": (put("height", 1, 2**31 - 1), "sample 1: it has more pixels than the build allowed"),
    "a negative label": (put("label", 2, -7), "sample 2: its label is not that of a class"),
    "a label of no class": (put("label", 2, 2), "sample 2: its label is not that of a class"),
    "a null": (put("size", 2, None), "column size has nulls"),
    "a null shard": (put("shard", 2, None), "column shard has nulls"),
    "shards out of order": (put("shard", 0, 2), "disagree on the samples of shards"),
    "a shard too much": (put("shard", 12, 3), "disagree on the samples of shards"),
    "a negative shard": (put("shard", 0, -1), "disagree on the samples of shards"),
    "a row less": (lambda of: {name: values[1:] for name, values in of.items()}, "disagree on the samples of shards"),
    "no rows": (lambda of: {name: values[:0] for name, values in of.items()}, "disagree on the samples of shards"),
    "no column": (lambda of: of.pop("height") and None, "0 columns are named height"),
    "no keys": (lambda of: of.pop("key") and None, "0 columns are named key"),
    "a column twice": (
        lambda of: pa.table([*of.values(), of["size"]], names=[*of, "size"]),
        "2 columns are named size",
    ),
    "floats": (retype("offset", pa.float64()), "column offset is of type double instead of int64"),
    "text for numbers": (retype("size", pa.string()), "column size is of type string instead of int64"),
    "numbers for text": (lambda of: of.update(key=of["size"]), "column key is of type int64 instead of string"),
    "bytes for text": (retype("path", pa.binary()), "column path is of type binary instead of string"),
    "booleans": (lambda of: of.update(label=pa.array([True] * 13)), "column label is of type bool instead of int32"),
    "a list": (lambda of: of.update(size=pa.array([[1]] * 13)), "column size is of type list<"),
    "a struct": (lambda of: of.update(size=pa.array([{"a": 1}] * 13)), "column size is of type struct<"),
    "a checksum too large": (put("crc32c", 5, 2**32, pa.int64()), "4294967296"),
    "a label beyond 32 bits": (put("label", 5, 2**40, pa.int64()), "1099511627776"),
}


@pytest.mark.parametrize("case", sorted(IMPOSSIBLE))
def test_a_row_that_cannot_be_true_is_refused_when_the_manifest_is_loaded(root: Path, case: str) -> None:
    change, why = IMPOSSIBLE[case]
    rewrite(root, change)
    with pytest.raises(ShardError) as caught:
        Manifest.load(root)
    assert str(caught.value).startswith(str(root)) and why in str(caught.value)
    assert "\n" not in str(caught.value) and "again" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1" + b"\xff" * 60 + b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1", b"not Parquet" * 99]
)
def test_what_is_not_parquet_is_refused(root: Path, content: bytes) -> None:
    seal(root, content)
    with pytest.raises(ShardError, match=r"manifest\.parquet: is not a maskfeat-shards table \(.*\); build or index"):
        Manifest.load(root)
    for name, load in (("rejects", lambda: count_rejects(root)), ("duplicates", lambda: load_duplicates(root, 13))):
        (root / f"{name}.parquet").write_bytes(content)
        with pytest.raises(ShardError, match=rf"{name}\.parquet: is not a maskfeat-shards table"):
            load()


def test_wider_integers_long_text_and_other_columns_are_read(root: Path) -> None:
    before = Manifest.load(root)

    def widen(of: dict[str, Any]) -> None:
        for name in ("shard", "label", "height", "width", "crc32c"):
            of[name] = of[name].cast(pa.int64())
        of |= {"key": of["key"].cast(pa.large_string()), "offset": of["offset"].cast(pa.uint64()), "more": of["key"]}

    rewrite(root, widen)
    after = Manifest.load(root)
    for column in ("shard", "offset", "size", "label", "height", "width", "crc32c"):
        values, expected = getattr(after, column), getattr(before, column)
        assert values.dtype == expected.dtype and values.tolist() == expected.tolist()
    assert verify(root) == []


def test_names_are_not_those_of_another_manifest(root: Path) -> None:
    """The other manifest replaced this one after it was loaded."""
    manifest = Manifest.load(root)
    assert len(manifest.names(0, 13)) == 13
    rewrite(root, put("crc32c", 0, 1))
    with pytest.raises(ShardError, match=r"manifest\.parquet: is not a .* \(it has been replaced\)"):
        manifest.names(3, 5)
    rewrite(root, lambda of: {name: values[:5] for name, values in of.items()})
    with pytest.raises(ShardError, match=r"manifest\.parquet: is not a .* \(it has been replaced\)"):
        manifest.names(3, 5)
