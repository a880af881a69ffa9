"""No file of a run, and nothing that it says, holds a secret of its recipe; runs of before there were masks go on."""

import json
import re
from pathlib import Path

import pytest
import yaml
from launching import pretrain, small_recipe
from making_streams import grey, write_tar
from scripting import run_script

from pipeline.card import quoted
from pipeline.checkpoints.checkpoint import FILES, STATE, newest, seal
from pipeline.cluster.preflight import agreement, exchange
from pipeline.cluster.world import join

STREAM = ("data.mode=stream", "data.stream_samples=16", "data.stream_buffer=4", "run.save_every=1")


def command(tar: Path, secret: str) -> str:
    """A command with a secret in an option, in a header, in a URL and in a query."""
    options = (
        f'-u bob:{secret} -H "Authorization: Bearer {secret}" https://bob:{secret}@h/?sig={secret} ?api_key={secret}'
    )
    return f"pipe:cat {tar}; true {options}"


def holding(folder: Path, secret: str) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    write_tar(tmp_path / "0.tar", {f"image{n}": grey(n) for n in range(8)})
    return tmp_path / "0.tar"


def train(run: Path, shards: str, steps: int) -> None:
    pretrain("unused", run, *STREAM, f"data.shards={shards}", f"run.max_steps={steps}")


def test_no_file_of_a_run_or_of_its_export_holds_a_secret(
    tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And a run goes on with another token, in a file that an older version wrote, too."""
    run = tmp_path / "run"
    train(run, command(tar, "SEKRET1"), 1)
    shown = yaml.safe_load((run / "config.yaml").read_text())["data"]["shards"]
    assert shown == f"pipe:cat {tar}; true -u *** -H *** https://***@h/?sig=*** ?api_key=***"

    # As the last version would have written it
    checkpoint = run / "checkpoints" / "step-00000001"
    state = json.loads((checkpoint / STATE).read_text())
    state["identity"]["data.shards (URLs)"] = state["recipe"]["data"]["shards"] = command(tar, "SEKRET0")
    (checkpoint / STATE).write_text(json.dumps(state))
    seals = json.loads((checkpoint / FILES).read_text()) | {STATE: seal(checkpoint / STATE)}
    (checkpoint / FILES).write_text(json.dumps(seals))
    assert holding(run, "SEKRET0") == [checkpoint / STATE]
    assert run_script(monkeypatch, "export.py", run, tmp_path / "old") == 0
    (identity,) = re.findall(r"```yaml\n(.*?)```", (tmp_path / "old" / "README.md").read_text(), re.DOTALL)
    assert yaml.safe_load(identity)["data.shards (URLs)"] == shown

    train(run, command(tar, "SEKRET2"), 2)  # a token that has been renewed
    found = newest(run / "checkpoints", report=pytest.fail)
    assert found and found.facts.step == 2 and found.facts.identity["data.shards (URLs)"] == shown
    assert run_script(monkeypatch, "export.py", run, tmp_path / "out") == 0
    said = "".join(capfd.readouterr())
    assert "step 2/2" in said and "SEKRET" not in said
    assert not [file for folder in ("out", "old") for file in holding(tmp_path / folder, "SEKRET")]
    assert holding(run, "SEKRET") == [checkpoint / STATE]


def test_ranks_compare_and_show_recipes_without_secrets(tmp_path: Path) -> None:
    recipe = small_recipe("unused", tmp_path, *STREAM, "data.shards=pipe:get --token SEKRET")
    claims = exchange(recipe, {}, join())
    other = [type(claims[0])(**(vars(claims[0]) | {"recipe": claims[0].recipe | {"run.seed": 1}}))]
    assert "SEKRET" not in str(agreement(claims + other))
    assert claims[0].recipe["data.shards"] == "pipe:get --token ***"


def test_the_card_quotes_what_cannot_end_its_block_of_code() -> None:
    told = quoted({"data.shards (URLs)": "a\n```\n# Title", "run.seed": 0, "optim.betas": [0.9, 0.999]})
    assert "```" not in told
    assert yaml.safe_load(told) == {"data.shards (URLs)": "a\n~~~\n# Title", "run.seed": 0, "optim.betas": [0.9, 0.999]}
