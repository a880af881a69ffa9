"""The number of processes of a machine for a batch."""

import pytest

from pipeline.console.machine import MOST_PROCESSES, batch_of, cpu_processes, gpu_processes


@pytest.mark.parametrize(
    ("cores", "batch", "unit", "processes"),
    [
        (1, 64, 1, 1),
        (2, 64, 1, 2),
        (4, 64, 1, 4),
        (3, 64, 1, 1),  # three threads of one process, instead of one thread of two each
        (12, 64, 1, 4),  # three threads each; of eight processes, four cores would be idle
        (64, 4096, 1, 8),
        (2, 63, 1, 1),
        (4, 64, 32, 2),  # the views of a sample stay on one process
        (6, 0, 1, 6),  # no batch
        (8, 1, 1, 1),
    ],
)
def test_processes_of_a_cpu(cores: int, batch: int, unit: int, processes: int) -> None:
    assert cpu_processes(cores, batch, unit) == processes <= MOST_PROCESSES


@pytest.mark.parametrize(
    ("gpus", "batch", "unit", "used"), [(8, 2048, 1, 8), (3, 64, 1, 2), (7, 64, 1, 4), (5, 1, 1, 1), (8, 16, 4, 4)]
)
def test_processes_of_gpus(gpus: int, batch: int, unit: int, used: int) -> None:
    assert gpu_processes(gpus, batch, unit) == used


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optim": {"batch_size": "64"}}, (64, 1)),
        ({"optim": {"batch_size": "64"}, "data": {"repeats": "2"}, "mask": {"repeats": 4}}, (64, 8)),
        ({"optim": {"batch_size": "many"}}, (1, 1)),
        ({"optim": {"batch_size": "-64"}}, (1, 1)),
        ({}, (1, 1)),
    ],
)
def test_the_batch_of_settings(settings: dict[str, dict[str, object]], expected: tuple[int, int]) -> None:
    assert batch_of(settings) == expected
