"""The plan that a dry run prints, compared with what the run does."""

import re
from pathlib import Path

import pytest
import yaml
from launching import SMALL, losses, pretrain
from mixing import grey_shards, mixed

from pipeline.checkpoints.checkpoint import CheckpointError
from pipeline.commands.pretrain import main
from pipeline.config import load_recipe


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, ranks: int = 1) -> int:
    """Run `maskfeat pretrain` as the launcher of so many ranks has it; the exit status."""
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setattr("sys.argv", ["maskfeat pretrain", *arguments])
    return main()


def test_it_agrees_with_the_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its steps are those that are taken, and afterwards it knows where the run resumes. It writes nothing."""
    settings = [*SMALL, f"data.shards={shards}", f"run.dir={tmp_path / 'run'}", "optim.epochs=1"]
    settings += ["optim.warmup_epochs=0.5"]
    assert run(monkeypatch, "demo", *settings, "--dry-run", ranks=2) == 0
    said = dict(re.findall(r"^([\w.]+) +(.*)$", capsys.readouterr().out, re.MULTILINE))
    assert said["batch"] == "16 images: 2 ranks x 1 x 8" and said["data"] == "90 images in 6 shards"
    assert said["run.dir"] == f"{tmp_path}/run: starts at step 0" and not (tmp_path / "run").exists()
    monkeypatch.delenv("WORLD_SIZE")
    pretrain(shards, tmp_path / "run", "optim.epochs=1", "optim.warmup_epochs=0.5")
    steps = max(losses(tmp_path / "run"))
    assert said["schedule"].startswith(f"{steps} steps, 5.6 an epoch")
    capsys.readouterr()
    assert run(monkeypatch, "demo", *settings, "--dry-run") == 0
    assert f"run.dir     {tmp_path}/run: resumes after step {steps}\n" in capsys.readouterr().out


def test_another_run_in_the_folder_is_refused_as_by_the_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Change a setting, the target, or the weights or data sets of a mixture; then what a run may change."""
    grey = grey_shards(tmp_path, "grey", range(100, 120))
    folder = f"run.dir={tmp_path / 'run'}"
    mixture = mixed({"a": shards, "b": grey}, {"a": 1, "b": 3})
    settings = [*SMALL, "data.shards=null", mixture, folder]
    pretrain("null", tmp_path / "run", mixture, "run.max_steps=1")
    capsys.readouterr()
    refused = {
        ("mask.ratio=0.5",): "mask.ratio was 0.4, now 0.5",
        ("target.kind=pixels",): "target.kind was hog, now pixels",
        ("data.mixture.b.weight=2",): "data.mixture.b (share) was 3/4, now 2/3",
        ("data.mixture=null", f"data.shards={shards}"): "data.mixture.a (manifest) was ",
    }
    for changed, why in refused.items():
        assert run(monkeypatch, "demo", *settings, *changed, "--dry-run") == 1
        told = capsys.readouterr().err
        assert "belongs to another run" in told and why in told and told.count("\n") == 1
        with pytest.raises(CheckpointError) as error:
            pretrain("null", tmp_path / "run", mixture, *changed)
        assert why in str(error.value)
    assert run(monkeypatch, "demo", *settings, "engine.zero_stage=0", "run.max_steps=9", "--dry-run") == 0
    assert f"{tmp_path}/run: resumes after step 1\n" in capsys.readouterr().out
    for state in (tmp_path / "run" / "checkpoints").glob("*/*.safetensors"):
        state.write_bytes(b"")
    assert run(monkeypatch, "demo", *settings, "--dry-run") == 1
    assert "resumes" not in capsys.readouterr().out


def test_images_beside_videos_are_named_and_checked(
    shards: Path,
    video_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = [mixed({"a": shards, "b": video_shards}), "data.shards=null", "data.image_size=64", "data.frames=4"]
    settings = [*SMALL, *both, f"run.dir={tmp_path / 'run'}", f"data.validation={video_shards}", "--dry-run"]
    assert run(monkeypatch, "demo", *settings, f"data.validation_images={shards}") == 0
    said = capsys.readouterr().out
    assert "validation  22 videos\n" in said and "validation  90 images\n" in said
    for changed, why in (
        ((f"data.validation_images={video_shards}",), f"data.validation_images={video_shards} has videos"),
        (("data.validation_images=nowhere",), "nowhere: no such folder"),
        (
            (f"data.validation_images={shards}", mixed({"b": video_shards})),
            "data.validation_images is for pre-training on a data.mixture of images and videos: set it to null",
        ),
        (("data.frames=null", mixed({"b": video_shards})), "has videos: set data.frames"),
    ):
        assert run(monkeypatch, "demo", *settings, *changed) == 1
        told = capsys.readouterr().err
        assert why in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "ranks", "status", "why"),
    [
        (["data.shards=nowhere"], 1, 1, "nowhere: no such folder"),
        (["data.validation=nowhere"], 1, 1, "nowhere: no such folder"),
        ([], 3, 2, "optim.batch_size=16 cannot be divided evenly among 3 ranks"),
    ],
)
def test_what_the_run_would_refuse_is_refused(
    overrides: list[str],
    ranks: int,
    status: int,
    why: str,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = [*SMALL, f"data.shards={shards}", f"run.dir={tmp_path / 'run'}", *overrides]
    assert run(monkeypatch, "demo", *settings, "--dry-run", ranks=ranks) == status
    errors = capsys.readouterr().err
    assert why in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "shards"), [((), "???"), (("data.shards=set",), "set"), (("data.mixture={a: {shards: b}}",), None)]
)
def test_settings_are_printed_before_there_is_data(
    overrides: tuple[str, ...],
    shards: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "small", "--print-config", *overrides) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["shards"] == shards
    assert run(monkeypatch, "small", "--print-config", *overrides, "optim.lr=x") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_printed_settings_are_a_recipe_of_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "small", "data.shards=set", "model.options.depth=2", "--print-config") == 0
    printed = capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text(printed)
    assert yaml.safe_load(printed)["model"]["options"] == {"embed_dim": 192, "depth": 2, "num_heads": 3}
    assert load_recipe(str(tmp_path / "mine.yaml")) == load_recipe(
        "small", ["data.shards=set", "model.options.depth=2"]
    )
