"""A rank that is really slow is named, and has no other effect."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launching import assert_same_weights, last_checkpoint, launch, losses, start
from ranks import Ranks

STOPPED, RUNNING = 0.05, 0.005  # seconds, by turns


@contextmanager
def slowed(ranks: Ranks, rank: int) -> Iterator[None]:
    """The rank is stopped most of the time, again and again."""
    over = threading.Event()

    def pulse() -> None:
        while not over.wait(RUNNING):
            ranks.signal(rank, signal.SIGSTOP)
            over.wait(STOPPED)
            ranks.signal(rank, signal.SIGCONT)

    thread = threading.Thread(target=pulse)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)


def test_a_slow_rank_is_named_and_changes_nothing(shards: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    options = ["run.log_every=4", "optim.epochs=20000"]
    ranks = start(shards, run, *options)
    ranks.until(lambda: "step 4/" in ranks.said())
    before = len(ranks.logs[0].read_text())  # on a machine that has other work, any rank may be slow
    with slowed(ranks, 1):
        ranks.until(lambda: "note: rank 1 takes" in ranks.said(), 240)
    ranks.signal(1, signal.SIGTERM)
    assert ranks.wait(60) == [75, 75], ranks.said()
    assert "rank 0 takes" not in ranks.logs[0].read_text()[before:]

    launch(shards, whole, *options, f"run.max_steps={last_checkpoint(run).facts.step}")
    assert_same_weights(run, whole)
    assert losses(run) == losses(whole)
