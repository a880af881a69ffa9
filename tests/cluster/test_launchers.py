"""The names in which a launcher tells a process its place."""

import sys

import pytest

from pipeline.cluster.launchers import place, slurm_place
from pipeline.config import Recipe
from pipeline.pretrain.task import Pretraining
from pipeline.train.command import train

STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "gpu[003-004,17]",
    "SLURM_STEP_NUM_TASKS": "20",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2),4",
    "SLURM_PROCID": "17",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
}


def test_a_slurm_task_knows_its_place() -> None:
    assert slurm_place(STEP) == {
        "RANK": "17",
        "WORLD_SIZE": "20",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu003",
        "MASTER_PORT": str(20000 + 1234 * 7 + 2),
    }


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 0)),
        (STEP, (17, 1)),
        ({"RANK": "5", "LOCAL_RANK": "2"}, (5, 2)),
        (STEP | {"RANK": "5", "LOCAL_RANK": "0"}, (5, 0)),
    ],
)
def test_the_place_is_known_before_joining(environment: dict[str, str], expected: tuple[int, int]) -> None:
    assert place(environment) == expected


@pytest.mark.parametrize(("task", "lines"), [("0", 1), ("1", 0)])
def test_a_recipe_error_is_told_once_a_node(
    task: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", task)
    monkeypatch.setenv("SLURM_LOCALID", task)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "no_such_recipe"])
    assert train("", Recipe, Pretraining) == 2
    assert capsys.readouterr().err.count("error: no recipe 'no_such_recipe'") == lines


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("a1,b[2-3]", "a1"),
        ("rack1-[09-12]", "rack1-09"),
        ("n[1,3]-ib", "n1-ib"),
        ("host.example.org", "host.example.org"),
    ],
)
def test_rank_0_is_on_the_first_node(nodes: str, first: str) -> None:
    assert slurm_place(STEP | {"SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first


def test_an_address_that_is_given_is_kept() -> None:
    place = slurm_place(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert (place["MASTER_ADDR"], place["MASTER_PORT"]) == ("10.0.0.1", "29500")


@pytest.mark.parametrize(("node", "tasks"), [("0", "8"), ("1", "8"), ("2", "4")])
def test_ranks_of_a_node_are_counted(node: str, tasks: str) -> None:
    assert slurm_place(STEP | {"SLURM_NODEID": node})["LOCAL_WORLD_SIZE"] == tasks
