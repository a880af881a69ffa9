"""Ranks that differ: the messages about them, and real processes on two nodes, which are namespaces, that find them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from launching import CHECKOUT, SMALL, free_port, small_recipe

from pipeline.cluster.findings import Finding, Verdict
from pipeline.cluster.preflight import Claims, agreement, check
from pipeline.cluster.world import join
from pipeline.settings import ConfigError
from shards.build import build

OK, WARNING, PROBLEM = Verdict

CLAIMS = [
    Claims(
        f"n{1 + rank // 2}",
        {"this project": "0123", "torch": "2.15", "deepspeed": "0.19.8", "timm": "1.0.31"},
        {"run.dir": "/runs/a", "optim.lr": 0.002, "model.options": {"depth": 2}},
        {"data.shards": "abcd"},
        "",
    )
    for rank in range(6)
]


def finding_of(check: str, claims: Sequence[Claims]) -> Finding:
    return next(finding for finding in agreement(claims) if finding.check == check)


def test_ranks_that_agree_are_well() -> None:
    findings = agreement(CLAIMS)
    assert [finding.check for finding in findings] == ["versions", "recipe", "inputs", "run.dir"]
    assert all(finding.verdict is OK and not finding.remedy for finding in findings)
    assert findings[0].results == {
        "ranks 0-5 (3 nodes)": "this project 0123, torch 2.15, deepspeed 0.19.8, timm 1.0.31"
    }


@pytest.mark.parametrize(
    ("name", "verdict"), [("torch", PROBLEM), ("deepspeed", PROBLEM), ("this project", PROBLEM), ("timm", WARNING)]
)
def test_another_version_is_named_with_its_nodes(name: str, verdict: Verdict) -> None:
    other = replace(CLAIMS[0], host="n3", versions=CLAIMS[0].versions | {name: "9"})
    finding = finding_of("versions", [*CLAIMS[:4], other, other])
    assert finding.verdict is verdict
    assert finding.results == {
        "ranks 0-3 (2 nodes)": f"{name} {CLAIMS[0].versions[name]}",
        "ranks 4-5 (n3)": f"{name} 9",
    }
    assert finding.remedy == "install the same checkout and environment on every node"


def test_other_settings_and_inputs_are_named() -> None:
    other = replace(CLAIMS[1], recipe=CLAIMS[1].recipe | {"model.options": {"depth": 3}}, inputs={"data.shards": "ef"})
    claims = [CLAIMS[0], other, *CLAIMS[2:]]
    assert finding_of("recipe", claims).results == {
        "ranks 0, 2-5 (3 nodes)": 'model.options {"depth": 2}',
        "rank 1 (n1)": 'model.options {"depth": 3}',
    }
    assert str(finding_of("inputs", claims)) == (
        "inputs: ranks 0, 2-5 (3 nodes): data.shards abcd; rank 1 (n1): data.shards ef: "
        "let every node read the same files: shared ones, or whole copies of one build"
    )


def test_a_folder_that_is_not_shared_is_a_problem() -> None:
    finding = finding_of("run.dir", [*CLAIMS[:5], replace(CLAIMS[5], run_dir="does not see it")])
    assert finding.verdict is PROBLEM
    assert next(iter(finding.results.items())) == ("rank 5 (n3)", "does not see it")  # the worst comes first
    assert finding.remedy == "put run.dir=/runs/a on storage that every node mounts there and may write to"


def test_one_rank_is_compared_with_itself(shards: Path, tmp_path: Path) -> None:
    recipe = small_recipe(shards, tmp_path / "run")
    assert check(recipe, {"data.shards": "abcd"}, join()) == []
    assert not list(recipe.run.dir.iterdir())


def test_a_folder_that_cannot_be_written_ends_the_run(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    recipe = small_recipe(shards, tmp_path / "file" / "run")
    with pytest.raises(
        ConfigError, match=r"run\.dir: rank 0 \(.*\): cannot be written: Not a directory: put run\.dir="
    ):
        check(recipe, {}, join())


# The questions of pretrain.py at its start, and then of the doctor
CHECK_AND_EXAMINE = """
import runpy, sys
from pipeline.config import load_recipe
from pipeline.settings import ConfigError
from pipeline.cluster.preflight import check
from pipeline.cluster.world import join
from shards.manifest import Manifest
recipe = load_recipe("demo", [argument for argument in sys.argv[2:] if not argument.startswith("--")])
try:
    check(recipe, {"data.shards": Manifest.load(recipe.data.shards).identity}, join())
except ConfigError as error:
    print("refused:", error, file=sys.stderr)
runpy.run_path("scripts/doctor.py", run_name="__main__")
"""


def two_nodes(program: str, arguments: Sequence[Sequence[str]], alone: Path) -> list[tuple[int, str]]:
    """Run a program on nodes named n1 and n2, which share all files but those in the folder `alone`.

    Returns:
        Exit status and standard error of each.
    """
    unshare = ["unshare", "--uts", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("nodes need the right to make namespaces: run as root")
    environment = os.environ | {
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
    }
    environment |= {"MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    boot = ["hostname n1", f"hostname n2 && mount -t tmpfs none {alone}"]
    nodes = [
        subprocess.Popen(
            [*unshare, "sh", "-c", f'{boot[rank]} && exec "$@"', "sh", sys.executable, "-c", program, *arguments[rank]],
            cwd=CHECKOUT,
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        errors = [node.communicate(timeout=300)[1] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    return [(node.returncode, text) for node, text in zip(nodes, errors, strict=True)]


def test_nodes_that_differ_are_refused_and_the_doctor_measures_them(images: Path, shards: Path, tmp_path: Path) -> None:
    run, told, other = tmp_path / "run", tmp_path / "findings.json", tmp_path / "other"
    run.mkdir()
    build(images, other, samples_per_shard=45, workers=1)
    identities = [json.loads((folder / "dataset.json").read_text())["manifest_sha256"] for folder in (shards, other)]
    common = ["demo", *SMALL, f"run.dir={run}", "--samples=128", "--deadline=240", f"--json={told}"]
    outcomes = two_nodes(CHECK_AND_EXAMINE, [[*common, f"data.shards={folder}"] for folder in (shards, other)], run)

    assert [status for status, _ in outcomes] == [1, 1], outcomes
    for _, errors in outcomes:
        (refusal,) = (line for line in errors.splitlines() if line.startswith("refused:"))
        assert f"recipe: rank 0 (n1): data.shards {shards}; rank 1 (n2): data.shards {other}: start every" in refusal
        assert (
            f"inputs: rank 0 (n1): data.shards {identities[0]}; rank 1 (n2): data.shards {identities[1]}: " in refusal
        )
        assert "run.dir: rank 1 (n2): does not see the file that rank 0 wrote there; rank 0 (n1): " in refusal
        assert "versions" not in refusal

    findings = {finding["check"]: finding for finding in json.loads(told.read_text())}
    problems = {name for name, finding in findings.items() if finding["verdict"] == "problem"}
    assert problems == {"recipe", "inputs", "run.dir"}
    assert findings["recipe"]["results"] == {
        "rank 0 (n1)": f"data.shards {shards}",
        "rank 1 (n2)": f"data.shards {other}",
    }
    assert not list(run.iterdir())
    for measured, unit in (("storage", "images/s"), ("decoding", "images/s"), ("all-reduce", "MB")):
        for result in findings[measured]["results"].values():
            number, found_unit = result.split()[:2]
            assert float(number.replace(",", "")) > 0 and found_unit.strip(",") == unit, findings[measured]
    # The two share one clock
    for result in findings["clocks"]["results"].values():
        ahead, bound = (float(part.split()[0]) for part in result.split("±"))
        assert abs(ahead) <= bound + 0.001
