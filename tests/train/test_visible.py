"""Runs that encode visible patches only: killed, resumed, on other ranks and stages, with several masks of a crop."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from launching import (
    assert_same_weights,
    finetune_recipe,
    last_checkpoint,
    launch,
    launch_and_kill,
    losses,
    metrics,
    pretrain,
    small_recipe,
    trace,
)
from safetensors.torch import load_file
from scripting import run_script

from pipeline.build import build_examples, build_model, compile_forward, predicted_width, start_from_init
from pipeline.cluster.world import join
from pipeline.data.augment import mask_keys
from pipeline.finetune.build import build_classifier
from pipeline.measure import measure
from pipeline.probe.source import of_run
from pipeline.trained import load_model, recipe_of

COMMON = (
    "data.image_size=64",
    "model.options={embed_dim: 32, depth: 4, num_heads: 1}",
    "model.position_init=fixed",
    "model.decoder_width=32",
    "mask.kind=random",
    "mask.ratio=0.75",
    "run.trace_samples=true",
)
VARIANTS = {
    "light": (*COMMON, "model.decoder=light", "mask.repeats=2"),
    "local": (*COMMON, "model.decoder=local", "target.kind=hog_scales", "mask.repeats=4", "engine.micro_batch=4"),
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return VARIANTS[request.param]


@pytest.fixture(scope="module")
def undisturbed(variant: tuple[str, ...], shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    launch(shards, run, *variant, "run.max_steps=6", f"data.validation={shards}")
    return run


def test_a_killed_run_resumes_bit_for_bit(
    variant: tuple[str, ...], shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = [*variant, "run.max_steps=6", "run.save_every=2", f"data.validation={shards}"]
    launch_and_kill(shards, run, *options, when=run / "checkpoints/step-00000002")
    launch(shards, run, *options)
    assert losses(run) == losses(undisturbed)
    assert_same_weights(run, undisturbed)
    assert [trace(run, rank) for rank in (0, 1)] == [trace(undisturbed, rank) for rank in (0, 1)]


@pytest.mark.parametrize("ranks", [1, 2])
def test_other_ranks_and_stages_learn_the_same(
    variant: tuple[str, ...], shards: Path, undisturbed: Path, tmp_path: Path, ranks: int
) -> None:
    options = [*variant, "run.max_steps=6", "run.save_every=3"]
    launch(shards, tmp_path / "run", *options, "engine.zero_stage=3", ranks=ranks)
    assert losses(tmp_path / "run") == pytest.approx(losses(undisturbed), rel=1e-5)
    checkpoint = Path("checkpoints/step-00000003")
    shutil.copytree(tmp_path / "run" / checkpoint, tmp_path / "other" / checkpoint)
    pretrain(shards, tmp_path / "other", *options, "engine.zero_stage=0")  # one rank, from any number
    resumed = losses(tmp_path / "other")
    assert sorted(resumed) == [4, 5, 6]
    assert resumed == pytest.approx({step: losses(undisturbed)[step] for step in resumed}, rel=1e-5)


def test_a_step_reads_fewer_samples_than_it_learns_from(variant: tuple[str, ...], undisturbed: Path) -> None:
    """16 views a step; the schedule counts them, and the log tells both rates."""
    repeats = int(next(option for option in variant if option.startswith("mask.repeats")).split("=")[1])
    assert {len(ids) for rank in (0, 1) for ids in trace(undisturbed, rank).values()} == {16 // repeats // 2}
    for line in metrics(undisturbed):
        assert line["samples_per_second"] == pytest.approx(line["images_per_second"] / repeats)


def test_the_export_is_the_trained_encoder_with_its_positions(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_script(monkeypatch, "export.py", undisturbed, tmp_path / "weights") == 0
    exported = load_file(tmp_path / "weights/model.safetensors")
    assert "no loss reached the output of its class token" in (tmp_path / "weights/README.md").read_text()
    found = last_checkpoint(undisturbed)
    model = load_model(found, recipe_of(found))
    trained = model.encoder.state_dict()
    assert exported.keys() == trained.keys() and all(torch.equal(exported[name], trained[name]) for name in trained)
    assert "encoder.pos_embed" not in found.weights()
    images = torch.randn(2, 3, 64, 64)
    network = timm.create_model(f"local-dir:{tmp_path / 'weights'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(network(images), model.encoder(images))
        visible = torch.arange(16).expand(2, -1)
        seen = model.view.encode_visible(images, visible, [3])[0].mean(1)
    torch.testing.assert_close(network(images), seen, atol=1e-5, rtol=1e-4)
    init = f"model.init={tmp_path / 'weights'}"
    tuned = finetune_recipe("unread", "unread", tmp_path, *(option for option in COMMON[:2]), init)
    classifier = build_classifier(tuned, 3)
    start_from_init(classifier, tuned)
    started = classifier.view.network.state_dict()
    assert all(torch.equal(started[name], trained[name]) for name in trained if not name.startswith("norm."))


def test_a_run_is_measured_and_probed_as_any_other(undisturbed: Path) -> None:
    found = last_checkpoint(undisturbed)
    measured = measure(undisturbed, found, [], join())
    assert measured["val_loss"] == pytest.approx(metrics(undisturbed)[-1]["val_loss"], rel=1e-5)
    probed, trained = of_run(undisturbed, found, []).encoder, load_model(found, recipe_of(found)).encoder
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in probed.network.state_dict().items())
    untrained = of_run(undisturbed, None, []).encoder.network.state_dict()
    torch.manual_seed(0)
    as_started = build_model(recipe_of(found)).encoder.state_dict()
    assert all(torch.equal(tensor, as_started[name]) for name, tensor in untrained.items())


def test_a_run_is_probed_at_sizes_that_its_decoder_does_not_fit(undisturbed: Path) -> None:
    found = last_checkpoint(undisturbed)
    source = of_run(undisturbed, found, ["data.image_size=80"])  # a grid of 5x5, in which there are no squares of 2x2
    trained, probed = load_model(found, recipe_of(found)).encoder.state_dict(), source.encoder.network.state_dict()
    assert source.encoder.token_layout.shape == (5, 5)
    assert all(torch.equal(probed[name], trained[name]) for name in trained if name != "pos_embed")
    started, untrained = (
        of_run(undisturbed, None, size).encoder.network.state_dict() for size in ([], ["data.image_size=80"])
    )
    assert torch.equal(untrained["pos_embed"], probed["pos_embed"])
    assert all(torch.equal(untrained[name], started[name]) for name in started if name != "pos_embed")


def test_a_light_decoder_needs_no_teacher_to_be_measured_or_probed(shards: Path, tmp_path: Path) -> None:
    """Its head tells how many numbers it predicts, wherever the teacher was."""
    run = tmp_path / "run"
    pretrain(shards, run, *VARIANTS["light"], "run.max_steps=1")
    config = run / "config.yaml"
    text = config.read_text().replace("kind: hog", "kind: features").replace("teacher: null", "teacher: gone/teacher")
    config.write_text(text)
    found = last_checkpoint(run)
    assert predicted_width(found.weights()) == 108
    assert of_run(run, found, []).recipe.target.kind == "features"


def test_views_of_a_crop_have_masks_of_their_own_and_the_targets_of_the_crop(shards: Path, tmp_path: Path) -> None:
    recipe = small_recipe(shards, tmp_path, *VARIANTS["local"])
    examples = build_examples(recipe, build_model(recipe), torch.float32, torch.device("cpu"))
    torch.manual_seed(0)
    crops, keys = (
        torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8),
        torch.tensor(mask_keys(torch.arange(3).numpy())),
    )
    example = examples.example(crops, keys, 4)
    assert example.inputs.shape == (3, 3, 64, 64) and example.mask.cells.shape == (12, 4, 4)
    assert len({cells.numpy().tobytes() for cells in example.mask.cells}) > 6
    everything = examples.targets(crops).flatten(1, 2)
    expected = everything.repeat_interleave(4, 0)[example.mask.cells.flatten(1)]
    torch.testing.assert_close(example.targets, expected, atol=1e-6, rtol=0)
    alone = examples.example(crops[1:2], keys[1:2], 4)
    assert torch.equal(alone.mask.cells, example.mask.cells[4:8])


def test_a_bad_image_costs_all_of_its_views_and_no_other(shards: Path, tmp_path: Path) -> None:
    """By the weights of a batch, in which an image that cannot be decoded counts 0."""
    from pipeline.data.batch import Batch
    from pipeline.pretrain.task import MaskedPrediction

    recipe = small_recipe(shards, tmp_path, *VARIANTS["light"])
    model = build_model(recipe)
    task = MaskedPrediction(build_examples(recipe, model, torch.float32, torch.device("cpu")), 2)
    torch.manual_seed(0)
    crops = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    batch = Batch(None, crops, torch.arange(3), torch.tensor([1.0, 0.0, 1.0]), [])  # type: ignore[arg-type]

    class Plain:
        def predict(self, *inputs: object) -> torch.Tensor:
            return model(*inputs)

    found, weights = task.losses(Plain(), task.prepare(batch))
    assert weights.tolist() == [1, 1, 0, 0, 1, 1] and found.shape == (6,)


def test_the_compiled_model_is_one_graph_and_predicts_the_same(variant: tuple[str, ...], tmp_path: Path) -> None:
    recipe = small_recipe("unread", tmp_path, *variant)
    model = build_model(recipe)
    examples = build_examples(recipe, model, torch.float32, torch.device("cpu"))
    crops = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    example = examples.example(crops, torch.arange(2), recipe.mask.repeats)
    expected = model(example.inputs, example.mask)
    compile_forward(model)
    torch.testing.assert_close(model(example.inputs, example.mask), expected, atol=1e-5, rtol=1e-4)


def test_a_run_without_its_decoder_is_another_run(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(shards, run, *VARIANTS["light"], "run.max_steps=1")
    with pytest.raises(Exception, match=r"model\.decoder was light, now None"):
        pretrain(shards, run, *COMMON, "run.max_steps=2", "mask.repeats=2")
