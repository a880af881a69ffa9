"""The same source is the same data set: in every locale, beside other files, and to data sets of older versions."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_images import contents, encoded, make_tar, make_tar_of_tars, picture

from shards.build import build
from shards.files import ShardError
from shards.manifest import Dataset, Manifest, Options, Shard
from shards.media.media import DEFAULT_MAX_PIXELS

CHECKOUT = Path(__file__).parents[2]
ISO_8859_1 = "en_US.ISO-8859-1"


def older_source(root: Path, kind: str) -> Path:
    """A source whose fingerprint was taken with the code before folders were passed over. Only sizes matter."""
    names = ["Käfer rot/ä b.jpg", os.fsdecode(b"Z\xff/\xfe.png"), "Z\u2028/1.jpeg", "ant/.hidden", "ant/notes.txt"]
    names += [".git/objects/1", "ant/.ipynb_checkpoints/1.jpg", "__MACOSX/ant/._1.jpg"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")
    if kind == "folder":
        return root
    source = root.parent / f"list.{kind}"
    paths = [f"{root.name}/Käfer rot/ä b.jpg", f"{root.name}/Z\u2028/1.jpeg", "gone.jpg"]
    if kind == "csv":
        source.write_text(f'label,path\ndog,{paths[0]}\n"Käfer\n2",{paths[1]}\nant,{paths[2]}\n', "utf-8")
    else:
        pq.write_table(pa.table({"path": paths, "label": [2, 0, 2]}), source)
    return source


@pytest.mark.parametrize(
    ("kind", "fingerprint", "ignored"),
    [
        ("folder", "8f314163cd21e3700d74b2354353dd1dd5260744119a613fd5686afd1c2f36c4", 5),
        ("csv", "9a76dd69d7fb211cdea73ede022d440df6a1dfabd91ac948e54f175d9eb83042", 0),
        ("parquet", "59cad314d8aa7f709ea26cc7af594f3152add26b8707c86218ce2dd964b1ce93", 0),
    ],
)
def test_data_sets_of_older_versions_are_known(kind: str, fingerprint: str, ignored: int, tmp_path: Path) -> None:
    source, out = older_source(tmp_path / "source", kind), tmp_path / "out"
    shards, options = [Shard("a.tar", 1, 1024, "")], Options(1000, None, DEFAULT_MAX_PIXELS, 0)
    dataset = Dataset(1, 1, [], shards, "", 0, ignored, options, fingerprint)
    out.mkdir()
    (out / "dataset.json").write_text(dataset.dump())
    assert build(source, out, workers=1) == (dataset, True)
    with pytest.raises(ShardError, match="contains a data set of other files or options"):
        build(source, out, workers=1, seed=1)


def test_files_that_are_no_images_may_come_and_go(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "ant").mkdir(parents=True)
    (source / "ant" / "1.jpg").write_bytes(encoded(picture(1), "JPEG"))
    build(source, out, workers=1)
    (source / "ant" / "notes.txt").write_text("x")
    (source / ".git").mkdir()
    (source / ".git" / "HEAD").write_text("x")
    dataset, finished_before = build(source, out, workers=1)
    assert (finished_before, dataset.ignored) == (True, 0)
    (source / "ant" / "2.jpg").write_bytes(encoded(picture(2), "JPEG"))
    with pytest.raises(ShardError, match="contains a data set of other files or options"):
        build(source, out, workers=1)


def test_parts_are_refused_but_what_was_built_of_them_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for part in ("train", "val"):
        (source / part / "ant").mkdir(parents=True)
        (source / part / "ant" / "1.jpg").write_bytes(encoded(picture(1), "JPEG"))
    with pytest.raises(
        ShardError, match=r"contains the splits of a data set \(train, val\), .* build .*/source/train \.\.\."
    ):
        build(source, out, workers=1)
    assert not out.exists()
    with monkeypatch.context() as before:
        before.setattr("shards.build.refuse_parts", lambda listing: None)
        build(source, out, workers=1)
    assert build(source, out, workers=1)[1]


@pytest.fixture(scope="module")
def locales(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The environment of each locale: names are ASCII in C and never UTF-8 in the others."""
    folder = tmp_path_factory.mktemp("locales")
    found = {"UTF-8": {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}}
    found["C"] = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", folder / ISO_8859_1]
    if shutil.which("localedef") and subprocess.run(command, capture_output=True).returncode == 0:
        found[ISO_8859_1] = {"LC_ALL": ISO_8859_1, "LOCPATH": str(folder), "PYTHONUTF8": "0"}
    return found


SHELL = """
import sys
from shards.cli import main
for line in sys.stdin.buffer.read().split(b"\\n"):
    sys.argv = ["maskfeat-shards", *map(os.fsdecode, line.split(b"\\t"))]
    try:
        main()
    except SystemExit as exit:
        print("status", exit.code, flush=True)
"""


def run(environment: dict[str, str], code: str, *arguments: str | Path, commands: list[list[str]] | None = None) -> str:
    """Return the output of a separate process that runs `code`; `commands` are passed on its stdin."""
    done = subprocess.run(
        [sys.executable, "-c", f"import os\n{code}", *arguments],
        input=b"\n".join(b"\t".join(map(os.fsencode, command)) for command in commands or []),
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode("utf-8", "replace")


def test_every_locale_builds_the_same_bytes_and_knows_them_again(
    locales: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    home = tmp_path / "dätä"
    images = home / "images"
    names = ["Käfer rot/ä b.jpg", "日本/1.jpg", os.fsdecode(b"\xfcx/\xff.jpg"), "z/dup.jpg"]
    for number, name in enumerate(names):
        (images / name).parent.mkdir(parents=True)
        (images / name).write_bytes(encoded(picture(min(number, 2)), "JPEG"))
    (images / "z" / "é.jpg").write_bytes(b"text")
    rows = [
        ("images/Käfer rot/ä b.jpg", "ü"),
        ("images/日本/1.jpg", "日"),
        ("images/z/é.jpg", "ü"),
        ("weg/ö.jpg", "日"),
    ]
    (home / "list.csv").write_text("".join(f"{path},{label}\n" for path, label in [("path", "label"), *rows]), "utf-8")
    columns = {"path": [path for path, _ in rows], "label": [label for _, label in rows]}
    pq.write_table(pa.table(columns), home / "list.parquet")
    for locale, environment in locales.items():
        commands = []
        for source in ("images", "list.csv", "list.parquet"):
            for out in (f"öut-{locale}-{source}", f"öut-UTF-8-{source}"):
                commands.append(["build", f"{home}/{source}", f"{tmp_path}/{out}", "--workers=1", "--max-rejects=2"])
        commands += [[command, f"{tmp_path}/öut-UTF-8-images"] for command in ("verify", "info")]
        commands.append(["preview", f"{tmp_path}/öut-UTF-8-images", f"--out={tmp_path}/pägé-{locale}.html"])
        printed = run(environment, SHELL, commands=commands)
        assert (printed.count("status 0\n"), printed.count("already built from these images")) == (9, 3), printed
        for source in ("images", "list.csv", "list.parquet"):
            assert contents(tmp_path / f"öut-{locale}-{source}") == contents(tmp_path / f"öut-UTF-8-{source}")
        assert (tmp_path / f"pägé-{locale}.html").read_bytes() == (tmp_path / "pägé-UTF-8.html").read_bytes()
    manifest = Manifest.load(tmp_path / "öut-UTF-8-images")
    assert manifest.classes == ["Käfer rot", "z", "日本", "\\xfcx"]
    paths = ["Käfer rot/ä b.jpg", "\\xfcx/\\xff.jpg", "z/dup.jpg", "日本/1.jpg"]
    assert sorted(path for _, path in manifest.names(0, 4)) == paths
    for source in ("list.csv", "list.parquet"):
        built = Dataset.load(tmp_path / f"öut-UTF-8-{source}")
        assert (built.samples, built.rejects, built.classes) == (2, 2, ["ü", "日"])


def test_tars_are_the_same_in_every_locale(locales: dict[str, dict[str, str]], tmp_path: Path) -> None:
    tars, images = tmp_path / "tärs", tmp_path / "images"
    names = ["é/ü à.jpg", "x\udcff.jpg", "\u2028.jpg"]
    labels = {"é/ü à.cls": "ß".encode(), "x\udcff.cls": b"Z", "\u2028.cls": "日".encode()}
    for folder in ("ä", "z\udcfe"):
        (images / folder).mkdir(parents=True)
        (images / folder / "ö.jpg").write_bytes(encoded(picture(len(folder)), "JPEG"))
    tars.mkdir()
    make_tar_of_tars(tmp_path / "all.tar", images)
    members = {name: encoded(picture(number), "JPEG") for number, name in enumerate(names)}
    tar = make_tar(tars / "ü à.tar", members | labels | {"weg/ö.jpg": b"text"})
    for locale, environment in locales.items():
        commands = [["build", f"{tmp_path}/all.tar", f"{tmp_path}/built-{out}"] for out in (locale, "UTF-8")]
        for out in (locale, "UTF-8"):
            index = [f"--out={tmp_path}/öut-{out}", "--workers=1", "--max-rejects=1"]
            commands.append(["index", f"{tars}/*.tar", *index])
        commands.append(["index", f"{tars}/*.tar", f"--out={tars}", "--max-rejects=1"])
        commands += [["verify", f"{tmp_path}/{out}"] for out in (f"built-{locale}", "öut-UTF-8", "tärs")]
        commands.append(["preview", f"{tmp_path}/öut-UTF-8", f"--out={tmp_path}/{locale}.html"])
        printed = run(environment, SHELL, commands=commands)
        assert printed.count("status 0\n") == len(commands), printed
        for out in ("built", "öut"):
            assert contents(tmp_path / f"{out}-{locale}") == contents(tmp_path / f"{out}-UTF-8")
        assert (tmp_path / f"{locale}.html").read_bytes() == (tmp_path / "UTF-8.html").read_bytes()
    indexed, built = Manifest.load(tmp_path / "öut-UTF-8"), Manifest.load(tmp_path / "built-UTF-8")
    assert (indexed.shard_names, indexed.classes, indexed.label.tolist()) == ([str(tar)], ["Z", "ß", "日"], [1, 0, 2])
    assert indexed.names(0, 3) == [("é/ü à", "é/ü à.jpg"), ("x\\xff", "x\\xff.jpg"), ("\u2028", "\u2028.jpg")]
    assert pq.read_table(tmp_path / "öut-UTF-8" / "rejects.parquet")["path"].to_pylist() == [f"{tar}/weg/ö"]
    assert (built.classes, sorted(path for _, path in built.names(0, 2))) == (
        ["ä", "z\\xfe"][::-1],
        ["z\\xfe/ö.jpg", "ä/ö.jpg"],
    )


def test_urls_of_tables_are_the_same_in_every_locale(tmp_path: Path, locales: dict[str, dict[str, str]]) -> None:
    (tmp_path / "list.csv").write_text("url,label\nhttps://h/ä.jpg,ü\n", "utf-8")
    code = (
        "import sys; from pathlib import Path; from shards.sources.source import list_source\n"
        "item = list_source(Path(sys.argv[1])).item(0); print(ascii((item.file, item.class_name)))"
    )
    for environment in locales.values():
        assert run(environment, code, tmp_path / "list.csv") == "('https://h/\\xe4.jpg', '\\xfc')\n"
