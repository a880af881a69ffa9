"""The commands of `maskfeat-shards`: results, exit statuses, help and errors. test_build_command.py has `build`."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from making_images import make_tree
from shell import Shell

from shards.manifest import Manifest


def test_build_then_verify_then_info(shell: Shell, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "my set #1"
    status, text, err = shell("build", source, out, "--samples-per-shard", 4, "--workers", 1)
    assert (status, err) == (0, "")
    written = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    assert f"{out}: 10 samples in 3 shards, {written / 1000:.3g} KB, " in text
    assert text.endswith(f"{out} is complete and usable; next: maskfeat-shards verify '{out}'\n")  # as a shell takes it

    status, text, err = shell("build", source, out, "--samples-per-shard", 4, "--workers", 1)
    assert (status, err) == (0, "")
    assert text == f"{out}: already built from these images with these options; nothing to do\n"

    assert shell("verify", out) == (0, f"{out}: 10 samples in 3 shards: no problems found\n", "")

    status, text, err = shell("info", out)
    assert (status, err) == (0, "")
    manifest = Manifest.load(out)
    rows = {name: value for name, _, value in (line.strip().partition("  ") for line in text.splitlines())}
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["samples"] == "10"
    assert rows["short side"] == "40 min, 44 median, 49 max"
    assert (rows["classes"], rows["ant"], rows["bee"], rows["cat"]) == ("3", "4", "3", "3")
    assert rows["mean image"] == f"{manifest.size.mean():,.0f} bytes"
    assert rows["rejects"] == "0"
    assert rows["duplicates"] == "0"
    assert rows["identity"] == manifest.identity

    status, text, err = shell("info", "--json", out)
    assert (status, err) == (0, "")
    assert json.loads(text) == {
        "samples": 10,
        "shards": 3,
        "bytes": int(manifest.size.sum()),
        "short_side": {"min": 40, "median": 44.5, "max": 49},
        "classes": {"ant": 4, "bee": 3, "cat": 3},
        "unlabelled": 0,
        "rejects": {},
        "ignored_files": 0,
        "duplicates": 0,
        "identity": manifest.identity,
    }


def test_index_describes_tars_made_elsewhere(shell: Shell, source: Path, tmp_path: Path) -> None:
    (source / "ant" / "copy.jpg").write_bytes((source / "ant" / "000.JPG").read_bytes())
    shell("build", source, tmp_path / "built", "--samples-per-shard", 4, "--workers", 1)
    out = tmp_path / "out"
    status, text, err = shell("index", f"{tmp_path}/built/*.tar", "--out", out, "--workers", 1)
    assert (status, err) == (0, "")
    assert f"{out}: 11 samples in 3 shards, " in text
    assert "\nduplicates: 1 (" in text
    assert shell("index", f"{tmp_path}/built/*.tar", "--out", out)[:2] == (
        0,
        f"{out}: already made from these tars; nothing to do\n",
    )
    assert shell("verify", out)[0] == 0
    assert "classes        3\n" in shell("info", out)[1]


def test_preview_writes_a_page(shell: Shell, source: Path, tmp_path: Path) -> None:
    shell("build", source, tmp_path / "out", "--workers", 1)
    status, text, err = shell("preview", tmp_path / "out", "--out", tmp_path / "page.html")
    assert (status, err) == (0, "")
    written = (tmp_path / "page.html").stat().st_size
    assert text == f"{tmp_path}/page.html: 10 samples, {written / 1000:.3g} KB; open it in a browser\n"
    assert (tmp_path / "page.html").read_text().endswith("</html>\n")


def test_verify_prints_every_problem_and_exits_with_1(shell: Shell, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shell("build", source, out, "--workers", 1)
    tar = out / "shard-000000.tar"
    offset = Manifest.load(out).offset[3]
    data = bytearray(tar.read_bytes())
    data[offset] ^= 1
    tar.write_bytes(data)
    status, text, err = shell("verify", out, "--workers", 2)
    assert (status, len(text.splitlines())) == (1, 2)
    assert f"{tar}: sample {Manifest.load(out).key(3)} (" in text
    assert "2 problems" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "{tmp}/nowhere", "{tmp}/out"], "error: {tmp}/nowhere: no such folder or file\n"),
        (["verify", "{tmp}/nowhere"], "error: {tmp}/nowhere: no such folder\n"),
        (["verify", __file__], f"error: {__file__}: is not a folder; give that of a data set\n"),
        (["index", "{tmp}/*.tar", "--out", "{tmp}/out"], "error: {tmp}/*.tar: no such tar; correct the path or"),
        (["info", "{tmp}"], "error: {tmp}: has no dataset.json, so it is not a finished data set; correct"),
        (["build", "{tmp}"], "Missing argument"),
        (["build", "{tmp}", "{tmp}/out", "--workers", "0"], "--workers"),
        (["build", "{tmp}", "{tmp}/out", "--colour"], "--colour"),
        (["build", "{tmp}", "{tmp}/out", "--check", "nothing"], "'nothing' is not one of 'decode', 'header'"),
        (["build", "{tmp}", "{tmp}/out", "--engine", "slurm"], "'slurm' is not one of 'local', 'ray'"),
    ],
)
def test_what_cannot_go_on_is_status_2_and_no_traceback(
    shell: Shell, tmp_path: Path, arguments: list[str], message: str
) -> None:
    status, out, err = shell(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert (status, out) == (2, "")
    assert message.format(tmp=tmp_path) in err
    assert "Traceback" not in err
    if message.startswith("error"):
        assert err.count("\n") == 1


def test_it_has_the_version_of_the_project(shell: Shell) -> None:
    assert shell("--version") == (0, f"maskfeat-shards {version('maskfeat-pipeline')}\n", "")


def test_without_a_command_it_lists_them(shell: Shell) -> None:
    status, text, err = shell()
    assert (status, text) == (2, "")
    assert err.startswith("Usage: ") and all(
        f"\n  {command} " in err for command in ("build", "index", "verify", "info", "preview")
    )
    assert "..." not in err.partition("Commands:")[2]  # each summary fits into its line


@pytest.mark.parametrize("command", ["build", "index", "verify", "info", "preview"])
def test_help_has_an_example(shell: Shell, command: str) -> None:
    status, out, _ = shell(command, "--help")
    assert status == 0
    assert f"\n    maskfeat-shards {command} " in out


def test_a_tilde_that_the_shell_left_is_the_home_folder(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    make_tree(tmp_path / "home" / "photos", 2)
    assert shell("build", "~/photos", "~/set", "--workers=1")[0] == 0
    assert shell("index", "~/set/shard-000000.tar", "--out=~/index", "--workers=1")[0] == 0
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"photos", "set", "index"}
    assert not (tmp_path / "~").exists()
