"""The shell scripts in a checkout whose path has a space, with other programs in place of those that they call."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launching import CHECKOUT

from pipeline.config import load, load_recipe
from pipeline.finetune.config import FinetuneRecipe

SCRIPTS = sorted([*(CHECKOUT / "scripts").glob("*.sh"), CHECKOUT / "scripts" / "launch" / "pretrain.sbatch"])
ODD = "a b; touch proof $(touch proof) *"  # for a folder

# Writes down what it was called with, and does what $DO says
STAND_IN = f"""#!{sys.executable} -S
import json, os, sys
name = os.path.basename(sys.argv[0])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if sys.argv[1:2] == ["-c"]:
    print(os.environ["GPUS"])
elif name == "python":
    exec(os.environ.get("DO", ""))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout as far as the scripts look, and its .venv."""
    checkout = tmp_path / "my repo"
    shutil.copytree(CHECKOUT / "scripts", checkout / "scripts", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(CHECKOUT / name, checkout)
    binaries = checkout / ".venv" / "bin"
    binaries.mkdir(parents=True)
    installed = (checkout / "pyproject.toml").read_bytes() + (checkout / "constraints.txt").read_bytes()
    (checkout / ".venv" / "installed").write_text(hashlib.sha256(installed).hexdigest() + "\n")
    (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\n')
    for name in ("python", "maskfeat", "maskfeat-shards", "scontrol", "g++"):
        (binaries / name).write_text(STAND_IN)
        (binaries / name).chmod(0o755)
    return checkout


def start(checkout: Path, script: str, *arguments: str, do: str = "", gpus: int = 0) -> "subprocess.Popen[str]":
    """Start a script in the checkout; it is done with the real bash and coreutils, and all else by the stand-in."""
    environment = {
        "PATH": f"{checkout / '.venv' / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "PYTHON": sys.executable,
        "CALLS": str(checkout / "calls"),
        "SLURM_JOB_ID": "7",
        "DO": do,
        "GPUS": str(gpus),
    }
    command = ["bash", str(checkout / "scripts" / script), *arguments]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=checkout, env=environment, **pipes)


def calls(checkout: Path) -> list[list[str]]:
    file = checkout / "calls"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_mistake_ends_each_script(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    if script.name not in ("setup.sh", "demo_steps.sh"):  # which the others source
        lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
        assert lines[0] == "set -euo pipefail"


def test_the_demo_where_paths_have_spaces(checkout: Path) -> None:
    demo = start(checkout, "demo.sh", ODD)
    said, errors = demo.communicate(timeout=60)
    assert demo.returncode == 0, errors
    folder = str(checkout / ODD)
    assert [call for call in calls(checkout) if call[1] != "-c"] == [
        ["python", "scripts/demo_data.py", f"{folder}/images"],
        ["maskfeat-shards", "build", f"{folder}/images/train", f"{folder}/shards/train", "--samples-per-shard", "500"],
        ["maskfeat-shards", "build", f"{folder}/images/validation", f"{folder}/shards/validation"],
        [
            *("maskfeat", "pretrain", "demo", f"run.dir={folder}/run"),
            *(f"data.shards={folder}/shards/train", f"data.validation={folder}/shards/validation"),
        ],
        ["maskfeat", "export", f"{folder}/run", f"{folder}/weights"],
        ["maskfeat", "report", f"{folder}/run"],
    ]
    assert "reusing .venv" in said and not list(checkout.rglob("proof"))


def test_the_reproduction_where_paths_have_spaces(checkout: Path) -> None:
    for part in ("train", "test"):
        (checkout / ODD / part / "a class").mkdir(parents=True)
    reproduction = start(checkout, "reproduce_small.sh", ODD, "my results")
    _, errors = reproduction.communicate(timeout=60)
    assert reproduction.returncode == 0, errors
    out, made = checkout / "my results", calls(checkout)
    sets = [f"data.shards={out}/shards/train", f"data.validation={out}/shards/validation"]
    assert (out / "validation" / "a class" / "test").resolve() == checkout / ODD / "test" / "a class"
    for kind, options in {
        "hog": ["small", "optim.epochs=100"],
        "pixels": ["small", "target.kind=pixels", "optim.epochs=100"],
        "light": ["small_visible", "optim.epochs=260"],
        "local": ["small_visible", "model.decoder=local", "target.kind=hog_scales", "optim.epochs=190"],
    }.items():
        assert ["maskfeat", "pretrain", *options, f"run.dir={out}/pretrain/{kind}", *sets] in made
    blocks = ["--layer", *"012345", "--out", f"{out}/probe/hog"]
    assert ["maskfeat", "probe", f"{out}/pretrain/hog", *sets, *blocks] in made
    init = f"model.init={out}/weights/pixels"
    tuned = [
        f"run.dir={out}/finetune/pixels-1",
        "run.seed=1",
        init,
        *sets,
        "optim.epochs=20",
        "optim.warmup_epochs=2.0",
    ]
    assert ["maskfeat", "finetune", "small", *tuned] in made
    assert made[-1] == ["python", "scripts/compare.py", str(out)]
    assert not list(checkout.rglob("proof"))


@pytest.mark.parametrize(
    ("gpus", "epochs", "runs", "warm_up"),
    [
        (0, "5", {"hog": 5, "light": 13, "local": 9}, "0.5"),
        (0, "1", {"hog": 1, "light": 2, "local": 1}, "0.1"),
        (1, "20", {"hog": 20, "light": 20, "local": 20}, "2.0"),
        (1, None, {"hog": 200, "light": 200, "local": 200}, "20.0"),
    ],
)
def test_the_reproduction_at_any_length_on_any_machine(
    checkout: Path, gpus: int, epochs: str | None, runs: dict[str, int], warm_up: str
) -> None:
    """Each recipe that it composes is valid."""
    (checkout / "data" / "train" / "a").mkdir(parents=True)
    reproduction = start(checkout, "reproduce_small.sh", "data", "out", *([epochs, "1"] if epochs else []), gpus=gpus)
    _, errors = reproduction.communicate(timeout=60)
    assert reproduction.returncode == 0, errors
    made = calls(checkout)
    for kind, count in runs.items():
        (command,) = (
            call for call in made if call[1] == "pretrain" and f"run.dir={checkout}/out/pretrain/{kind}" in call
        )
        recipe = load_recipe(command[2], command[3:])
        assert recipe.optim.epochs == count and f"optim.warmup_epochs={warm_up}" in command
        assert recipe.data.image_size == (224 if gpus else 96)
    tuned = [load(FinetuneRecipe, call[2], call[3:]) for call in made if call[1] == "finetune"]
    assert {recipe.optim.epochs for recipe in tuned} == {100.0 if gpus else 1.0}
    layers = {len(call[call.index("--layer") + 1 : call.index("--out")]) for call in made if "--layer" in call}
    assert layers <= {12, 13} if gpus else layers <= {6, 7}


def test_the_reproduction_resumes_with_its_number_of_epochs(checkout: Path) -> None:
    (checkout / "data" / "train" / "a").mkdir(parents=True)
    assert start(checkout, "reproduce_small.sh", "data", "out", "30", "1").wait(60) == 0
    made = len(calls(checkout))
    other = start(checkout, "reproduce_small.sh", "data", "out")
    _, errors = other.communicate(timeout=60)
    assert other.returncode == 2 and [call[1] for call in calls(checkout)[made:]] == ["-c"]
    assert errors == f"error: {checkout}/out has results of 30 epochs: give this number of epochs, or another OUT\n"
    probes = checkout / "out" / "probe" / "light"
    probes.mkdir(parents=True)
    (probes / "step-1.json").touch()
    made = len(calls(checkout))
    assert start(checkout, "reproduce_small.sh", "data", "out", "30", "2").wait(60) == 0
    probed = [call[2] for call in calls(checkout)[made:] if call[1] == "probe"]
    assert probed == [f"{checkout}/out/pretrain/{kind}" for kind in ("hog", "pixels", "local", "hog")]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("demo.sh", ["a", "b"], "error: usage: scripts/demo.sh [FOLDER]"),
        ("demo.sh", ["--nonsense"], "error: usage: scripts/demo.sh [FOLDER]"),
        ("reproduce_small.sh", [], "error: usage: scripts/reproduce_small.sh DATA [OUT"),
        ("reproduce_small.sh", ["a", "b", "c"], "error: usage: scripts/reproduce_small.sh DATA [OUT"),
        ("reproduce_small.sh", ["a", "b", "10", "x"], "error: usage: scripts/reproduce_small.sh DATA [OUT"),
        ("reproduce_small.sh", ["a", "b", "10", "1", "1"], "error: usage: scripts/reproduce_small.sh DATA [OUT"),
        ("reproduce_small.sh", ["-x"], "error: usage: scripts/reproduce_small.sh DATA [OUT"),
        ("reproduce_small.sh", ["no where"], "error: there is no no where/train: DATA has to contain train/CLASS/*"),
    ],
)
def test_mistakes(checkout: Path, script: str, arguments: list[str], message: str) -> None:
    process = start(checkout, script, *arguments)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and not said
    assert errors.startswith(message) and errors.count("\n") == 1
    assert not calls(checkout)


@pytest.mark.parametrize("script", ["demo.sh", "reproduce_small.sh"])
def test_help(checkout: Path, script: str) -> None:
    process = start(checkout, script, "--help")
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors, calls(checkout)) == (0, "", [])
    assert f"  scripts/{script} " in said


@pytest.mark.parametrize(
    ("do", "status", "requeued"),
    [
        ("sys.exit(0)", 0, False),
        ("sys.exit(1)", 1, False),
        ("sys.exit(2)", 2, False),
        ("sys.exit(75)", 75, True),
        ("os.kill(os.getpid(), 9)", 137, False),  # which is no signal to the script
    ],
)
def test_the_batch_script_ends_as_the_supervisor_does(checkout: Path, do: str, status: int, requeued: bool) -> None:
    batch = start(checkout, "launch/pretrain.sbatch", "demo", f"run.dir={ODD}", do=do)
    _, errors = batch.communicate(timeout=60)
    assert batch.returncode == status, errors
    supervised, *rest = calls(checkout)
    assert supervised == [
        *("python", "scripts/launch/supervise.py", "--", "srun", "--kill-on-bad-exit=0", "--gpu-bind=none"),
        *("--cpus-per-task=1", "python", "-u", "scripts/pretrain.py", "demo", f"run.dir={ODD}"),
    ]
    assert rest == ([["scontrol", "requeue", "7"]] if requeued else [])


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_batch_script_passes_signals_on(checkout: Path, number: signal.Signals) -> None:
    """It does so twice, and waits for the process to which it passed them."""
    do = f"""
import signal, time
got = []
signal.signal({int(number)}, lambda *_: got.append(1))
open("ready", "w").close()
while len(got) < 2:
    time.sleep(0.01)
    if got: open("once", "w").close()
time.sleep(0.3)
sys.exit(75)
"""
    batch = start(checkout, "launch/pretrain.sbatch", "demo", do=do)
    for file in ("ready", "once"):
        deadline = time.monotonic() + 30
        while not (checkout / file).exists():
            assert batch.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(1)  # until its traps are set
        batch.send_signal(number)
    assert batch.wait(30) == 75
    assert calls(checkout)[-1] == ["scontrol", "requeue", "7"]


def test_the_batch_script_wants_the_checkout(checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    batch = start(checkout, "launch/pretrain.sbatch", "demo")
    _, errors = batch.communicate(timeout=60)
    assert batch.returncode == 2
    assert errors == (
        f"error: {checkout} has no .venv: submit this from the checkout, with the project installed in its .venv\n"
    )
