"""Bad samples in real runs: they affect only themselves, are logged exactly, and too many end the run."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import launch, launch_and_kill, losses, metrics, pretrain, small_recipe, trace
from making import hog_examples

from pipeline.build import build_model
from pipeline.checkpoints.checkpoint import newest
from pipeline.data.errors import DataError
from pipeline.data.exact import ExactData
from pipeline.data.loader import Loader
from pipeline.data.plan import Plan
from pipeline.data.request import validation_requests
from pipeline.data.training_data import Part
from pipeline.targets.target import squared_errors
from shards.manifest import Manifest

BAD = {5, 17, 40, 41, 77}


@pytest.fixture(scope="module")
def damaged(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the data set, and overwrite five images in their tars, but not in the manifest."""
    copy = tmp_path_factory.mktemp("damaged") / "train"
    shutil.copytree(shards, copy)
    manifest = Manifest.load(copy)
    for sample in BAD:
        with Path(manifest.shard_location(manifest.shard[sample])).open("r+b") as tar:
            tar.seek(int(manifest.offset[sample]) + 10)
            tar.write(b"overwritten")
    return copy


def quarantined(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]


def expected(shards: Path, steps: int, batch_size: int = 16) -> list[tuple[int, int]]:
    """Return (step, id) of the bad samples in the plan."""
    plan = Plan(Manifest.load(shards).counts, 0, lanes=4, block=8192)
    return sorted((step, int(i)) for step in range(steps) for i in plan.batch(step, batch_size) if int(i) in BAD)


def batches(shards: Path, run: Path) -> Iterator[Any]:
    recipe = small_recipe(shards, run)
    data = ExactData(recipe.data, Part(16, 16, 0, torch.device("cpu")))
    return data.batches(0, 6)


def test_other_samples_and_their_gradients_are_untouched(shards: Path, damaged: Path, tmp_path: Path) -> None:
    model = build_model(small_recipe(shards, tmp_path))
    examples = hog_examples(*model.view.mask_layout.shape)

    def gradient(images: torch.Tensor, weights: torch.Tensor, mask_keys: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        example = examples.example(images, mask_keys)
        errors = squared_errors(model(example.inputs, example.mask), example.targets, len(images))
        (errors * weights).mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    met = 0
    for good, bad in zip(batches(shards, tmp_path), batches(damaged, tmp_path), strict=True):
        assert good.request.ids.tolist() == bad.request.ids.tolist()
        hurt = np.isin(good.request.ids, list(BAD))
        met += hurt.sum()
        assert bad.weights.tolist() == (~hurt).astype(float).tolist() and good.weights.all()
        assert torch.equal(good.inputs[~hurt], bad.inputs[~hurt]) and not bad.inputs[hurt].any()
        assert [sample.id for sample in bad.bad] == good.request.ids[hurt].tolist()
        if hurt.any():
            # Whatever stands in the slots changes no bit; and the rest weighs what it always weighed.
            ours = gradient(bad.inputs, bad.weights, bad.keys)
            assert torch.equal(ours, gradient(good.inputs, bad.weights, good.keys))
            each = [
                gradient(good.inputs[[i]], torch.ones(1), good.keys[[i]]) / len(hurt) for i in np.flatnonzero(~hurt)
            ]
            torch.testing.assert_close(ours, torch.stack(each).sum(0), rtol=1e-4, atol=1e-6)
    assert met == len(expected(damaged, 6)) >= len(BAD)


def test_the_log_is_exact_over_two_ranks_and_a_kill(damaged: Path, tmp_path: Path) -> None:
    options = [
        "run.max_steps=18",
        "run.save_every=6",
        "run.log_every=4",
        "run.trace_samples=true",
        "data.bad_share=0.2",
    ]
    launch(damaged, tmp_path / "whole", *options)
    launch_and_kill(damaged, tmp_path / "killed", *options, when=tmp_path / "killed/checkpoints/step-00000012")
    launch(damaged, tmp_path / "killed", *options)

    for run in (tmp_path / "whole", tmp_path / "killed"):
        lines = quarantined(run)
        assert sorted((line["step"], line["id"]) for line in lines) == expected(damaged, 18)
        manifest = Manifest.load(damaged)
        for line in lines:
            assert "does not match its checksum" in line["reason"]
            assert line["path"] == manifest.path(line["id"]) and line["key"] == manifest.key(line["id"])
            assert line["shard"] == manifest.shard_names[manifest.shard[line["id"]]]
    plan = Plan(Manifest.load(damaged).counts, 0, lanes=4, block=8192)
    seen = [trace(tmp_path / "killed", rank) for rank in (0, 1)]
    assert all(seen[0][step] + seen[1][step] == plan.batch(step, 16).tolist() for step in range(18))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    weights = [newest(tmp_path / run / "checkpoints", report=print) for run in ("whole", "killed")]
    assert weights[0] and weights[1]
    for name, value in weights[0].weights().items():
        assert torch.equal(value, weights[1].weights()[name]), name


def test_validation_leaves_bad_samples_out(shards: Path, damaged: Path, tmp_path: Path) -> None:
    """A validation set with five bad images has the loss of its other images."""
    pretrain(shards, tmp_path, "run.max_steps=1", f"data.validation={damaged}")
    recipe, manifest = small_recipe(shards, tmp_path), Manifest.load(shards)
    saved = newest(tmp_path / "checkpoints", report=print)
    assert saved
    model = build_model(recipe)
    model.load_state_dict(saved.weights())
    examples = hog_examples(*model.view.mask_layout.shape)
    requests = validation_requests(manifest, recipe.data, samples=90, micro_batch=15, rank=0, world_size=1, seed=0)
    errors = {}
    for batch in Loader(manifest, recipe.data, 15, torch.device("cpu")).batches(requests):
        example = examples.example(batch.inputs, batch.keys)
        with torch.no_grad():
            predictions = model.eval()(example.inputs, example.mask)
        for sample, error in zip(batch.request.ids, squared_errors(predictions, example.targets, 15), strict=True):
            errors[int(sample)] = float(error)
    (line,) = metrics(tmp_path)
    good = [error for sample, error in errors.items() if sample not in BAD]
    assert len(good) == 85 and line["val_loss"] == pytest.approx(np.mean(good), rel=1e-5)


def test_validation_images_that_are_all_bad_end_the_run(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    for tar in copy.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(DataError, match=f"{copy}: none of the validation samples can be used"):
        pretrain(shards, tmp_path / "run", "run.max_steps=1", f"data.validation={copy}", "data.bad_in_a_row=1000")
    with pytest.raises(DataError, match=rf"4 bad samples in a row, .*run `maskfeat-shards verify` on {copy} and"):
        pretrain(shards, tmp_path / "other", "run.max_steps=1", f"data.validation={copy}", "data.bad_in_a_row=4")
    assert not list(tmp_path.glob("*/quarantine*"))  # which have training samples, by their ids


def test_a_missing_data_set_ends_the_run_with_one_line(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    for tar in copy.glob("*.tar"):
        tar.unlink()
    said = launch(copy, tmp_path / "run", "run.max_steps=50", ranks=1, expect=1)
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert "bad samples in a row" in line and f"maskfeat-shards verify {copy}" in line
