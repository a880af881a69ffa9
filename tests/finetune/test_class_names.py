"""Names of classes on their way from a table to the exported model: whatever they hold, each stays one name."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
from launching import finetune
from PIL import Image
from scripting import run_script

from pipeline.finetune.build import class_names
from pipeline.finetune.evaluate import as_csv, draw_table
from pipeline.settings import ConfigError
from shards.build import build
from shards.manifest import Dataset

BREAKS = ("\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
NAMES = sorted((f"hat{each}s" for each in (*BREAKS, "\t", "\0", '"', ",", "\\n", "é")), key=str.encode)


def test_from_a_quoted_field_to_the_exported_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    rows = [["path", "label"]]
    for number, name in enumerate([*NAMES, *NAMES]):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f"{number}.png")
        rows.append([f"{number}.png", name])
    with (tmp_path / "list.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    shards, run = tmp_path / "shards", tmp_path / "run"
    build(tmp_path / "list.csv", shards, workers=1)
    assert Dataset.load(shards).classes == NAMES

    settings = (shards, shards, run, "augment.mixup=0", "augment.cutmix=0", "run.eval_every=1")
    finetune(*settings, "run.max_steps=1")
    assert json.loads((run / "classes.json").read_bytes()) == NAMES
    with (run / "confusion.csv").open(encoding="utf-8", newline="") as file:
        header, *table = csv.reader(file)
    assert header[1:] == NAMES and [row[0] for row in table] == NAMES
    assert sum(int(count) for row in table for count in row[1:]) == len(rows) - 1

    def exported(out: Path) -> list[str]:
        assert run_script(monkeypatch, "export.py", run, out) == 0
        config = json.loads((out / "config.json").read_bytes())
        names: list[str] = timm.create_model(f"local-dir:{out}", pretrained=True).pretrained_cfg["label_names"]
        assert (config["num_classes"], config["label_names"]) == (len(NAMES), NAMES)
        return names

    assert exported(tmp_path / "new") == NAMES

    (run / "classes.json").unlink()  # as a run of before
    (run / "classes.txt").write_bytes("".join(f"{name}\n" for name in NAMES).encode())
    capsys.readouterr()
    assert run_script(monkeypatch, "export.py", run, tmp_path / "refused") == 1
    assert capsys.readouterr().err.count("\n") == 1
    finetune(*settings, "run.max_steps=2")
    assert exported(tmp_path / "resumed") == NAMES


def test_the_names_of_older_runs_are_a_name_a_line(tmp_path: Path) -> None:
    names = [name for name in NAMES if "\n" not in name]
    (tmp_path / "classes.txt").write_bytes("".join(f"{name}\n" for name in names).encode())
    assert class_names(tmp_path, len(names)) == names
    (tmp_path / "classes.json").write_text(json.dumps(NAMES))
    assert class_names(tmp_path, len(NAMES)) == NAMES


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("classes.txt", b"ant\nbee\n\ncow\n", "4 names"),
        ("classes.txt", b"ant\nbee\n", "2 names"),
        ("classes.txt", b"\xff\nbee\ncow\n", "'utf-8' codec .*"),
        ("classes.json", b'["ant", "bee"]', "2 names"),
        ("classes.json", b'["ant", "bee", 3]', "not a list of names"),
        ("classes.json", b'{"ant": 1, "bee": 2, "cow": 3}', "not a list of names"),
        ("classes.json", b'["ant", "bee", "cow"', ".*"),
        ("classes.json", b"[" * 10**5, ".*"),
        ("other", b"", "nothing"),
    ],
)
def test_names_that_do_not_fit_the_head_are_one_error(file: str, content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"classes\.json must name the 3 classes of the head, but {found} was found"):
        class_names(tmp_path, 3)


def test_a_pipe_of_names_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "classes.json")
    with pytest.raises(OSError, match="is not a regular file"):
        class_names(tmp_path, 3)


def test_a_picture_of_names_stays_small_and_in_rows() -> None:
    table = np.diag([3, 1, 2])
    plain = draw_table(table, ["ant", "bee", "cow"])
    assert draw_table(table, ["a\nt", "b" * 10**5, "c\u2028w"]).shape[0] < plain.shape[0] + 7 * 110
    rows = list(csv.reader(io.StringIO(as_csv(table, ["a\rb", '"', "c"]).decode(), newline="")))
    assert rows == [["class", "a\rb", '"', "c"], ["a\rb", "3", "0", "0"], ['"', "0", "1", "0"], ["c", "0", "0", "2"]]
