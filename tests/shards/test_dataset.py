"""Descriptions of data sets that cannot be true: one line that names the field."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from making_images import encoded, make_tar, picture
from resealing import describe

from shards.dataset import Dataset
from shards.files import ShardError, parse_json
from shards.index import index_tars
from shards.verify import verify

MISDESCRIBED: dict[str, tuple[Any, str]] = {
    "shards that are no list": ({"shards": 7}, "shards: Input should be a valid list"),
    "no shards": ({"shards": []}, "there is at least one"),
    "classes in one text": ({"classes": "abc"}, "classes: Input should be a valid list"),
    "numbers for classes": ({"classes": ["a", 5]}, "classes.1"),
    "null for classes": ({"classes": None}, "classes: "),
    "a class twice": ({"classes": ["ant", "ant"]}, "classes: a name is there twice"),
    "samples as text": ({"samples": "13"}, "samples: Input should be a valid integer"),
    "samples as a float": ({"samples": 13.0}, "samples: Input should be a valid integer"),
    "samples as a truth": ({"samples": True}, "samples: Input should be a valid integer"),
    "no samples": ({"samples": 0}, "samples: Input should be greater"),
    "negative bytes": ({"bytes": -1}, "bytes: Input should be greater"),
    "huge bytes": ({"bytes": 10**400}, "bytes: Input should be less"),
    "negative rejects": ({"rejects": -1}, "rejects: Input should be greater"),
    "a list for ignored": ({"ignored": []}, "ignored: Input should be a valid integer"),
    "a number for the checksum": ({"manifest_sha256": 5}, "manifest_sha256: "),
    "null for the fingerprint": ({"fingerprint": None}, "fingerprint: "),
    "options in a list": ({"options": [1]}, "options: "),
    "options without a seed": ({"options": {"samples_per_shard": 1, "resize": None, "max_pixels": 9}}, "options.seed"),
    "markup for resize": (
        {"options": {"samples_per_shard": 1, "resize": "<script>", "max_pixels": 9, "seed": 0}},
        "options.resize: Input should be a valid integer",
    ),
    "another check": (
        {"options": {"samples_per_shard": 1, "resize": None, "max_pixels": 9, "seed": 0, "check": "none"}},
        "options.check: Input should be 'decode' or 'header'",
    ),
    "a field too much": ({"more": 1}, "more: "),
    "a version in text": ({"version": "1"}, "version"),
}
SHARD = {"name": "shard-000000.tar", "samples": 13, "bytes": 10**6, "sha256": ""}
for fault, fields in {
    "no name": {"name": ""},
    "a name with a null byte": {"name": "a\0b"},
    "a number for a name": {"name": 5},
    "a list for a name": {"name": ["a"]},
    "a shard without samples": {"samples": 0},
    "a shard of negative bytes": {"bytes": -1},
    "a shard of half a byte": {"bytes": 0.5},
}.items():
    MISDESCRIBED[fault] = ({"shards": [SHARD | fields]}, "shards")
MISDESCRIBED["a shard twice"] = ({"shards": [SHARD, SHARD]}, "shards: a name is there twice")
MISDESCRIBED["more samples than bytes"] = ({"shards": [SHARD | {"samples": 10**6 + 1}]}, "more samples than bytes")
HUGE = [SHARD | {"name": name, "bytes": 2**59 + 1} for name in "ab"]
MISDESCRIBED["more bytes than there are"] = ({"shards": HUGE}, "more bytes than any storage")
MISDESCRIBED["a shard in text"] = ({"shards": ["shard-000000.tar"]}, "shards.0: ")


@pytest.mark.parametrize("case", sorted(MISDESCRIBED))
def test_a_field_of_the_description_that_cannot_be_is_named(root: Path, case: str) -> None:
    fields, why = MISDESCRIBED[case]
    describe(root, **fields)
    with pytest.raises(ShardError) as caught:
        Dataset.load(root)
    assert str(caught.value).startswith(f"{root}/dataset.json: is not a maskfeat-shards description (")
    assert why in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ('{"format": 1, "format": 2}', "an object has a name twice"),
        ("[NaN]", "its format is not"),
        ('{"format": "maskfeat-shards", "version": NaN}', "version: it is not a whole number"),
        ("1" * 5000, ""),
        ("\xff", ""),
        ("null", "its format is not"),
        ("", ""),
    ],
)
def test_a_description_that_is_not_json_or_says_two_things(root: Path, text: str, why: str) -> None:
    (root / "dataset.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ShardError) as caught:
        Dataset.load(root)
    assert str(caught.value).startswith(f"{root}/dataset.json: is not a maskfeat-shards description (")
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_options_from_before_there_was_a_choice_and_names_that_are_not_utf8_are_read(
    root: Path, tmp_path: Path
) -> None:
    options = json.loads((root / "dataset.json").read_text())["options"]
    assert options.pop("check") == "decode"
    describe(root, options=options)
    loaded = Dataset.load(root).options
    assert loaded and loaded.check == "decode" and loaded.samples_per_shard == 5
    tar = os.fsdecode(bytes(tmp_path) + b"/\xff.tar")
    make_tar(Path(tar), {f"0.{name}": content for name, content in sample(0)})
    index_tars([tar], tmp_path / "index", workers=1)
    assert Dataset.load(tmp_path / "index").shards[0].name == tar
    assert verify(tmp_path / "index") == []


def test_json_says_one_thing() -> None:
    assert parse_json(b'{"a": [1, 2.5, "\\ud83d\\ude00", null], "b": {"a": {}}}') == {
        "a": [1, 2.5, "\N{GRINNING FACE}", None],
        "b": {"a": {}},
    }


def sample(number: int) -> list[tuple[str, bytes]]:
    return [("cls", b"%d" % number), ("jpg", encoded(picture(number), "JPEG")), ("json", b'{"caption": "a"}')]
