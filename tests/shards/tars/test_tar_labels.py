"""Labels of every kind beside the images of tars."""

import json
from pathlib import Path

import pytest
from indexing import JPEGS, indexed, rejects
from making_images import make_tar

from shards.index import index_tars
from shards.making.assembly import Record
from shards.manifest import Manifest


@pytest.mark.parametrize(
    ("member", "said", "label"),
    [
        ("cls", b"3", "3"),
        ("cls", b" 3.0\r\n", "3"),
        ("cls", b"\xef\xbb\xbf3", "3"),
        ("CLS", b"n01440764\n", "n01440764"),
        ("cls", "größe".encode(), "größe"),
        ("cls", b"007", "007"),
        ("cls", b"  \n", None),
        ("json", b'{"label": 3}', "3"),
        ("json", b'{"label": "3"}', "3"),
        ("json", b'{"label": 3.0}', "3"),
        ("json", b'{"label": "tabby cat"}', "tabby cat"),
        ("json", b'{"Class_Name": "cat", "id": 9}', "cat"),
        ("json", b'{"class": "cat", "label": 1}', "1"),
        ("JSON", b'\xef\xbb\xbf{"category_id": 7}', "7"),
        ("json", b'{"label": null}', None),
        ("json", b'{"caption": "a cat"}', None),
        ("json", b"[1, 2]", None),
        ("meta.json", b'{"target": 2}', "2"),
    ],
)
def test_a_label_is_a_name_or_a_number_wherever_it_stands(
    member: str, said: bytes, label: str | None, tmp_path: Path
) -> None:
    assert indexed(tmp_path, make_tar(tmp_path / "a.tar", {"0.jpg": JPEGS[0], f"0.{member}": said})) == {
        "0": (JPEGS[0], label)
    }


@pytest.mark.parametrize(
    ("member", "said", "why"),
    [
        ("cls", b"-1", ".cls: -1 is not a whole number from 0 to 99999"),
        ("cls", b"0.5", ".cls: 0.5 is not a whole number"),
        ("cls", b"100000", ".cls: 100000 is not a whole number"),
        ("cls", b"9" * 5000, ".cls: 99999"),
        ("cls", b"\xff\xfe3\0", ".cls: 'utf-8' codec can't decode byte 0xff"),
        ("cls", b"1" * 2**21, ".cls has more than 1048576 bytes"),
        ("json", b'{"label": true}', ".json: True is neither a name nor a whole number"),
        ("json", b'{"label": [1]}', ".json: [1] is neither"),
        ("json", b'{"label": 1e400}', ".json: inf is not a whole number"),
        ("json", b'{"label": "\\ud800"}', ".json: 'utf-8' codec can't encode"),
        ("json", b'{"label": ' + b"9" * 5000 + b"}", ".json: Exceeds the limit"),
        ("json", b"[" * 100_000, ".json: it is nested too deeply"),
        ("json", b'{"label": 1, "label": 2}', ".json: an object has a name twice"),
        ("json", b"{", ".json: Expecting property name"),
    ],
)
def test_a_label_that_cannot_be_read_is_a_reject(member: str, said: bytes, why: str, tmp_path: Path) -> None:
    indexed(tmp_path, make_tar(tmp_path / "a.tar", {"0.jpg": JPEGS[0], "1.jpg": JPEGS[1], f"1.{member}": said}))
    ((reason, detail),) = rejects(tmp_path).values()
    assert reason == "bad label" and detail.startswith(why)


def test_names_and_numbers_of_several_tars_are_numbered_together(tmp_path: Path) -> None:
    first = make_tar(tmp_path / "0.tar", {"a.jpg": JPEGS[0], "a.cls": b"zebra", "b.jpg": JPEGS[1], "b.cls": b"10"})
    second = make_tar(
        tmp_path / "1.tar", {"c.jpg": JPEGS[2], "c.json": b'{"class": "ant"}', "d.jpg": JPEGS[3], "d.cls": b"9"}
    )
    found = indexed(tmp_path, first, second)
    assert [name for _, name in found.values()] == ["zebra", "10", "ant", "9"]
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.classes, manifest.label.tolist()) == (["10", "9", "ant", "zebra"], [3, 0, 2, 1])
    lines: list[str] = []
    index_tars([str(first), str(second)], tmp_path / "again", workers=1, note=lines.append)
    assert lines == [
        f"{tmp_path / 'again'}: labels are partly numbers (such as 10) and partly names (such as ant), so numbers are "
        "names, too, and not kept: classes are numbered by the order of their names"
    ]


def test_an_index_that_an_earlier_version_began_is_finished(tmp_path: Path) -> None:
    tars = [make_tar(tmp_path / f"{n}.tar", {f"{n}.jpg": JPEGS[n], f"{n}.cls": b"%d" % n}) for n in range(3)]

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_tars([str(tar) for tar in tars], tmp_path / "out", workers=1, progress=stop)
    record = tmp_path / "out" / ".build" / "tar-000001.json"
    assert Record.load(str(record)).rows["label"] == [1]  # a number, as then
    fields = json.loads(record.read_text())
    fields["rows"]["label"] = [7]
    record.write_text(json.dumps(fields))
    index_tars([str(tar) for tar in tars], tmp_path / "out", workers=1)
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.label.tolist(), manifest.classes) == ([0, 7, 2], [str(number) for number in range(8)])
