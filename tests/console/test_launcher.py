"""Start, signal and end the processes of `maskfeat`: real runs, and launchers that are made up."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import yaml
from launching import CHECKOUT, SMALL, losses, small_recipe

import pipeline.console.main as console
from pipeline.console import launch, rank

START = "from pipeline.console.entry import maskfeat; maskfeat()"


@pytest.fixture
def maskfeat(tmp_path: Path) -> list[str]:
    """The command, as pip installs it: a script in a folder of its own."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "maskfeat").write_text(START)
    return [sys.executable, str(tmp_path / "bin" / "maskfeat")]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A working directory with modules of our names, none of which can be imported."""
    folder = tmp_path / "my project"
    for package in ("shards", "pipeline"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    for module in ("model", "random", "rank"):
        (folder / f"{module}.py").write_text("raise SystemExit('the wrong one')\n")
    return folder


def environment() -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if name not in ("RANK", "OMP_NUM_THREADS")}
    return given | {"PYTHONPATH": str(CHECKOUT)}


def test_a_run_that_is_stopped_and_resumed(shards: Path, mine: Path, maskfeat: list[str], tmp_path: Path) -> None:
    """On two processes, and then on one, from a folder with modules of our names."""
    run = tmp_path / "run"
    settings = ["pretrain", "demo", *SMALL, f"data.shards={shards}", f"run.dir={run}"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [*maskfeat, *settings, "--processes", "2"], cwd=mine, env=environment(), stdout=said, stderr=said
        )
        deadline = time.monotonic() + 300
        while not (run / "metrics.jsonl").exists():
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 75
    text = (tmp_path / "said").read_text()
    assert "2 ranks x 1 x 8 images" in text and "ERROR" not in text
    reached = max(losses(run))
    assert (run / "checkpoints" / f"step-{reached:08d}").is_dir()

    again = [*maskfeat, *settings, "--processes", "1", f"run.max_steps={reached + 1}"]
    done = subprocess.run(again, cwd=mine, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "1 ranks x 1 x 16 images" in done.stdout and max(losses(run)) == reached + 1


def test_our_packages_are_those_beside_the_program(mine: Path) -> None:
    """Put the working directory in front, as DeepSpeed does for several nodes."""
    given = environment() | {"PYTHONPATH": f"{mine}{os.pathsep}{CHECKOUT}"}
    (mine / "random.py").unlink()  # which Python itself would import
    command = [sys.executable, rank.__file__, "export"]
    done = subprocess.run(command, cwd=mine, env=given, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("maskfeat export: error: the following arguments"), done


class Became(Exception):
    """Raised in the place of the process that would have been replaced."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Record the processes to be started on a machine of four cores without a GPU."""
    found: dict[str, Any] = {}

    def become(arguments: list[str], given: dict[str, str]) -> None:
        found.update(command=arguments, environment=given)
        raise Became

    def wait(command: list[str], given: dict[str, str], name: str, hosts: Any) -> int:
        found.update(command=command, environment=given, hosts=hosts)
        return 0

    monkeypatch.setattr(launch, "_become", become)
    monkeypatch.setattr(launch, "_check_usage", lambda command, arguments: 0)
    monkeypatch.setattr(launch, "_await", wait)
    monkeypatch.setattr(launch, "cores", lambda: 4)
    monkeypatch.setattr(launch, "gpus", lambda: [])
    for name in ("RANK", "OMP_NUM_THREADS", "DS_ACCELERATOR", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    return found


def world(command: list[str]) -> Any:
    """The processes that a launcher of one node is asked for."""
    (encoded,) = [word.partition("=")[2] for word in command if word.startswith("--world_info=")]
    return json.loads(base64.urlsafe_b64decode(encoded + "=="))["localhost"]


@pytest.mark.parametrize(
    ("arguments", "processes", "threads"),
    [
        (["demo"], 4, "1"),
        (["demo", "optim.batch_size=30"], 2, "2"),
        (["demo", "--processes", "2"], 2, "2"),
        (["--processes=2", "demo"], 2, "2"),
        (["demo", "data.repeats=16"], 4, "1"),
        (["demo", "data.repeats=32"], 2, "2"),
    ],
)
def test_processes_share_out_the_cores(
    arguments: list[str], processes: int, threads: str, started: dict[str, Any]
) -> None:
    assert launch.start("pretrain", [*arguments, "data.shards=s"]) == 0
    assert world(started["command"]) == [*range(processes)]
    assert started["environment"]["OMP_NUM_THREADS"] == threads and started["environment"]["DS_ACCELERATOR"] == "cpu"
    at = started["command"].index(rank.__file__)
    given = [word for word in arguments if not word.startswith("--") and word != "2"]
    assert started["command"][at:] == [rank.__file__, "pretrain", *given, "data.shards=s"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["probe", "RUN", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["probe", "RUN/none", "data.shards=s", "data.validation=v"], "none is neither a run.dir, nor weights"),
        (["validate", "RUN/none"], "none is not a run: it does not have a config.yaml"),
        (["validate", "RUN", "data.flip=maybe"], "data.flip=maybe: "),
        (["words", "s", "RUN/words", "--words", "1"], "--words must be from 2 to 65,536"),
        (["words", "s", "RUN/words", "target.kind=pixels"], "target.kind=pixels has no effect here"),
        (["words", "s", "RUN/words", "data.flip=maybe"], "data.flip=maybe: "),
        (["doctor", "demo", "data.shards=s", "optim.lr=fast"], "optim.lr=fast: "),
        (["doctor", "demo", "--finetune", "data.shards=s"], "no recipe 'demo': give one of "),
    ],
)
def test_wrong_usage_is_refused_before_processes_start(
    arguments: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe("none", tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(recipe.plain()))
    monkeypatch.setattr(launch, "_await", lambda *given: pytest.fail("processes were started"))
    monkeypatch.delenv("RANK", raising=False)
    command, *rest = (word.replace("RUN", str(tmp_path)) for word in arguments)
    assert launch.start(command, [*rest, "--processes", "2"]) == 2
    errors = capfd.readouterr().err
    assert why in errors and errors.count("\n") == 1, errors


def test_the_doctor_is_started_like_the_run(started: dict[str, Any]) -> None:
    """Find the recipe behind other options."""
    assert launch.start("doctor", ["--samples", "8", "demo", "optim.batch_size=30", "data.shards=s"]) == 0
    assert world(started["command"]) == [0, 1]


@pytest.mark.parametrize("arguments", [["demo", "optim.batch_size=7"], ["no_such"], [], ["demo", "--processes", "1"]])
def test_one_process_is_the_program_itself(arguments: list[str], started: dict[str, Any]) -> None:
    with pytest.raises(Became):
        launch.start("pretrain", arguments)
    assert started["environment"]["OMP_NUM_THREADS"] == "4"


def test_a_process_of_a_launcher_starts_no_other(started: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(Became):
        launch.start("pretrain", ["demo"])
    assert started["command"] == ["pretrain", "demo"] and "OMP_NUM_THREADS" not in started["environment"]


def test_gpus_are_used_by_their_own_names(started: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "gpus", lambda: ["2", "3", "GPU-5"])
    assert launch.start("pretrain", ["vit_base_300e"]) == 0  # three do not share out 2048
    assert world(started["command"]) == ["2", "3"] and "DS_ACCELERATOR" not in started["environment"]
    assert launch.start("probe", ["runs/a"]) == 0
    assert world(started["command"]) == ["2", "3", "GPU-5"]
    with pytest.raises(Became):
        launch.start("pretrain", ["demo", "--gpus", "1"])
    assert started["environment"]["CUDA_VISIBLE_DEVICES"] == "2"
    assert launch.start("pretrain", ["demo", "--gpus", "0"]) == 0
    assert started["environment"]["DS_ACCELERATOR"] == "cpu"


def test_nodes_are_started_by_deepspeed(started: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("node1 slots=8\nnode2 slots=8\n")
    nodes = ["--hostfile", str(tmp_path / "hosts")]
    assert launch.start("pretrain", [*nodes, "demo", f"run.dir={tmp_path}/run"]) == 0
    words = started["command"]
    assert words[words.index("--hostfile") + 1] == nodes[1] and len(started["hosts"]) == 2
    assert words[words.index(rank.__file__) :] == [rank.__file__, "pretrain", "demo", f"run.dir={tmp_path}/run"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--gpus", "2"], "--gpus 2: this machine has 0: give fewer"),
        (["--gpus", "-1"], "--gpus -1 is not a number"),
        (["--processes", "0"], "--processes 0 is not a number above 0"),
        (["--gpus", "2", "--processes", "2"], "--gpus has a process for each GPU"),
        (["--hostfile", "hosts"], "--hostfile needs run.dir=RUN"),
        (["--hostfile", "no such", "run.dir=a"], "--hostfile no such"),
        (["--hostfile", "hosts", "--gpus", "2"], "--hostfile has the GPUs of each node as its slots"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], why: str, started: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        launch.start("pretrain", ["demo", *arguments])
    errors = capsys.readouterr().err
    assert end.value.code == 2 and not started
    assert errors.startswith(f"maskfeat pretrain: error: {why}") and errors.count("\n") == 1


@pytest.fixture
def handlers() -> Iterator[None]:
    """Signals of this process, put back after the test."""
    numbers = (*launch.STOP, signal.SIGCHLD)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in the background
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("ended", "status"), [(0, 0), (1, 1), (2, 2), (75, 75), (247, 1), (137, 1)])
def test_the_status_of_the_processes_is_passed_on(
    ended: int, status: int, handlers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = [sys.executable, "-c", f"import sys; sys.exit({ended})"]
    assert launch._await(launcher, dict(os.environ), "pretrain", None) == status
    assert ("SIGKILL" in capsys.readouterr().err) == (ended == 247)


CHILD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
open(sys.argv[1], "w").close()
try:
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(75)
"""


@pytest.mark.parametrize(("command", "status"), [("pretrain", 75), ("probe", 128 + signal.SIGINT)])
def test_a_signal_reaches_the_processes_and_not_their_launcher(
    command: str, status: int, handlers: None, tmp_path: Path
) -> None:
    """The launcher would die of it with status -2, and leave no word."""
    (tmp_path / "child.py").write_text(CHILD)
    code = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))"
    launcher = [sys.executable, "-c", code, str(tmp_path / "child.py"), str(tmp_path / "began")]

    def interrupt() -> None:
        while not (tmp_path / "began").exists():
            time.sleep(0.05)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    begin = time.monotonic()
    assert launch._await(launcher, dict(os.environ), command, None) == status
    thread.join()
    assert time.monotonic() - begin < 50


def test_an_interrupt_while_modules_are_imported_prints_no_traceback() -> None:
    code = (
        "import importlib, runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "importlib.import_module = lambda name: signal.raise_signal(signal.SIGINT)\n"
        "runpy.run_path(sys.argv[1], run_name='__main__')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, launch.rank.__file__], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, b"")


@pytest.mark.parametrize("program", ["maskfeat", "maskfeat_shards"])
def test_an_interrupt_while_a_program_is_imported_prints_no_traceback(program: str) -> None:
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pipeline.console import entry\n"
        "entry.import_module = lambda name: signal.raise_signal(signal.SIGINT)\n"
        "getattr(entry, sys.argv[1])()\n"
    )
    command = [sys.executable, "-c", code, program]
    ended = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, b"")


@pytest.mark.parametrize("command", ["export", "predict", "report", "estimate"])
def test_an_interrupted_command_prints_no_traceback(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One process runs these, without `rank.py`."""

    def interrupted() -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "import_module", lambda name: SimpleNamespace(main=interrupted))
    monkeypatch.setattr(sys, "argv", ["maskfeat", command, "x"])
    with pytest.raises(SystemExit) as end:
        console.main()
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [["pipeline.console", "pretrain", "--list"], ["pipeline.console", "--version"], ["pipeline.cli", "--version"]],
)
def test_a_reader_that_has_enough_gets_no_traceback(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", *arguments]
    ended = subprocess.run(command, cwd=CHECKOUT, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, b"")
