"""Pictures of a person's own images: visible part, prediction, attention, and neighbours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from launching import pretrain
from PIL import Image, ImageFont
from resuming import OLD
from scripting import run_script
from torch.nn import functional as F

from model.layout import make_mask
from model.size import ImageSize
from pipeline.data.errors import DataError
from pipeline.data.loader import Loader
from pipeline.data.pictures import read_pictures
from pipeline.data.request import validation_requests
from pipeline.pixels import normalise
from pipeline.predict.neighbours import GivenImages, Neighbours, ShardImages, nearest
from pipeline.predict.predict import predict
from pipeline.predict.reconstruction import reconstruct
from pipeline.predict.sheet import Column, covered, enlarged, fitting, heat, mosaic, panel_size, sheet
from pipeline.targets.hog import hog_target
from pipeline.trained import Trained, open_trained
from shards.build import build
from shards.manifest import Manifest

SQUARE = ImageSize(64, 64)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of two classes, of sizes and forms that differ."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 256, (5, 4 + number, 3), np.uint8)
        image = Image.fromarray(pixels).resize((40 + 8 * number, 48), Image.Resampling.BICUBIC)
        place = folder / ("ant" if number < 3 else "bee")
        place.mkdir(exist_ok=True)
        image.save(place / f"{number}.{'png' if number % 2 else 'jpg'}")
    return folder


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "set"
    build(photos, out, workers=1)
    return out


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    pretrain(shards, run, "run.max_steps=2", "optim.batch_size=4", "optim.warmup_epochs=0", "data.lanes=1")
    return run


@pytest.fixture(scope="module")
def trained(run: Path) -> Trained:
    return open_trained(str(run))


@pytest.fixture(scope="module")
def images(photos: Path) -> torch.Tensor:
    return read_pictures(sorted(photos.glob("*/*")), 32)


@pytest.mark.parametrize("size", [32, (32, 48)])
def test_pictures_equal_the_crops_of_validation(
    photos: Path, shards: Path, trained: Trained, size: int | tuple[int, int]
) -> None:
    manifest, images = Manifest.load(shards), read_pictures(sorted(photos.glob("*/*")), size)
    data = trained.recipe.data.model_copy(update={"image_size": size})
    requests = validation_requests(manifest, data, samples=6, micro_batch=6, rank=0, world_size=1, seed=0)
    (batch,) = Loader(manifest, data, 6, torch.device("cpu")).batches(requests)
    by_name = {Path(manifest.path(sample)).name: batch.inputs[sample] for sample in range(6)}
    for image, path in zip(images, sorted(photos.glob("*/*")), strict=True):
        assert torch.equal(image, by_name[path.name]), path


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    one, other = read_pictures([tmp_path / "upright.png", tmp_path / "turned.png"], 32)
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("missing.jpg", None, "cannot be read: No such file or directory"),
        ("text.jpg", b"hello", "cannot be used: not an image"),
        ("empty.png", b"", "cannot be used: empty"),
    ],
)
def test_a_file_that_is_not_an_image_is_named(name: str, content: bytes | None, why: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read_pictures([tmp_path / name], 32)
    assert f"{tmp_path / name} {why}" in str(error.value)


def test_a_reconstruction_has_the_losses_of_the_model(trained: Trained, images: torch.Tensor) -> None:
    """Computed anew from the masks that are shown, image by image."""
    made, model = reconstruct(trained, images, seed=5), trained.model
    assert model is not None and made.label == "HOG"
    hidden = made.hidden
    assert hidden.shape == (6, 2, 2) and hidden.flatten(1).sum(1).tolist() == [1] * 6  # 0.4 of 4, rounded down
    for image, mask, loss, zero in zip(images, hidden, made.losses, made.losses_of_zero, strict=True):
        want = hog_target(image[None])[0][mask.flatten()]
        with torch.no_grad():
            got = model(normalise(image[None], torch.float32), make_mask(mask[None], model.view.prediction_layout))
        assert loss.item() == pytest.approx(F.mse_loss(got, want).item(), rel=1e-5)
        assert zero.item() == pytest.approx(want.square().mean().item(), rel=1e-5)
    assert not torch.equal(reconstruct(trained, images, seed=6).hidden, hidden)
    assert torch.equal(reconstruct(trained, images, seed=5).hidden, hidden)
    assert made.target.shape == made.predicted.shape == (6, 3, 96, 96)


def test_the_nearest_of_given_images_are_the_others(images: torch.Tensor, trained: Trained) -> None:
    alike = torch.cat([images[:2], images[:1], images[4:]])
    features = trained.features(alike)
    found = nearest(features, GivenImages(alike, list("abcde"), features), 9, itself=True)
    assert found[0].names[0] == "c" and found[2].names[0] == "a" and len(found[0].names) == 4
    assert found[0].cosines[0] == pytest.approx(1) and torch.equal(found[0].images[0], alike[0])
    normed = F.normalize(features, dim=1)
    cosines = (normed[1] @ normed.T).tolist()
    want = sorted((cosine for place, cosine in enumerate(cosines) if place != 1), reverse=True)
    assert found[1].cosines.tolist() == pytest.approx(want, abs=1e-6)


def test_the_nearest_of_a_data_set_has_the_class_of_the_image_itself(
    shards: Path, images: torch.Tensor, trained: Trained
) -> None:
    bank = ShardImages(str(shards), trained, 100)
    found = nearest(trained.features(images), bank, 2)
    bank.close()
    assert [near.names[0] for near in found] == ["ant"] * 3 + ["bee"] * 3
    for image, near in zip(images, found, strict=True):
        assert torch.equal(near.images[0], image) and near.cosines[0] == pytest.approx(1)


def test_attention_is_the_share_of_the_patches(images: torch.Tensor, trained: Trained) -> None:
    found = predict(trained, images, [str(number) for number in range(6)])
    total = found.attention.flatten(1).sum(1)
    assert (
        found.attention.shape == (6, 2, 2) and (total > 0.5).all() and (total < 1).all()
    )  # the class token has a part


def test_what_is_hidden_is_grey_and_nothing_else(images: torch.Tensor) -> None:
    hidden = torch.tensor([[[True, False], [False, False]]]).expand(6, -1, -1)
    for panel, plain in zip(covered(images, hidden, SQUARE), enlarged(images, SQUARE), strict=True):
        assert (panel[:32, :32] == 110).all()
        assert (panel[32:] == plain[32:]).all() and (panel[:, 32:] == plain[:, 32:]).all()


def test_heat_is_brightest_where_the_encoder_looks() -> None:
    looked = torch.tensor([[[0.1, 0.1], [0.1, 0.9]]])
    (panel,) = heat(torch.full((1, 3, 32, 32), 128, dtype=torch.uint8), looked, SQUARE)
    quarters = panel.reshape(2, 32, 2, 32, 3).mean((1, 3, 4))
    assert quarters.argmax() == 3 and quarters[1, 1] > 1.5 * quarters[0, 0]
    assert np.isfinite(
        heat(torch.zeros(1, 3, 32, 32), torch.full((1, 2, 2), 0.25), SQUARE)[0]
    ).all()  # alike everywhere


@pytest.mark.parametrize(
    ("size", "panel"),
    [
        *(((side, side), (panel, panel)) for side, panel in ((32, 288), (128, 384), (224, 448), (384, 384))),
        ((1024, 1024), (512, 512)),
        ((64, 96), (192, 288)),
        ((320, 192), (320, 192)),
        ((512, 1024), (256, 512)),
    ],
)
def test_panels_are_neither_small_nor_large_nor_squashed(size: tuple[int, int], panel: tuple[int, int]) -> None:
    assert panel_size(torch.empty(1, 3, *size)) == panel


def test_a_sheet_has_a_row_for_each_image_and_a_panel_for_each_column(images: torch.Tensor) -> None:
    columns = [
        Column("one", enlarged(images, SQUARE), ["a"] * 6),
        Column("another", enlarged(images, SQUARE), [""] * 6),
    ]
    page = sheet(columns)
    found = [
        (top, left)
        for top in range(page.shape[0] - 63)
        for left in (18, 18 + 64 + 14)
        if any(np.array_equal(page[top : top + 64, left : left + 64], panel) for panel in columns[0].panels)
    ]
    assert len(found) == 12


def test_a_mosaic_shows_all_neighbours(images: torch.Tensor) -> None:
    picture = mosaic(Neighbours(torch.ones(6), images, ["x"] * 6), ImageSize(192, 288))
    assert picture.shape == (192, 288, 3)
    cell = ImageSize((192 - 2 * 4) // 3, (288 - 2 * 4) // 3)
    for index, panel in enumerate(enlarged(images, cell)):
        top, left = index // 3 * (cell.height + 4), index % 3 * (cell.width + 4)
        assert np.array_equal(picture[top + 30 : top + cell.height, left : left + cell.width], panel[30:])


def test_long_names_keep_both_ends() -> None:
    font = ImageFont.load_default(14)
    cut = fitting("a_very_long_name_of_a_photograph.jpg", font, 120)
    assert font.getlength(cut) <= 120 and cut.startswith("a_v") and cut.endswith(".jpg") and "..." in cut
    assert fitting("short.jpg", font, 120) == "short.jpg"


def test_the_script_draws_and_says_what_it_found(
    photos: Path,
    shards: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen, out = sorted(photos.glob("*/*"))[:2], tmp_path / "picture.png"
    arguments = (*chosen, "--weights", run, "--neighbours", shards, "--out", out)
    assert run_script(monkeypatch, "predict.py", *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    made = reconstruct(open_trained(str(run)), read_pictures(chosen, 32))
    for path, line, loss in zip(chosen, lines, made.losses.tolist(), strict=False):
        assert line.startswith(f"{path}: loss {loss:.4f} (predicting zero: ") and "; nearest ant 1.000, " in line
    assert Image.open(out).width == 6 * 288 + 5 * 14 + 2 * 18


def test_a_fine_tuned_run_names_classes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, out = min(photos.glob("*/*")), tmp_path / "picture.png"
    assert run_script(monkeypatch, "predict.py", photo, "--weights", OLD / "finetune", "--out", out) == 0
    trained = open_trained(str(OLD / "finetune"))
    ((name, share),) = trained.likeliest(trained.features(read_pictures([photo], 32)))
    assert capsys.readouterr().out.startswith(f"{photo}: {name} {share:.1%}\n")


def test_weights_without_a_head_draw_the_rest(
    photos: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(monkeypatch, "export.py", run, tmp_path / "weights") == 0
    (photo, *_), out = sorted(photos.glob("*/*")), tmp_path / "picture.png"
    capsys.readouterr()
    assert run_script(monkeypatch, "predict.py", photo, "--weights", tmp_path / "weights", "--out", out) == 0
    said = capsys.readouterr().out
    assert "does not have a pre-training head" in said and f"{photo}: drawn\n" in said
    assert Image.open(out).width == 2 * 288 + 14 + 2 * 18


def test_what_cannot_be_drawn_is_one_line(
    photos: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = min(photos.glob("*/*"))
    for arguments, status, why in (
        ((photo, "--weights", tmp_path / "none"), 2, "is neither a run.dir, nor weights"),
        ((photo, "--weights", run, "--step", "7"), 1, "has no checkpoint of step 7"),
        ((photo, "--weights", run, "--neighbours", tmp_path), 1, str(tmp_path)),
        ((photo, "--weights", run, "--out", tmp_path / "no folder" / "x.png"), 1, "No such file or directory"),
        ((photo, "--weights", run, "--out", "x.jpg"), 2, "--out x.jpg is not the name of a .png file"),
        ((*[photo] * 33, "--weights", run), 2, "give at most 32"),
        ((OLD / "finetune.jsonl", "--weights", run), 1, "not an image"),
    ):
        assert run_script(monkeypatch, "predict.py", *arguments) == status, why
        error = capsys.readouterr().err
        assert why in error and error.count("\n") == 1, error
