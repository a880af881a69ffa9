"""`maskfeat-shards build`: its options, and what it prints about classes, rejects, duplicates and a hold-out."""

import shutil
import tarfile
from pathlib import Path

import pytest
from making_images import make_tree
from making_videos import encoded, film
from PIL import Image
from shell import Shell

from shards.manifest import Dataset, Manifest
from shards.media import formats


def test_the_summary_counts_classes_and_what_has_none(shell: Shell, source: Path, tmp_path: Path) -> None:
    """Test build and index, whose labels are the numbers of the former. The first line has the totals."""

    def summary(*arguments: object) -> list[str]:
        status, text, err = shell(*arguments, "--workers", 1, "--max-rejects", 9)
        assert (status, err) == (0, "")
        return [line for line in text.splitlines()[1:] if line.startswith(("classes", " ", "unlabelled"))]

    (source / "bee" / "copy.jpg").write_bytes((source / "bee" / "001.JPG").read_bytes())
    (source / "bee" / "copy 2.jpg").write_bytes((source / "bee" / "001.JPG").read_bytes())
    assert summary("build", source, tmp_path / "1") == [
        "classes: 3 (ant, bee, cat)",
        "  5 bee",
        "  4 ant",
        "  3 cat",
        "unlabelled: 0 of 12 samples",
    ]
    for path in (source / "bee").iterdir():
        path.write_bytes(b"")
    assert summary("build", source, tmp_path / "2") == [
        "classes: 3 (ant, bee, cat)",
        "  4 ant",
        "  3 cat",
        "  0 bee",
        "classes without a sample: 1 (bee)",
        "unlabelled: 0 of 7 samples",
    ]
    numbers = ["classes: 3 (0, 1, 2)", "  4 0", "  3 2", "  0 1", "classes without a sample: 1 (1)"]
    assert summary("index", tmp_path / "2" / "*.tar", "--out", tmp_path / "3") == [
        *numbers,
        "unlabelled: 0 of 7 samples",
    ]
    shutil.rmtree(source / "bee")
    for name in ("e\u2028f", "g\x1b[31m", "h" * 200, *"ijklmn"):
        shutil.copytree(source / "ant", source / name)
    found = summary("build", source, tmp_path / "4")
    assert found[0] == f"classes: 11 (ant, cat, e\\u2028f, g\\x1b[31m, {'h' * 100}..., ...)"
    assert found[2:5] == ["    4 e\\u2028f", "    4 g\\x1b[31m", f"    4 {'h' * 100}..."]
    assert found[10:] == ["    4 n", "  ... and 1 more", "unlabelled: 0 of 43 samples"]

    with tarfile.open(tmp_path / "2" / "shard-000000.tar") as whole, tarfile.open(tmp_path / "some.tar", "w") as some:
        for member in whole:
            if not member.name.startswith(("000000000.cls", "000000000.json", "000000003.cls", "000000003.json")):
                some.addfile(member, whole.extractfile(member))
    found = summary("index", tmp_path / "some.tar", "--out", tmp_path / "5")
    assert found[-2:] == ["classes without a sample: 1 (1)", "unlabelled: 2 of 7 samples"]


def test_videos_are_called_so_and_images_among_them_are_samples(shell: Shell, tmp_path: Path) -> None:
    for name in ("run", "walk"):
        (tmp_path / "source" / name).mkdir(parents=True)
        (tmp_path / "source" / name / "1.mp4").write_bytes(encoded(film(5, seed=len(name))))
    status, text, err = shell("build", tmp_path / "source", tmp_path / "videos", "--workers", 1)
    assert (status, err) == (0, "") and text.splitlines()[0].endswith(" videos/s")
    again = shell("build", tmp_path / "source", tmp_path / "videos")
    assert again == (0, f"{tmp_path}/videos: already built from these videos with these options; nothing to do\n", "")

    Image.fromarray(film(1)[0]).save(tmp_path / "source" / "run" / "2.png")
    status, text, err = shell("build", tmp_path / "source", tmp_path / "both", "--workers", 1)
    assert (status, err) == (0, "") and text.splitlines()[0].endswith(" samples/s")
    again = shell("build", tmp_path / "source", tmp_path / "both")
    assert again == (0, f"{tmp_path}/both: already built from these samples with these options; nothing to do\n", "")
    assert shell("verify", tmp_path / "both")[0] == 0
    refused = shell("build", tmp_path / "source", tmp_path / "videos")
    assert refused[:2] == (2, "") and "contains a data set of other files or options" in refused[2]


def test_names_forge_no_lines(shell: Shell, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", 1, ("a\nerror: forged",))
    (source / "b\x1b[31m").mkdir()
    status, text, err = shell("build", source, tmp_path / "out", "--workers", 1)
    assert (status, text.splitlines()[1]) == (0, "classes: 1 (a\\nerror: forged)")
    assert err.splitlines() == [
        f"{source}: one class only, a\\nerror: forged; if it contains the class folders, build it instead",
        f"{source}: no class for folders without an image or video: b\\x1b[31m (empty)",
    ]


def test_without_any_label_that_is_said_before_the_work_and_after_it(shell: Shell, tmp_path: Path) -> None:
    flat = make_tree(tmp_path / "flat", 3, ())
    status, text, err = shell("build", flat, tmp_path / "out", "--workers", 1)
    assert (status, err) == (
        0,
        f"{flat}: no classes: its files lie at the top; for labels, put them into a folder for each class\n",
    )
    assert text.splitlines()[1:3] == ["classes: none", "unlabelled: 3 of 3 samples"]


def test_options_take_transparent_and_deep_images_which_are_else_rejects(
    shell: Shell, source: Path, tmp_path: Path
) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(source / "ant" / "clear.png")
    Image.new("I;16", (8, 8), 40_000).save(source / "ant" / "deep.png")
    status, text, _ = shell("build", source, tmp_path / "strict", "--workers", 1)
    assert status == 1
    hints = [line for line in text.splitlines() if "accepts such images" in line]
    assert hints == [
        "  transparent: --alpha white accepts such images",
        "  16-bit: --depth scale accepts such images",
    ]
    options = ("--alpha", "white", "--depth", "scale")
    assert shell("build", source, tmp_path / "out", "--workers", 1, *options)[::2] == (0, "")
    assert shell("verify", tmp_path / "out")[0] == 0
    manifest = Manifest.load(tmp_path / "out")
    assert len(manifest) == 12 and Dataset.load(tmp_path / "out").rejects == 0
    status, _, err = shell("build", source, tmp_path / "out", "--workers", 1)
    assert status == 2 and "other files or options" in err


def test_a_missing_decoder_is_announced_and_once_it_is_there_the_data_set_is_another_one(
    shell: Shell, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1.AVIF", "2.avif"):
        Image.open(source / "ant" / "000.JPG").save(source / "ant" / name)
    with monkeypatch.context() as patched:
        patched.setattr(formats, "installed", lambda: ("JPEG2000",))
        status, text, err = shell("build", source, tmp_path / "out", "--workers", 1)
        assert err.startswith(f"{source}: 2 AVIF files cannot be read: pip install -U 'pillow>=11.3'\n")
        assert status == 1 and "rejects: 2 (2 AVIF)" in text
    status, _, err = shell("build", source, tmp_path / "out", "--workers", 1)
    assert status == 2 and "other files or options; choose another folder or delete this one" in err
    assert shell("build", source, tmp_path / "new", "--workers", 1)[::2] == (0, "")
    assert Dataset.load(tmp_path / "new").samples == 12


def test_a_hold_out_is_a_second_data_set_beside_the_first(shell: Shell, source: Path, tmp_path: Path) -> None:
    for path in list(source.rglob("*.*")):
        path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
    out = tmp_path / "set"
    command = ("build", source, f"{out}/", "--validation", "50%", "--workers", 1)
    status, text, err = shell(*command)
    assert (status, err) == (0, "")
    held, kept = Manifest.load(f"{out}-validation"), Manifest.load(out)
    lines = text.splitlines()
    assert lines[0].startswith(f"{out}-validation: 10 samples in 1 shard, ")
    assert len(held) == 10 and Dataset.load(out).rejects == 10 - len(kept) > 0
    assert any(line.startswith(f"rejects: {10 - len(kept)} ({10 - len(kept)} held out)") for line in lines)
    assert shell(*command)[1].count("nothing to do") == 2
    assert shell("verify", out)[0] == shell("verify", f"{out}-validation")[0] == 0

    (source / "ant" / "bad.jpg").touch()
    status, _, err = shell("build", source, tmp_path / "new", "--validation", "3", "--validation-out", tmp_path / "v")
    assert status == 1
    assert f"{tmp_path}/v and {tmp_path}/new are complete and usable, but have 1 reject where" in err
    assert "(such as ant/bad.jpg: empty, 0 bytes)" in err


def test_options_of_a_hold_out_need_one(shell: Shell, source: Path, tmp_path: Path) -> None:
    for option in ("--validation-out", "--group-by"):
        status, _, err = shell("build", source, tmp_path / "out", option, "x")
        assert (status, err) == (2, f"error: {option} x: belongs to --validation; give both, or neither\n")
    status, _, err = shell("build", source, tmp_path / "out", "--validation", "much")
    assert (status, err) == (2, "error: --validation much: is neither a percentage, such as 5%, nor a count\n")


def test_duplicates_are_counted_and_named(shell: Shell, source: Path, tmp_path: Path) -> None:
    (source / "cat" / "copy.jpg").write_bytes((source / "ant" / "000.JPG").read_bytes())
    status, text, err = shell("build", source, tmp_path / "out", "--workers", 1)
    assert (status, err) == (0, "")
    (line,) = [line for line in text.splitlines() if line.startswith("duplicates: 1 (")]
    assert line.endswith(f"see {tmp_path}/out/duplicates.parquet")
    assert "ant/000.JPG" in line and "cat/copy.jpg" in line
    assert line.removeprefix("duplicates: ").split(":")[0] in shell("info", tmp_path / "out")[1]


def test_rejects_decide_the_exit_status_but_not_the_data_set(shell: Shell, source: Path, tmp_path: Path) -> None:
    (source / "ant" / "000.JPG").write_bytes(b"")
    (source / "bee" / "001.JPG").write_bytes(b"text")
    status, text, err = shell("build", source, tmp_path / "strict", "--workers", 1)
    assert status == 1
    assert "rejects: 2 (1 empty, 1 not an image)" in text or "(1 not an image, 1 empty)" in text
    assert text.splitlines()[-1].startswith(f"{tmp_path}/strict is complete and usable; next: ")
    assert "is complete and usable, but has 2 rejects" in err
    assert "rejects.parquet" in err
    assert shell("verify", tmp_path / "strict")[0] == 0
    status, text, err = shell("build", source, tmp_path / "strict", "--workers", 1)  # a job that is tried again
    assert status == 1 and "nothing to do" in text and "is complete and usable, but has 2 rejects" in err

    assert shell("build", source, tmp_path / "lax", "--workers", 1, "--max-rejects", 2)[::2] == (0, "")
    assert "1 empty, 1 not an image" in shell("info", tmp_path / "lax")[1]
