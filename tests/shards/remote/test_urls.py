"""The URLs that are opened, and how they are shown. They come from tables and data sets that are not trusted."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.registry import known_implementations
from making_images import make_tree

from pipeline.data.settings import Data
from shards.build import build
from shards.cli import main
from shards.files import ShardError
from shards.index import index_tars
from shards.manifest import Dataset, Manifest
from shards.remote.request import locate
from shards.remote.urls import PROTOCOLS, is_url
from shards.sources.source import list_source
from shards.storage import StorageError, has_query, printable_url, read, shows_credentials, why_unsupported

SECRET = "SEKRET123"
CHAINS = [
    "reference://x.jpg::file:///tmp/refs.json",
    "reference://x.jpg::https://host/refs.json",
    "simplecache::http://host/a.jpg",
    "x.jpg::file:///refs.json",
    "zip://a.jpg::s3://bucket/a.zip",
    f"http://host/a.jpg::https://me:{SECRET}@host/b.jpg",
    f"filecache::http://host/a.jpg?token={SECRET}",
    "::http://host/a.jpg",
]
OTHERS = [
    "reference://x.jpg",
    "REFERENCE://x.jpg",
    f"sftp://me:{SECRET}@host/a.jpg",
    "memory://a.jpg",
    "git+ssh://a.jpg",
    "data://image/jpeg;base64,AAAA",
    "python://os",
    "://a.jpg",
    "ht\ntp://a.jpg",
    "my https://a.jpg",
    "local:///etc/passwd",
]
LEAKS = [
    "http://u:{}@h/x",
    "https://{}@h/x",
    "HTTP://u:{}@h/x",
    "s3://k:{}@b/x",
    "http://u:p/{}@h/x",
    "http://u:p?{}@h/x",
    "http://u:p#{}@h/x",
    "http://u:p\\{}@h/x",
    "http://u:p {}@h/x",
    "http://u:p:{}@h/x",
    "http://h/x?{}",
    "http://h/x?a='{}",
    'http://h/x?a="{}"',
    "http://h/x#{}",
    "http://h/x#a?{}",
    "http://h/x;jsessionid={}",
    "http://h/a picture.jpg?token={}",
    "http://h/x?a b {}",
    "http://h/a::https://u:{}@h/b",
    "simplecache::http://u:{}@h/x",
    "simplecache::http://h/x?{}",
    "https://web.archive.org/web/2020/https://u:{}@h/x",
    "https://web.archive.org/web/2020/https://h/x?{}",
    "http://[::1]:80/x?{}",
    "http://u:{}@[::1]:80/x",
    "got http://u:{}@h/x and s3://b/y",
    "got 'http://h/x?{}' from it",
    "http://h/x?{}: 403 Forbidden",
    "InvalidURL: http://u:{}@h:x/y",
]


def test_what_is_shown_of_a_url() -> None:
    assert printable_url("s3://bucket/a/b.tar") == "s3://bucket/a/b.tar"
    assert printable_url("/a file?.tar") == "/a file?.tar"
    assert printable_url("https://me:pass@word@host:80/a/b.tar?sig=x&t=1#top") == "https://host:80/a/b.tar"
    assert printable_url("at 'https://t@h/a?b=c' and s3://k:s@b/x.") == "at 'https://h/a' and s3://b/x."
    assert printable_url("http://h:8080/@me/a@2.jpg") == "http://h:8080/@me/a@2.jpg"
    assert printable_url("http://h/x?a=b: 403 Forbidden") == "http://h/x 403 Forbidden"
    assert printable_url("http://[fe80::1]:80/x?a") == "http://[fe80::1]:80/x"
    assert printable_url("zip://a.jpg::s3://bucket/a.zip") == "zip://a.jpg::..."
    assert printable_url("http://h/\x1b[31m\n\u202ex") == r"http://h/\x1b[31m%20\u202ex"


@pytest.mark.parametrize("text", LEAKS)
def test_nothing_that_is_shown_tells_a_secret(text: str) -> None:
    shown = printable_url(text.format(SECRET))
    assert SECRET not in shown and "\n" not in shown
    assert any(part in shown for part in ("//h", "//b/", "//[::1]", "web.archive", "simplecache")), shown


@pytest.mark.parametrize(
    "text",
    [
        "http://" + ":" * 10**5,
        "http://" + "a:" * 10**5,
        "a" * 10**5,
        "http://x?" + "'" * 10**5,
        "::" * 10**5,
        "http://" + "a@" * 10**5 + " ",
        "http://[" + ":" * 10**5,
        "http://h/" + "a://" * 10**4,
        "http://h/?" + "&" * 10**5,
    ],
    ids=range(9),
)
def test_a_url_of_any_length_is_judged_at_once(text: str) -> None:
    begun = time.monotonic()
    for shown in (text, f"message: {text}"):
        printable_url(shown)
        shows_credentials(shown)
        has_query(shown)
    why_unsupported(text)
    assert time.monotonic() - begun < 5.0


@pytest.mark.parametrize(
    "query",
    [
        "api_key=",
        "key=",
        "apikey=",
        "auth=",
        "password=",
        "access_token=",
        "access-token=",
        "jwt=",
        "sig=",
        "X-Amz-Signature=",
        "sessionid=",
        "pwd=",
        "client_secret=",
        "AWSAccessKeyId=",
        "api%5Fkey=",
        "%61pi_key=",
        "Authorization=",
        "credential=",
        "passwd=",
        "sid=",
        "x-goog-signature=",
        "w=1&Token=",
        "hdnts=exp~hmac=",
        "url=https://h/x?token=",
        "sign=",
        "Expires=",
        "SESSION=",
        "subscription-key=",
        "bearer=",
        "#token=",
    ],
)
def test_a_query_with_the_name_of_a_secret_shows_credentials(query: str) -> None:
    assert shows_credentials(f"https://h/a.jpg{'' if query.startswith('#') else '?'}{query}{SECRET}")
    assert shows_credentials(f"https://h/a.jpg;{query.lstrip('#')}{SECRET}")


@pytest.mark.parametrize(
    "query",
    [
        "w=1",
        "size=large&q=80",
        "v=2",
        "format=jpg&name=large",
        "author=x",
        "keywords=a",
        "design=3",
        "auto=compress",
        "id=1",
    ],
)
def test_an_ordinary_query_shows_none(query: str) -> None:
    assert not shows_credentials(f"https://h/a.jpg?{query}")
    assert has_query(f"https://h/a.jpg?{query}") and not has_query("https://h/a.jpg")
    assert not has_query(f"/folder/a.jpg?{query}") and not has_query(f"s3://bucket/a#1.jpg?{query}")


def test_a_url_begins_with_its_protocol() -> None:
    assert all(map(is_url, ["http://h", "S3://b/k", *CHAINS, *OTHERS]))
    assert not any(
        map(
            is_url,
            ["a/b://c.jpg", "/a://b", "http:/h/x", r"http:\\h\x", "pipe:curl -s http://h/x", "pipe:http://h", "a.jpg"],
        )
    )


def test_only_protocols_of_the_list_are_opened() -> None:
    assert PROTOCOLS == ("file", "http", "https", "s3", "s3a", "gs", "gcs")
    for protocol in {*known_implementations, "none"} - set(PROTOCOLS):
        with pytest.raises(
            StorageError, match=r"its protocol is not one of file, http, https, s3, s3a, gs, gcs; copy it"
        ):
            locate(f"{protocol}://a/b")
    assert type(locate("HTTPS://h/x")[0]).__name__ == "Web" and locate("HTTPS://h/x")[1] == "https://h/x"
    assert type(locate("S3A://b/k")[0]).__name__ == "S3FileSystem"
    assert locate("http://[::1]:80/x")[1] == "http://[::1]:80/x"


def test_a_file_url_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_bytes(b"0123456789")
    assert read(f"file://{tmp_path}/a b.txt") == b"0123456789" == read(f"FILE://{tmp_path}/a b.txt")
    assert read(f"file://{tmp_path}/a b.txt", 3, 4) == b"3456"
    (tmp_path / "empty").touch()
    assert read(f"file://{tmp_path}/empty") == b""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build(make_tree(folder / "source", 4), folder / "out", workers=1)
    return folder / "out"


def one_line(call: Callable[[], object], *parts: str) -> str:
    """The message of the one error that the call ends with, at once."""
    begun = time.monotonic()
    with pytest.raises((ShardError, ValueError)) as caught:
        call()
    message = str(caught.value)
    assert time.monotonic() - begun < 5.0
    assert SECRET not in message and "refs.json" not in message
    assert all(part in message for part in parts), message
    return message


@pytest.mark.parametrize("url", CHAINS + OTHERS)
def test_chains_and_other_protocols_are_one_error_wherever_they_are_named(
    url: str, built: Path, tmp_path: Path
) -> None:
    why = "chains protocols with `::`" if url in CHAINS else "its protocol is not one of file, http"
    good = tmp_path / "good.jpg"
    good.write_bytes(b"")
    # As the second of its protocol, too
    for rows in ([url], ["http://host/good.jpg", str(good), url]):
        (tmp_path / "list.csv").write_text("path\n" + "".join(f'"{row}"\n' for row in rows))
        pq.write_table(pa.table({"path": rows}), tmp_path / "list.parquet")
        for kind in ("csv", "parquet"):
            if url.startswith(" "):  # which is no part of it in a table
                assert url.strip() in list_source(tmp_path / f"list.{kind}").paths
                continue
            message = one_line(lambda kind=kind: list_source(tmp_path / f"list.{kind}"), f"row {len(rows)}")
            assert why in message or "contains credentials" in message
    message = one_line(lambda: index_tars([url.replace("jpg", "tar")], tmp_path / "index", workers=1))
    assert (why in message or "contains credentials" in message) and "\n" not in message
    assert not (tmp_path / "index").exists()

    copy = tmp_path / "copy"
    copy.mkdir()
    for file in built.iterdir():
        (copy / file.name).symlink_to(file)
    described = json.loads((built / "dataset.json").read_text())
    described["shards"][0]["name"] = url
    (copy / "dataset.json").unlink()
    (copy / "dataset.json").write_text(json.dumps(described))
    for load in (Dataset.load, Manifest.load):
        assert "\n" not in one_line(lambda load=load: load(copy), "names the shard", why)
    assert "\n" not in one_line(lambda: Manifest.load(url), why)
    assert "\n" not in one_line(lambda: build(tmp_path / "list.csv", url, workers=1), "")


def test_the_commands_say_it_in_one_line(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"reference://x.tar::https://me:{SECRET}@host/refs.json?key={SECRET}"
    source = str(built.parent / "source")
    for command in (
        ["verify", url],
        ["info", url],
        ["preview", url, "--out", str(tmp_path / "p.html")],
        ["build", source, url],
        ["index", url, "--out", str(tmp_path / "index")],
        ["index", str(built / "shard-000000.tar"), "--out", url],
        ["index", f"http://host/a.tar?api_key={SECRET}", "--out", str(tmp_path / "index")],
        ["index", f"http://host/a.tar#{SECRET}", "--out", str(tmp_path / "index")],
        ["index", f"http://{SECRET}@host/a.tar", "--out", str(tmp_path / "index")],
        ["info", f"http://127.0.0.1:9/set?api_key={SECRET}"],
    ):
        monkeypatch.setattr(sys, "argv", ["maskfeat-shards", *command])
        with pytest.raises(SystemExit) as exit:
            main()
        shown = capsys.readouterr()
        assert exit.value.code == 2 and shown.out == ""
        assert shown.err.startswith("error: ") and shown.err.count("\n") == 1, shown.err
        assert SECRET not in shown.err and "refs.json" not in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["shards", "validation"])
@pytest.mark.parametrize("url", ["http://h/set?api_key={}", "http://h/set#{}", "https://{}@h/set", "http://h/a?{}::x"])
def test_a_recipe_with_a_secret_in_a_url_is_refused(setting: str, url: str) -> None:
    settings = {"shards": "shards"} | {setting: url.format(SECRET)}
    with pytest.raises(ValueError, match=f"data.{setting} contains credentials or a query") as caught:
        Data(**settings)
    assert SECRET not in next(error["msg"] for error in caught.value.errors())
