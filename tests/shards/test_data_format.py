"""docs/reference/data-format.md says what is true."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_images import decoded, make_tree

from shards.build import build
from shards.manifest import Dataset, Manifest
from shards.verify import verify

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "data-format.md").read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("format")
    build(make_tree(root / "source", 9), root / "shards" / "train", samples_per_shard=4, workers=1)
    return root


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_snippet_reads_a_sample(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.chdir(built)
    names: dict[str, object] = {}
    exec(snippet, names)
    manifest = Manifest.load(built / "shards" / "train")
    image = names["image"]
    assert isinstance(image, bytes)
    assert image == (built / "source" / manifest.path(7)).read_bytes()
    assert decoded(image).shape[:2] == (manifest.height[7], manifest.width[7])
    shown = (manifest.key(7), manifest.label[7], manifest.height[7], manifest.width[7], manifest.size[7])
    assert capsys.readouterr().out == " ".join(map(str, shown)) + "\n"


@pytest.mark.parametrize("name", ["manifest.parquet", "rejects.parquet", "duplicates.parquet"])
def test_the_columns_are_those_of_the_files(built: Path, name: str) -> None:
    rows = re.findall(r"^\| (`.+?`) \| ([\w<>]+) \|", section(name), re.MULTILINE)
    documented = [(column, dtype) for columns, dtype in rows for column in re.findall(r"`(\w+)`", columns)]
    schema = pq.read_schema(built / "shards" / "train" / name)
    types = {"double": "float64"} | {f"list<element: {whole}>": f"list<{whole}>" for whole in ("int32", "int64")}
    found = [(field.name, str(field.type)) for field in schema]
    assert documented == [(column, types.get(dtype, dtype)) for column, dtype in found]


def test_the_fields_are_those_of_dataset_json(built: Path) -> None:
    rows = re.findall(r"^\| (`.+?`) \|", section("dataset.json"), re.MULTILINE)
    fields = Dataset.load(built / "shards" / "train").__dataclass_fields__
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == ["format", "version", *fields]


def test_a_data_set_written_by_these_rules_alone_is_read(built: Path, tmp_path: Path) -> None:
    source = built / "shards" / "train"
    for path in source.glob("shard-*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "manifest.parquet").write_bytes((source / "manifest.parquet").read_bytes())
    text = (source / "dataset.json").read_text()
    text = re.sub(r'"options": \{.*?\}', '"options": null', text, flags=re.DOTALL)
    (tmp_path / "dataset.json").write_text(re.sub(r'"fingerprint": ".*?"', '"fingerprint": "none"', text))
    strings, whole = pa.array([], pa.string()), pa.array([], pa.int64())
    columns = {"path": strings, "reason": strings, "detail": strings, "size": whole}
    pq.write_table(pa.table(columns), tmp_path / "rejects.parquet")
    pq.write_table(pa.table({"id": whole, "first_id": whole}), tmp_path / "duplicates.parquet")
    assert verify(tmp_path) == []
    assert np.array_equal(Manifest.load(tmp_path).crc32c, Manifest.load(source).crc32c)
