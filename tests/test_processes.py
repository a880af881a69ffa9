"""The tests that start processes are found, and no others."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import launching
import pytest
from processes import starts_processes


def directly() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def within() -> object:
    return [lambda: directly()]


def by_a_helper(shards: Path, run: Path) -> None:
    launching.launch(shards, run)


def without(shards: Path, run: Path) -> None:
    """Although it names the same module."""
    launching.pretrain(shards, run)


@pytest.mark.parametrize(
    ("function", "found"), [(directly, True), (within, True), (by_a_helper, True), (without, False), (print, False)]
)
def test_functions_that_start_processes_are_found(function: Callable[..., object], found: bool) -> None:
    assert starts_processes(function) == found


@pytest.fixture
def in_a_fixture() -> Callable[[], None]:
    return directly


def test_a_test_whose_fixture_starts_processes_is_slow(
    in_a_fixture: Callable[[], None], request: pytest.FixtureRequest
) -> None:
    assert request.node.get_closest_marker("slow")


def test_other_tests_are_not(request: pytest.FixtureRequest) -> None:
    assert not request.node.get_closest_marker("slow")
