"""The estimate of a run's remaining time, and the last lines of a complete run."""

from pathlib import Path

import pytest

from pipeline.report import progress
from pipeline.report.progress import Progress, Schedule, duration
from pipeline.report.result import next_commands, result


def test_the_time_left_is_measured_from_the_first_logged_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it models are compiled."""
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    told = Progress(Schedule(100, 200, 16, 40))
    now += 500
    assert told.seconds_left(120) is None
    now += 10
    assert told.seconds_left(125) == pytest.approx(75 * 2)
    now += 40
    assert told.seconds_left(170) == pytest.approx(30 * 1)
    assert told.seconds_left(200) is None
    assert told.seconds == 550
    assert told.numbers(120, None) == {"epoch": 3, "samples_seen": 1920}
    assert told.numbers(120, 5400)["hours_left"] == 1.5


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (3600 - 31, "59 min"),
        (3600 - 29, "1 h 00 min"),
        (7380, "2 h 03 min"),
        (86400 - 20, "1 d 00 h"),
        (200_000, "2 d 07 h"),
    ],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_a_complete_run_says_what_it_has_come_to() -> None:
    metrics = {"loss": 0.05, "val_loss": 0.046, "probe_knn": 0.25, "lr": 1.0}
    baselines = {"mean": 0.0517, "zero": 0.1111}
    assert result(Schedule(400, 8000, 32, 400), 7380, metrics, baselines, Path("runs/a")) == [
        "complete: 8,000 steps, 20 epochs, 256,000 samples, 2 h 03 min since step 400",
        "training loss 0.0500",
        "validation loss 0.0460; predicting zero 0.1111; predicting the training set's mean target 0.0517",
        "accuracy: k-NN probe 25.0%",
        "checkpoint: runs/a/checkpoints/step-00008000",
    ]
    both = metrics | {"val_images_loss": 0.03}
    *_, of_images, _, _ = result(
        Schedule(0, 10, 16, 4), 5, both, baselines | {"images_mean": 0.04, "images_zero": 0.1}, Path("a")
    )
    assert of_images == (
        "validation loss of images 0.0300; predicting zero 0.1000; predicting the training set's mean target 0.0400"
    )
    first, *_ = result(Schedule(0, 10, 16, 4), 5, {}, {}, Path("runs/a"))
    assert first == "complete: 10 steps, 2.5 epochs, 160 samples, 5 s"


def test_commands_can_be_typed_as_they_are_told() -> None:
    assert next_commands(Path("my runs/a"), ["maskfeat export 'my runs/a' weights/a"]) == [
        "next: maskfeat export 'my runs/a' weights/a",
        "next: tensorboard --logdir 'my runs/a'",
    ]
