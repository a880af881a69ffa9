"""Training in this process: resumed equals undisturbed at every ZeRO stage and precision, and what a run leaves."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from launching import losses, metrics, pretrain, small_recipe, trace
from PIL import Image
from torch import Tensor

from pipeline.checkpoints.checkpoint import Checkpoint, CheckpointError, Facts
from pipeline.cluster.phases import Phases
from pipeline.data.plan import Plan
from pipeline.examples import Example, ExampleMaker
from pipeline.pretrain.evaluate import MEAN_BATCHES
from pipeline.pretrain.task import Pretraining
from pipeline.settings import ConfigError
from pipeline.train.resume import check_identity
from shards.manifest import Manifest


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resumed_equals_undisturbed_bit_for_bit(shards: Path, tmp_path: Path, stage: int, precision: str) -> None:
    settings = [f"engine.zero_stage={stage}", f"engine.precision={precision}", "engine.micro_batch=8"]
    pretrain(shards, tmp_path / "whole", *settings, "run.max_steps=6")
    pretrain(shards, tmp_path / "parts", *settings, "run.max_steps=3")
    pretrain(shards, tmp_path / "parts", *settings, "run.max_steps=6")
    whole, parts = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    assert [line["step"] for line in parts] == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "grad_norm", "lr", "skipped_steps"):
        assert [line[key] for line in parts] == [line[key] for line in whole], key


def test_the_first_speed_is_that_of_training(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the baselines and the untrained encoder's probe before it, which here take a minute by the clock."""
    before, clock = Pretraining.before_first_step, time.perf_counter

    def slow(*arguments: Any) -> None:
        before(*arguments)
        monkeypatch.setattr("pipeline.report.pace.time.perf_counter", lambda: clock() + 60)

    monkeypatch.setattr(Pretraining, "before_first_step", slow)
    pretrain(shards, tmp_path, "run.max_steps=1")
    assert metrics(tmp_path)[0]["images_per_second"] > 16 / 60


def test_logs_do_not_depend_on_where_a_run_was_interrupted(shards: Path, tmp_path: Path) -> None:
    """Saves between log steps, and a model that draws random numbers of its own."""
    settings = ["run.log_every=4", "run.save_every=3"]
    settings.append("model.options={embed_dim: 32, depth: 2, num_heads: 1, drop_path_rate: 0.3}")
    pretrain(shards, tmp_path / "whole", *settings, "run.max_steps=7")
    for steps in (3, 7):
        pretrain(shards, tmp_path / "parts", *settings, f"run.max_steps={steps}")
    assert [line["step"] for line in metrics(tmp_path / "parts")] == [3, 4, 6, 7]
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.parametrize(("saved", "resumed"), [("fp16 0", "fp16 1"), ("fp16 3", "fp16 0"), ("bf16 1", "fp16 1")])
def test_a_run_resumes_at_another_stage_or_precision(shards: Path, tmp_path: Path, saved: str, resumed: str) -> None:
    for run, lives in {"whole": [(6, resumed)], "parts": [(3, saved), (6, resumed)]}.items():
        for steps, life in lives:
            precision, stage = life.split()
            settings = [f"engine.precision={precision}", f"engine.zero_stage={stage}", f"run.max_steps={steps}"]
            pretrain(shards, tmp_path / run, *settings)
    whole, parts = (list(losses(tmp_path / run).values()) for run in ("whole", "parts"))
    np.testing.assert_allclose(parts, whole, atol=1e-3)


def test_tf32_is_off_unless_asked_for_and_may_change_on_resume(
    shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """For products, and for convolutions, where torch's own default is on. A CPU computes the same with it."""
    torch.backends.cudnn.allow_tf32 = True
    pretrain(shards, tmp_path / "without", "run.max_steps=4")
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    pretrain(shards, tmp_path / "with", "engine.tf32=true", "run.max_steps=2")
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    state = next((tmp_path / "with" / "checkpoints").iterdir()) / "state.json"
    assert json.loads(state.read_text())["recipe"]["engine"]["tf32"] is True
    pretrain(shards, tmp_path / "with", "run.max_steps=4")
    assert "engine.tf32 was True, now False: rounding differs from here on" in capfd.readouterr().out
    assert losses(tmp_path / "with") == losses(tmp_path / "without")


def test_stages_and_precisions_agree_on_the_way(shards: Path, tmp_path: Path) -> None:
    """fp32 within 1e-5 at every stage; 16 bits within their rounding: all start alike and take equal steps."""
    runs = {}
    for precision in ("fp32", "bf16", "fp16"):
        for stage in (0, 1, 2, 3):
            run = tmp_path / f"{precision}-{stage}"
            pretrain(shards, run, f"engine.zero_stage={stage}", f"engine.precision={precision}", "run.max_steps=8")
            runs[precision, stage] = np.array(list(losses(run).values()))
    reference = runs["fp32", 1]
    assert reference[0] - reference[-1] > 0.005  # it learns, so the comparison means something
    for (precision, stage), values in runs.items():
        tolerance = 1e-5 if precision == "fp32" else 1e-3
        np.testing.assert_allclose(values, reference, atol=tolerance, err_msg=f"{precision}, stage {stage}")


def test_accumulation_changes_nothing_but_rounding(shards: Path, tmp_path: Path) -> None:
    for micro_batch in (16, 4):
        run = tmp_path / str(micro_batch)
        pretrain(shards, run, f"engine.micro_batch={micro_batch}", "run.max_steps=6", "run.trace_samples=true")
    a, b = (tmp_path / name for name in ("16", "4"))
    assert trace(a) == trace(b)
    np.testing.assert_allclose(list(losses(a).values()), list(losses(b).values()), atol=1e-6)


def test_the_trace_is_the_plan_over_all_lives_of_a_run(shards: Path, tmp_path: Path) -> None:
    for steps in (3, 7):
        pretrain(shards, tmp_path / "run", "run.trace_samples=true", f"run.max_steps={steps}")
    recipe = small_recipe(shards, tmp_path / "run")
    plan = Plan(Manifest.load(shards).counts, recipe.run.seed, recipe.data.lanes, recipe.data.block)
    assert trace(tmp_path / "run") == {step: plan.batch(step, 16).tolist() for step in range(7)}


def test_what_a_run_leaves(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(
        shards,
        run,
        f"data.validation={shards}",
        "run.max_steps=6",
        "run.eval_every=4",
        "run.save_every=2",
        "run.keep=2",
    )
    lines = metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert {"loss", "grad_norm", "lr", "images_per_second", "data_wait", "memory_gib"} <= line.keys()
        assert line["images_per_second"] > 0 and 0 <= line["data_wait"] <= 1
    assert [line["step"] for line in lines if "val_loss" in line] == [4, 6]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    assert yaml.safe_load((run / "config.yaml").read_text())["optim"]["weight_decay"] == 0.05

    baselines = json.loads((run / "baselines.json").read_text())
    assert baselines["mean"] < baselines["zero"] == pytest.approx(1 / 9, rel=0.02)
    assert baselines["untrained"] > lines[-1]["val_loss"]
    pictures = sorted((run / "pictures").glob("*.png"))
    assert [path.stem for path in pictures] == ["step-00000000", "step-00000004", "step-00000006"]
    picture = np.asarray(Image.open(pictures[0]))
    assert picture.shape[1] == 4 * 32 * 3 + 3 * 6  # four panels of 32 pixels, drawn three times as large
    assert picture.std() > 30


@pytest.mark.parametrize("torn", ["", "[1]"])
def test_a_torn_record_of_the_baselines_is_made_anew(shards: Path, tmp_path: Path, torn: str) -> None:
    path, validation = tmp_path / "run" / "baselines.json", f"data.validation={shards}"
    pretrain(shards, tmp_path / "run", validation, "run.max_steps=1")
    measured = json.loads(path.read_text())
    path.write_text(torn)
    pretrain(shards, tmp_path / "run", validation, "run.max_steps=2")
    assert measured.pop("untrained") and json.loads(path.read_text()) == measured


def test_the_deadline_is_for_each_batch_of_the_baselines(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No two batches, of training or validation images, lie in the same phase."""
    phases: list[Phases] = []
    entered: list[tuple[str, int]] = []
    begin, example = Phases.__enter__, ExampleMaker.example

    def remember(self: Phases) -> Phases:
        phases.append(self)
        return begin(self)

    def note(self: ExampleMaker, images: Tensor, keys: Tensor, repeats: int = 1) -> Example:
        entered.append((phases[0]._name, phases[0]._entered))
        return example(self, images, keys, repeats)

    monkeypatch.setattr(Phases, "__enter__", remember)
    monkeypatch.setattr(ExampleMaker, "example", note)
    pretrain(shards, tmp_path / "run", f"data.validation={shards}", "run.max_steps=1")
    watched = [number for name, number in entered if name == "validation"]
    assert len(set(watched)) == len(watched) == MEAN_BATCHES + 3 * 6  # constant, untrained, and after the step


def test_a_finished_run_is_left_alone(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain(shards, tmp_path / "run", "run.max_steps=2")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    pretrain(shards, tmp_path / "run", "run.max_steps=2")
    assert "nothing to do" in capsys.readouterr().out
    pretrain(shards, tmp_path / "run", "run.max_steps=1")  # further than it is to go
    assert "has reached step 2" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_another_run_in_the_same_folder_is_refused(shards: Path, tmp_path: Path) -> None:
    pretrain(shards, tmp_path / "run", "run.max_steps=2")
    with pytest.raises(CheckpointError, match=r"belongs to another run \(optim\.lr was .*, now .*\): set these back"):
        pretrain(shards, tmp_path / "run", "optim.lr=1e-4")


def test_the_default_kind_of_masks_may_be_named(shards: Path, tmp_path: Path) -> None:
    for steps, kind in enumerate(("null", "block", "null"), 1):
        pretrain(shards, tmp_path / "run", f"run.max_steps={steps}", f"mask.kind={kind}")
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3]
    with pytest.raises(CheckpointError, match=r"\(mask\.kind was None, now random\)"):
        pretrain(shards, tmp_path / "run", "run.max_steps=4", "mask.kind=random")


def test_cubes_are_the_default_of_clips() -> None:
    """A run of clips that named its masks resumes without the name; other masks of clips are other runs."""
    found = Checkpoint(Path("step-1"), Facts(1, {}, {"mask.kind": "cube"}, {}), {})
    check_identity(found, {"mask.kind": None}, {})
    with pytest.raises(CheckpointError, match=r"mask\.kind was cube, now tube"):
        check_identity(found, {"mask.kind": "tube"}, {})


def test_a_message_names_some_of_many_differences() -> None:
    before, now = ({f"optim.{key}": number for key in "abcdefghij"} for number in (1, 2))
    with pytest.raises(CheckpointError, match=r"\(optim\.a was 1, now 2; .*optim\.h was 1, now 2; and 2 more\)"):
        check_identity(Checkpoint(Path("step-1"), Facts(1, {}, before, {}), {}), now, {})


def test_a_model_that_cannot_be_is_one_error(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"model\.options\.depht=2: not an option that works here, which are patch_size, embed_dim, depth",
    ):
        pretrain(shards, tmp_path / "run", "model.options={depht: 2}")
    with pytest.raises(ConfigError, match=r"data\.image_size=40 is not a multiple of the 16-pixel patch"):
        pretrain(shards, tmp_path / "run", "data.image_size=40")
    with pytest.raises(ConfigError, match=r"data\.image_size=\[32, 40\] is not a multiple of the 16-pixel patch"):
        pretrain(shards, tmp_path / "run", "data.image_size=[32, 40]")
    with pytest.raises(ConfigError, match=r"mask\.ratio=0\.1 leaves nothing to predict of a 2x2 grid"):
        pretrain(shards, tmp_path / "run", "mask.ratio=0.1")
    with pytest.raises(ConfigError, match=r"model\.options\.patch_size=17.*whole HOG cells"):
        pretrain(
            shards,
            tmp_path / "run",
            "data.image_size=68",
            "model.options={patch_size: 17}",
        )
