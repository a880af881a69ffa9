"""`pipe:` commands: those that name a URL, those that fail, and the one place that they may come from."""

import io
import tarfile
import time
from pathlib import Path

import pytest
import yaml
from launching import small_recipe
from making_streams import grey, seen, stream, write_tar
from servers import http_server

from pipeline.config import load_recipe
from pipeline.data.errors import DataError
from pipeline.data.pipe import Pipe
from pipeline.settings import ConfigError
from shards.files import ShardError
from shards.manifest import Manifest
from shards.sources.source import list_source
from shards.storage import StorageError


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of two images each, of greys 0, 2, 4 and 6: numbers 0 to 3."""
    folder = tmp_path_factory.mktemp("tars")
    for tar in range(2):
        write_tar(folder / f"{tar}.tar", {f"image{n}": grey(2 * n) for n in (2 * tar, 2 * tar + 1)})
    return folder


def read(command: str, deadline: float = 60) -> bytes:
    with Pipe(f"pipe:{command}", deadline) as pipe:
        return pipe.read()


def test_a_command_that_names_a_url_runs_with_its_braces_expanded(tars: Path) -> None:
    with http_server(tars) as server:
        data = stream(f"pipe:curl -s {server.url}/{{0..1}}.tar")
        assert seen(data, set(range(4))) == set(range(4))
        assert data.counters()["tar_errors"] == 0
        assert {path for path, _ in server.requests} == {"/0.tar", "/1.tar"}


def test_variables_are_those_of_the_shell_or_of_webdataset(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDER", str(tars))
    monkeypatch.setenv("WDS_NUMBER", "1")
    data = stream("pipe:cat ${FOLDER}/0.tar::pipe:cat $FOLDER/${NUMBER}.tar")
    assert seen(data, set(range(4))) == set(range(4))
    with pytest.raises(DataError, match=r"^data\.shards=/\$\{NOWHERE\}\.tar: .* set the variable WDS_NOWHERE$"):
        stream("/${NOWHERE}.tar")


def test_a_command_is_read_like_a_file() -> None:
    assert read("printf '%s' one; printf two") == b"onetwo"
    with Pipe("pipe:printf 12345; sleep 0.1; printf 678", 60) as pipe:
        assert [pipe.read(n) for n in (0, 2, 5, 9, 1)] == [b"", b"12", b"34567", b"8", b""]
    assert read("cat; echo lost >&2") == b""  # nothing to read from, and nothing of what it complains of


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("exit 3", "ended with status 3"),
        ("no-such-program", r"ended with status 127 \(no such program\)"),
        ("kill -TERM $$", "was killed by SIGTERM"),
        ("sh -c 'kill -KILL $$'; exit $?", "was killed by SIGKILL"),
    ],
)
def test_a_command_that_fails_says_how(command: str, why: str) -> None:
    with pytest.raises(StorageError, match=rf": its command {why}; run it separately to see why$"):
        read(command)
    pipe = Pipe(f"pipe:printf data; {command}", 60)
    assert pipe.read(4) == b"data"
    with pytest.raises(StorageError, match=why):
        pipe.close()


def test_a_command_that_hangs_is_ended() -> None:
    begun = time.monotonic()
    with pytest.raises(StorageError, match=r"wrote nothing for 0\.2 s"):
        read("sleep 60", deadline=0.2)
    Pipe("pipe:yes", 60).close()  # has not ended, and never would
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("command", ["cat {tar}; exit 3", "head -c 3000 {tar}; exit 3", "exit 3"])
def test_a_failed_command_is_one_error_and_one_warning(
    tars: Path, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = f"pipe:{command.format(tar=tars / '1.tar')} # -u bob:SEKRET"
    data = stream(failing)
    assert len(list(data._images_of([failing]))) <= 2
    assert data.counters()["tar_errors"] == 1
    (message,) = (message for message in caplog.messages if "curl" not in message)  # threads of the test before
    assert "status 3" in message and "SEKRET" not in message


# The places from which commands may come


def command_that_proves(folder: Path) -> str:
    return f"pipe:touch {folder}/ran://"


def test_listings_and_data_sets_run_no_command(tmp_path: Path, shards: Path) -> None:
    command = command_that_proves(tmp_path)
    (tmp_path / "list.csv").write_text(f'path\n"{command}"\n')
    assert list_source(tmp_path / "list.csv").sizes == [0]  # the name of a file, which is not there
    for key in ("data.shards", "data.validation"):
        with pytest.raises(ConfigError, match=r"only data\.shards of data\.mode=stream may be a command"):
            small_recipe(shards, tmp_path, f"{key}={command}")
    with pytest.raises(ShardError):
        Manifest.load(command)
    assert not list(tmp_path.glob("ran*"))


@pytest.mark.parametrize("shards", ["pipe:touch {proof}", "{{p,}}ipe:touch {proof}", "/data/0.tar"])
def test_the_record_of_a_run_says_no_more_what_to_stream(tmp_path: Path, shards: str) -> None:
    recipe = small_recipe("x", tmp_path / "run").plain()
    recipe["data"] |= {"mode": "stream", "stream_samples": 8, "shards": shards.format(proof=tmp_path / "ran")}
    config = tmp_path / "run" / "config.yaml"
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    config.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError, match=r"config\.yaml is the record of a run.*give data\.shards=\.\.\.$"):
        load_recipe(str(config), ["run.seed=1"])
    (tmp_path / "link.yaml").symlink_to(config)
    with pytest.raises(ConfigError, match=r"config\.yaml is the record of a run"):
        load_recipe(str(tmp_path / "link.yaml"))
    assert load_recipe(str(config), ["data.shards=/b.tar"]).data.shards == "/b.tar"
    config.rename(tmp_path / "mine.yaml")  # a recipe of the user's own
    assert load_recipe(str(tmp_path / "mine.yaml")).data.shards == recipe["data"]["shards"]


def test_what_was_masked_is_asked_for(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {mode: stream, stream_samples: 8, shards: 'pipe:curl -u *** host'}\noptim: {epochs: 40, batch_size: 8}"
    )
    with pytest.raises(ConfigError, match=r"\*\*\* in data\.shards replaces a secret: give data\.shards="):
        load_recipe(str(recipe))
    assert (
        load_recipe(str(recipe), ["data.shards=pipe:curl -u bob:pw host"]).plain()["data"]["shards"]
        == "pipe:curl -u *** host"
    )


def test_a_tar_from_a_pipe_may_end_before_its_padding(tmp_path: Path) -> None:
    """`tar` pads to 10 kB, others more; a command that still writes then is not at fault."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo("a.png")
        member.size = len(grey(2))
        tar.addfile(member, io.BytesIO(grey(2)))
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    command = f"pipe:cat {tmp_path}/a.tar; head -c 3000000 /dev/zero"
    data = stream(command)
    assert len(list(data._images_of([command]))) == 1
    assert data.counters()["tar_errors"] == 0
