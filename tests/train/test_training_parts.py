"""The parts of training by themselves: a step, numbers by name, evaluation, and reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import CHECKOUT, losses, pretrain, small_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from pipeline.build import build_model
from pipeline.cluster.world import World, join
from pipeline.files import Writing
from pipeline.report.board import Board
from pipeline.report.histogram import Histogram, histogram_of
from pipeline.report.monitor import Monitor
from pipeline.report.progress import Schedule
from pipeline.report.tensorboard import TensorBoard
from pipeline.train.engine import Engine
from pipeline.train.meter import Meter
from pipeline.train.setup import open_data

NUMBERS = {"grad_norm": 1.0, "lr": 1e-4, "images_per_second": 10.0, "data_wait": 0.5}


def test_the_benchmark_takes_the_step_of_a_run(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to the random numbers that a model draws for each micro-batch."""
    monkeypatch.syspath_prepend(str(CHECKOUT / "scripts"))
    from benchmarks.step import Loop

    options = ["model.options={embed_dim: 32, depth: 2, num_heads: 1, drop_path_rate: 0.5}", "run.max_steps=1"]
    recipe, world = small_recipe(shards, tmp_path, *options), join()
    pretrain(shards, tmp_path, *options)
    loop = Loop(recipe, world)
    loop.step((batch.inputs, batch.keys) for batch in open_data(recipe, world).batches(0, 1))
    assert float(loop.loss) == pytest.approx(losses(tmp_path)[1], rel=1e-6)
    another = Loop(small_recipe(shards, tmp_path, *options), world)
    another.step((batch.inputs, batch.keys.flip(0)) for batch in open_data(recipe, world).batches(0, 1))
    assert float(another.loss) != pytest.approx(losses(tmp_path)[1], rel=1e-6)  # it tells a difference


class TwoRanks(World):
    """A world whose other rank has passed `others` before."""

    others: Tensor

    def rows(self, values: Tensor) -> Tensor:
        return torch.stack([self.others, values])


def test_numbers_of_ranks_meet_under_their_names_in_whatever_order_they_came() -> None:
    class First(World):
        def rows(self, values: Tensor) -> Tensor:
            TwoRanks.others = values
            return values[None]

    cpu = torch.device("cpu")
    first, second = Meter(cpu), Meter(cpu)
    first.add(loss=torch.tensor(1.0), images=torch.tensor(4.0))
    first.add(loss=torch.tensor(2.0), images=torch.tensor(4.0))
    second.add(images=torch.tensor(8.0), loss=torch.tensor(5.0))
    alone = first.gather(First(0, 1, 0, 1, cpu), {"wait": 0.25, "bad": 1})
    assert alone.total == {"loss": 3.0, "images": 8.0, "wait": 0.25, "bad": 1.0}
    both = second.gather(TwoRanks(1, 2, 1, 2, cpu), {"bad": 2, "wait": 0.5})
    assert both.by_rank == {"loss": [3.0, 5.0], "images": [8.0, 8.0], "wait": [0.25, 0.5], "bad": [1.0, 2.0]}
    assert both.total == {"loss": 8.0, "images": 16.0, "wait": 0.75, "bad": 3.0}


def test_a_model_trains_on_after_an_evaluation_that_failed(tmp_path: Path) -> None:
    recipe = small_recipe("none", tmp_path)
    engine = Engine(build_model(recipe), recipe.engine, recipe.optim, recipe.micro_batch(1), join(), 3.0)
    with pytest.raises(ZeroDivisionError), engine.evaluating():
        assert not engine.deepspeed.module.training and not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert engine.deepspeed.module.training and torch.is_grad_enabled()


def test_each_validation_image_is_predicted_once(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This includes the loss and the picture."""
    predicted = []
    predict = Engine.predict

    def count(engine: Engine, images: Tensor, *rest: Any) -> Tensor:
        predicted.append((engine.deepspeed.module.training, len(images)))
        return predict(engine, images, *rest)

    monkeypatch.setattr(Engine, "predict", count)
    pretrain(shards, tmp_path, f"data.validation={shards}", "run.max_steps=1")
    before_and_after = [(False, 16)] * 6
    assert predicted == [*before_and_after, (True, 16), *before_and_after]
    assert len(list((tmp_path / "pictures").iterdir())) == 2


@dataclass
class Noted:
    """A board that keeps what it is shown."""

    shown: list[Any] = field(default_factory=list)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.shown.append((step, dict(values)))

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        self.shown.append((step, [*histograms]))

    def image(self, step: int, name: str, pixels: Any) -> None:
        self.shown.append((step, name, pixels.shape))

    def animation(self, step: int, name: str, gif: bytes, size: tuple[int, int]) -> None:
        self.shown.append((step, name, gif[:6], size))

    def recipe(self, recipe: Mapping[str, Mapping[str, Any]]) -> None:
        self.shown.append(recipe)

    def flush(self) -> None:
        self.shown.append("flush")

    def close(self) -> None:
        self.shown.append("close")


def test_all_boards_are_shown_the_same(tmp_path: Path) -> None:
    boards: list[Board] = [Noted(), Noted()]
    recipe = small_recipe("none", tmp_path).plain()
    monitor = Monitor(tmp_path, "a test", recipe, Schedule(0, 10, 16, 4), boards, Writing())
    monitor.log(1, {"loss": 0.5} | NUMBERS)
    monitor.picture(1, "reconstruction", np.zeros((4, 6, 3), np.uint8))
    monitor.animation(1, "animation", [np.zeros((4, 6, 3), np.uint8)])
    histogram = histogram_of(torch.ones(2))
    assert histogram
    monitor.histograms(1, {"weights/a": histogram})
    monitor.baselines(1, {"zero": 0.25})
    monitor.flush()
    monitor.close()
    for board in boards:
        assert isinstance(board, Noted)
        assert board.shown == [
            recipe,
            (1, {"loss": 0.5, "failed_writes": 0, "epoch": 0.25, "samples_seen": 16} | NUMBERS),
            (1, "reconstruction", (4, 6, 3)),
            (1, "animation", b"GIF89a", (4, 6)),
            (1, ["weights/a"]),
            (1, {"baseline/zero": 0.25}),
            "flush",
            "close",
        ]


@pytest.mark.parametrize(("first", "shown"), [(None, [1, 5, 3]), (3, [1, 3])])
def test_tensorboard_hides_what_a_later_life_does_again(tmp_path: Path, first: int | None, shown: list[int]) -> None:
    """A run that resumes repeats steps; a probe of an older checkpoint does not."""
    for step in (1, 5):
        TensorBoard(tmp_path, Writing()).scalars(step, {"loss": 0.5})
    board = TensorBoard(tmp_path, Writing(), first=first)
    board.scalars(3, {"loss": 0.5})
    board.close()
    assert [point.step for point in EventAccumulator(str(tmp_path)).Reload().Scalars("loss")] == shown
