"""Any ZeRO stage, number of ranks and accumulation takes the same steps, and goes on from any other's checkpoint.

A part of the matrix of tests/faults/elastic.py: every layout of one and two ranks saves, and resumes.
"""

import sys
from pathlib import Path

import pytest
from launching import losses

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
import elastic
from elastic import TOLERANCE, Case, Layout

STAGES = (0, 1, 2, 3)
ALONE: list[Case] = [((ranks, stage),) for ranks in (1, 2) for stage in STAGES]
SAME: list[Case] = [((2, stage), (2, stage)) for stage in STAGES]  # for one rank see test_loop.py
OTHER: list[Case] = [
    *(((1, stage), (2, (stage + 1) % 4)) for stage in STAGES),
    *(((2, stage), (1, (stage + 2) % 4)) for stage in STAGES),
]


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("elastic")
    elastic.run(shards, out, ALONE)
    elastic.run(shards, out, SAME + OTHER)
    return out


def test_layouts_agree(runs: Path) -> None:
    reference: Layout = (1, 1)
    losses_of_it = losses(elastic.folder_of(runs, (reference,)))
    assert losses_of_it[1] - losses_of_it[elastic.END] > 0.005  # it learns, so the comparison means something
    assert {case: elastic.difference(runs, case, (reference,)) for case in ALONE} == pytest.approx(
        dict.fromkeys(ALONE, 0), abs=TOLERANCE
    )


@pytest.mark.parametrize("case", SAME + OTHER, ids=str)
def test_a_run_goes_on_in_any_layout(runs: Path, case: Case) -> None:
    assert elastic.difference(runs, case, case[:1]) <= (0 if case in SAME else TOLERANCE)


@pytest.mark.parametrize("case", ALONE + SAME + OTHER, ids=str)
def test_ranks_share_the_plans_batches(shards: Path, runs: Path, case: Case) -> None:
    assert elastic.samples_are_the_plans(shards, runs, case)
