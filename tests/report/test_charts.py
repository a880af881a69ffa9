"""The chart of each number of a run, and what TensorBoard reads of it."""

from pathlib import Path

import pytest
from launching import metrics, pretrain, small_recipe
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import plugin_data_pb2

from pipeline.files import Writing
from pipeline.report.charts import curve_of
from pipeline.report.tensorboard import FIRST, RESULTS, TensorBoard


@pytest.mark.parametrize(
    ("metric", "chart", "curve"),
    [
        ("loss", "loss", "training"),
        ("val_loss", "loss", "validation"),
        ("val_loss_ema", "loss", "average"),
        ("baseline/mean", "loss", "baseline-mean"),
        ("baseline/copy", "loss", "baseline-copy"),
        ("val_images_loss", "loss", "validation-images"),
        ("baseline/images_mean", "loss", "baseline-mean-images"),
        ("loss/video", "loss", "training-video"),
        ("val_top1", "metrics/top1", "validation"),
        ("val_top5_ema", "metrics/top5", "average"),
        ("baseline/mean_top1", "metrics/top1", "baseline-mean"),
        ("probe_knn", "probes/knn", "validation"),
        ("baseline/probe_knn", "probes/knn", "baseline-untrained"),
        ("val_bad_samples", "reading/bad_samples", "validation"),
        ("bad_samples/photos", "reading/bad_samples/photos", "training"),
        ("images_per_second", "speed/images_per_second", "training"),
        ("data/cache_hits", "reading/cache_hits", "training"),
        ("a_number_of_tomorrow", "a_number_of_tomorrow", "training"),
    ],
)
def test_a_metric_is_a_curve_of_a_chart(metric: str, chart: str, curve: str) -> None:
    assert curve_of(metric) == (chart, curve)


def test_every_logged_number_of_a_run_is_in_a_group(shards: Path, tmp_path: Path) -> None:
    """But for the loss, the chart that everybody looks for."""
    run = tmp_path / "run"
    pretrain(shards, run, f"data.validation={shards}", "run.eval_every=2", "run.max_steps=4")
    board = EventMultiplexer().AddRunsFromDirectory(str(run / "tensorboard")).Reload()
    lines = metrics(run)
    for metric in lines[-1].keys() - {"step"}:
        chart, curve = curve_of(metric)
        assert "/" in chart or chart == "loss", metric
        shown = {point.step: point.value for point in board.Scalars("." if curve == "training" else curve, chart)}
        assert shown == {line["step"]: pytest.approx(line[metric]) for line in lines if metric in line}, metric
    assert [point.value for point in board.Scalars(".", "progress/epoch")] == [
        pytest.approx(step * 16 / len_of(shards)) for step in (1, 2, 3, 4)
    ]
    assert [point.value for point in board.Scalars(".", "progress/samples_seen")] == [16, 32, 48, 64]
    constants = [board.Scalars(f"baseline-{name}", "loss") for name in ("zero", "mean")]
    assert [[point.step for point in points] for points in constants] == [[2, 4], [2, 4]]


def len_of(shards: Path) -> int:
    from shards.manifest import Manifest

    return len(Manifest.load(shards))


def test_a_later_attempt_hides_what_it_does_again_in_every_curve(tmp_path: Path) -> None:
    TensorBoard(tmp_path, Writing(), first=1).scalars(5, {"loss": 0.5, "val_loss": 0.25})
    TensorBoard(tmp_path, Writing(), first=3).scalars(3, {"loss": 0.75, "val_loss": 1.0})
    board = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    for run, value in ((".", 0.75), ("validation", 1.0)):
        assert [(point.step, point.value) for point in board.Scalars(run, "loss")] == [(3, value)]


def test_runs_can_be_ranked_by_results_beside_their_settings(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, Writing(), first=1)
    board.recipe(small_recipe("x", tmp_path, "optim.clip=null").plain())
    board.scalars(4, {"loss": 0.5, "val_loss": 0.25, "probe_linear": 0.75})
    read = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    content = read.PluginRunToTagToContent("hparams")["."]
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    names = {(info.name.group, info.name.tag) for info in experiment.metric_infos}
    assert len(names) == len(RESULTS)
    for group, tag in (("", "loss"), ("validation", "loss"), ("validation", "probes/linear")):
        assert (group, tag) in names and read.Scalars(group or ".", tag)
    session = plugin_data_pb2.HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    columns = {info.name: info for info in experiment.hparam_infos}
    assert columns.keys() >= {"optim.clip", "model.decoder", *(FIRST - {"optim.layer_decay"})}
    assert {name for name, info in columns.items() if info.differs} == FIRST - {"optim.layer_decay"}
    settings = session.session_start_info.hparams
    assert settings["model.decoder"].string_value == "null" and "optim.clip" not in settings
    assert settings["optim.batch_size"].number_value == 16 and "run.dir" not in settings
