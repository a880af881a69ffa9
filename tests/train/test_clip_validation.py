"""Validation on clips: the loss of copying, pictures, and an animation."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import free_port, pretrain
from making_videos import encoded, film
from PIL import Image
from ranks import Ranks
from scripting import run_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.layout import Layout, make_mask
from pipeline.build import build_model
from pipeline.checkpoints.checkpoint import chosen
from pipeline.cluster.world import join
from pipeline.config import load_recipe
from pipeline.measure import measure
from pipeline.pretrain.copying import copied
from pipeline.pretrain.picture import draw
from pipeline.report.monitor import open_monitor
from pipeline.report.progress import Schedule
from pipeline.settings import ConfigError
from pipeline.targets.registry import build_target
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions
from shards.build import build


def one_by_one(targets: torch.Tensor, hidden: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """The definition, in loops: hidden is bool (B, frames, rows, columns)."""
    outputs = []
    for clip, time, row, column in hidden.nonzero().tolist():
        seen = [frame for frame in range(hidden.shape[1]) if not hidden[clip, frame, row, column]]
        nearest = min(seen, key=lambda frame: abs(frame - time), default=None)
        outputs.append(otherwise if nearest is None else targets[clip, nearest, row, column])
    return torch.stack(outputs)


@pytest.mark.parametrize("times", [(1, 1, 1), (2, 3, 1), (1, 2, 2)])
def test_copies_are_of_the_nearest_visible_frame(times: tuple[int, int, int]) -> None:
    """Also where masks are drawn on a coarser grid than that of the predictions."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(5, 4, 2, 3, generator=generator) < 0.6
    coarse[0, :, 0, 0] = True  # hidden for good
    coarse[0, :, 1, 1] = torch.tensor([False, True, True, True])
    hidden = coarse
    for dimension, factor in enumerate(times, start=1):
        hidden = hidden.repeat_interleave(factor, dimension)
    layout = Layout(*hidden.shape[1:])
    targets = torch.randn(*hidden.shape, 3, generator=generator)
    otherwise = torch.tensor([7.0, 8.0, 9.0])
    outputs = copied(targets, make_mask(coarse, layout), layout, otherwise)
    assert torch.equal(outputs, one_by_one(targets, hidden, otherwise))
    assert (outputs == otherwise).all(1).sum() >= layout.frames * times[1] * times[2]


PREDICTIONS = Predictions(Layout(3, 2, 2), (2, 16, 16))


def test_the_picture_of_clips_has_a_row_of_frames_for_each_panel() -> None:
    """Pixels are painted as they are, so a perfect prediction looks like the clip where that is hidden."""
    clips = torch.randint(0, 256, (2, 3, 6, 32, 32), dtype=torch.uint8)
    target = build_target(TargetSettings(kind="pixels"), PREDICTIONS, Computing(torch.float32, clips.device))
    cells = torch.zeros(2, 3, 2, 2, dtype=torch.bool)
    cells[:, 1] = True
    frames = clips[:, :, ::2].transpose(1, 2).flatten(0, 1)
    everything = target.describe(frames, make_mask(torch.ones(6, 2, 2, dtype=torch.bool), Layout(1, 2, 2)))
    truth = everything.view(2, 3, 2, 2, -1)
    pictures = draw(target, clips, cells, truth, truth[cells], PREDICTIONS)

    side, gap, title = 96, 6, 26  # a pixel is drawn as 3 x 3
    assert pictures.sheet.shape == (8 * (title + side), 3 * side + 2 * gap, 3)
    for clip in range(2):
        for time in range(3):
            expected = np.asarray(clips[clip, :, 2 * time].permute(1, 2, 0)).repeat(3, 0).repeat(3, 1).astype(int)
            seen, visible, described, predicted = (
                pictures.sheet[top : top + side, left : left + side].astype(int)
                for left in [time * (side + gap)]
                for top in [(4 * clip + row) * (title + side) + title for row in range(4)]
            )
            assert np.array_equal(seen, expected)
            assert np.array_equal(visible, np.full_like(expected, 110) if time == 1 else expected)
            assert np.abs(described - expected).max() <= 1
            assert np.abs(predicted - (expected if time == 1 else 0.3 * expected)).max() <= 1

    assert [frame.shape for frame in pictures.animation] == [(title + 2 * side + gap, 4 * side + 3 * gap, 3)] * 3
    second = pictures.animation[1][title : title + side, :side]
    assert np.array_equal(second, np.asarray(clips[0, :, 2].permute(1, 2, 0)).repeat(3, 0).repeat(3, 1))


def test_an_animation_is_kept_and_plays_in_tensorboard(tmp_path: Path) -> None:
    frames = [np.full((6, 4, 3), 80 * time, np.uint8) for time in range(3)]
    monitor = open_monitor(tmp_path, "a test", {"run": {}}, Schedule(0, 10, 16, 4))
    monitor.animation(5, "animation", frames)
    monitor.close()

    kept = (tmp_path / "pictures" / "step-00000005.gif").read_bytes()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    (shown,) = board.Images("animation")
    assert (shown.step, shown.width, shown.height, shown.encoded_image_string) == (5, 4, 6, kept)
    with Image.open(io.BytesIO(kept)) as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 3, 0)  # type: ignore[attr-defined]
        for time, frame in enumerate(frames):
            gif.seek(time)
            assert np.array_equal(np.asarray(gif.convert("RGB")), frame)


def test_what_does_not_fit_the_run_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, shards = tmp_path / "run", tmp_path / "shards"
    (tmp_path / "videos").mkdir()
    for seed in range(4):
        (tmp_path / "videos" / f"{seed}.mp4").write_bytes(encoded(film(12, seed=seed)))
    build(tmp_path / "videos", shards, workers=1)
    clips = ("data.image_size=64", "data.frames=4", "run.max_steps=1")
    pretrain(shards, run, *clips, f"data.validation={shards}")
    with pytest.raises(
        ConfigError, match=r"^target.kind=pixels has 768 numbers per patch, and the model .* predicts 108"
    ):
        measure(run, chosen(run, None), ["target.kind=pixels"], join())
    for option in ("--clips", "--crops"):
        ranks = Ranks(1, [str(run), option, "3"], tmp_path / "said", free_port(), "scripts/validate.py")
        assert ranks.wait(100) == [2]
        assert "error: --clips and --crops are for fine-tuned runs" in ranks.said()

    assert run_script(monkeypatch, "export.py", run, tmp_path / "out") == 0
    assert "| steps | 1 of 16 clips: 16 in all |" in (tmp_path / "out" / "README.md").read_text()


def test_an_image_size_that_a_mvit_does_not_halve_evenly_is_one_line() -> None:
    options = "model.options={embed_dim: 8, depth: 4, num_heads: 1, stages: [1, 3]}"
    family = ("model.name=mvit_v2", "model.position_init=random", options, "data.frames=4")
    build_model(load_recipe("demo_video", ["data.shards=x", *family, "data.image_size=40"]))
    with pytest.raises(ConfigError, match=r"^data\.image_size=36 is not a multiple of the 8-pixel patch of mvit_v2$"):
        build_model(load_recipe("demo_video", ["data.shards=x", *family, "data.image_size=36"]))
