"""The inputs that are attacked. `attempt` damages one, has the product read it, and judges: "refused" or "accepted".

Anything that is neither one line of a refusal nor a right result is raised: a traceback that no user should see, or an
AssertionError where something wrong was accepted in silence.
"""

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import mutations
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from labelled import labelled_shards
from PIL import Image
from safetensors.torch import load_file, save_file

from model.encoders.registry import build_network
from model.maskfeat import MaskFeat
from model.weights import WeightsError
from pipeline.build import build_model
from pipeline.checkpoints.checkpoint import FILES, STATE, CheckpointError, chosen, seal
from pipeline.config import Recipe, load_recipe
from pipeline.data.errors import DataError
from pipeline.settings import ConfigError
from pipeline.train.errors import TrainingError
from pipeline.trained import load_model, open_trained, recipe_of
from shards.files import ShardError, sha256_of
from shards.index import index_tars
from shards.manifest import DATASET, MANIFEST, Manifest
from shards.media import formats
from shards.media.image import IMAGE
from shards.media.media import CheckOptions, Rejected
from shards.preview import write_preview
from shards.sources.parquet import read_row
from shards.sources.source import list_source
from shards.storage import read
from shards.verify import verify

REFUSALS = (ShardError, ConfigError, CheckpointError, DataError, TrainingError, WeightsError)
_LONGEST = 5000  # characters of a message, which may quote a path


class Subject(Protocol):
    """A kind of input. Made once, with a folder for what all attempts share."""

    def attempt(self, rng: random.Random, folder: Path) -> str:
        """Spoil one input in an empty folder, and judge what becomes of it."""
        ...


def refused(read_it: Callable[[], Any]) -> bool:
    """Return whether the product refuses with a line that a terminal can show; other results are ignored."""
    try:
        read_it()
    except REFUSALS as error:
        message = str(error)
        assert message and len(message) <= _LONGEST, f"{len(message)} characters: {message[:300]}"
        assert "SEKRET" not in message, message
        return True
    return False


def spoil_tensors(rng: random.Random, file: Path) -> None:
    """Spoil one tensor of a safetensors file, or the beginning of the file."""
    tensors = load_file(file)
    name = rng.choice(sorted(tensors))
    change = rng.choice(("drop", "shape", "one", "type", "bytes", "nan"))
    if change == "drop":
        del tensors[name]
    elif change == "shape":
        tensors[name] = tensors[name].flatten()[1:].clone()
    elif change == "one":
        tensors[name] = tensors[name].flatten()[:1].clone()
    elif change == "type":
        tensors[name] = tensors[name].to(rng.choice((torch.int32, torch.bool, torch.float16)))
    elif change == "nan":
        tensors[name] = tensors[name] * float("nan")
    if change == "bytes":
        head = file.read_bytes()
        file.write_bytes(mutations.data(rng, head[:600]) + head[600:])
    else:
        save_file(tensors, file)


def _reseal(folder: Path) -> None:
    """Make the checksums of a checkpoint those of what its files hold now."""
    names = [path.name for path in folder.iterdir() if path.name != FILES]
    (folder / FILES).write_text(json.dumps({name: seal(folder / name) for name in names}))


class DataSets:
    """A data set whose dataset.json or manifest.parquet was spoilt, under a right checksum."""

    def __init__(self, shared: Path) -> None:
        self._set = labelled_shards(shared, {"set": {"blue": 5, "red": 4}})["set"]
        self._right = Manifest.load(self._set)

    def attempt(self, rng: random.Random, folder: Path) -> str:
        root = Path(shutil.copytree(self._set, folder / "set"))
        facts = json.loads((root / DATASET).read_text())
        if rng.random() < 0.5:
            facts = mutations.json_value(rng, facts)
        else:
            pq.write_table(mutations.table(rng, pq.read_table(root / MANIFEST)), root / MANIFEST)
            facts["manifest_sha256"] = sha256_of(root / MANIFEST)
        (root / DATASET).write_text(json.dumps(facts))
        if refused(lambda: Manifest.load(root)):
            return "refused"
        found = Manifest.load(root)
        names = ("shard", "offset", "size", "label", "height", "width", "crc32c")
        same = all(np.array_equal(getattr(found, name), getattr(self._right, name)) for name in names)
        if not (same and found.shard_names == self._right.shard_names):
            assert refused(lambda: verify(root)) or verify(root), "rows that do not fit their tar pass verify"
        refused(lambda: write_preview(root, folder / "page.html"))
        if (page := folder / "page.html").exists():
            assert "<script>" not in page.read_text(encoding="utf-8")
        return "accepted"


class Listings:
    """A csv or parquet table of images, or one that holds them, whose bytes, columns or values were spoilt."""

    def __init__(self, shared: Path) -> None:
        self._folder = shared / "images"
        self._folder.mkdir()
        for index in range(4):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(self._folder / f"{index}.png")

    def attempt(self, rng: random.Random, folder: Path) -> str:
        source = folder / rng.choice(("list.csv", "list.parquet", "files.parquet"))
        labels = rng.choice((["a", "b", "a", "b"], ["0", "1", "1", "0"]))
        paths = [str(self._folder / f"{index}.png") for index in range(4)]
        if source.suffix == ".csv":
            lines = ["path,label", *(f"{path},{label}" for path, label in zip(paths, labels, strict=True))]
            source.write_bytes(mutations.data(rng, "\n".join(lines).encode()))
        else:
            records = [{"bytes": Path(path).read_bytes(), "path": path} for path in paths]
            files = {"image": records} if source.stem == "files" else {"path": paths}
            pq.write_table(mutations.table(rng, mutations.pa.table({**files, "label": labels})), source)
            if rng.random() < 0.3:
                source.write_bytes(mutations.data(rng, source.read_bytes()))
        if refused(lambda: list_source(source)):
            return "refused"
        listing = list_source(source)
        assert len(listing.labels) in (0, len(listing.paths))
        assert all(0 <= label < len(listing.classes) for label in listing.labels)
        for index in range(len(listing.rows)):
            item = listing.item(index)
            assert item.row is not None
            with suppress(Rejected):
                assert isinstance(read_row(item.file, item.row), bytes)
        return "accepted"


class Tars:
    """A spoilt tar made elsewhere beside a sound one, which must be indexed; what else is kept must be whole."""

    def __init__(self, shared: Path) -> None:
        self._sound = self._tar(shared / "sound.tar", 100)
        self._base = self._tar(shared / "base.tar", 0).read_bytes()

    @staticmethod
    def _tar(path: Path, seed: int) -> Path:
        noise = np.random.default_rng(seed)
        with tarfile.open(path, "w") as tar:
            for index in range(3):
                file = io.BytesIO()
                Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "JPEG")
                for suffix, content in (("cls", b"%d" % index), ("jpg", file.getvalue())):
                    member = tarfile.TarInfo(f"{seed + index:03d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return path

    def attempt(self, rng: random.Random, folder: Path) -> str:
        (folder / "spoilt.tar").write_bytes(mutations.data(rng, self._base))
        tars = [str(folder / "spoilt.tar"), str(self._sound)]
        assert not refused(lambda: index_tars(tars, folder / "set", workers=1)), "a spoilt tar stops a sound one"
        assert verify(folder / "set") == []
        found = Manifest.load(folder / "set")
        assert sum("sound" in found.shard_names[shard] for shard in found.shard) == 3
        for row in range(len(found)):
            place = int(found.offset[row]), int(found.size[row])
            IMAGE.check(read(found.shard_location(int(found.shard[row])), *place), CheckOptions(10**6))
        return "accepted" if len(found) == 6 else "refused"


class Images:
    """Image files whose bytes were spoilt: what is kept is decoded to the size that the manifest will say."""

    def __init__(self, shared: Path) -> None:
        from model.size import ImageSize
        from pipeline.data.decode.decoder import CpuDecoder

        self._decoder, self._files = CpuDecoder(1, ImageSize(16, 16), 1), []
        noise = np.random.default_rng(0)
        for file_format, options in (
            ("JPEG", {"quality": 70}),
            ("JPEG", {"quality": 70, "progressive": True}),
            ("JPEG", {"quality": 90, "restart_marker_blocks": 2}),
            ("PNG", {}),
            *((name, {}) for name in formats.installed()),
        ):
            file = io.BytesIO()
            coarse = Image.fromarray(noise.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            coarse.resize((64, 48), Image.Resampling.BICUBIC).save(file, file_format, **options)
            self._files.append(file.getvalue())

    def attempt(self, rng: random.Random, folder: Path) -> str:
        from pipeline.data.decode.decoder import Crops

        try:
            kept = IMAGE.check(
                mutations.data(rng, rng.choice(self._files)), CheckOptions(10**6, rng.choice((None, 16)))
            )
        except Rejected as error:
            assert len(error.detail) <= _LONGEST, error.detail[:300]
            return "refused"
        window = np.array([[0, 0, kept.height, kept.width]], np.int32)
        self._decoder.feed(Crops([np.frombuffer(kept.data, np.uint8)], window, np.zeros(1, np.int32)))
        assert self._decoder.take().problems == {}
        with Image.open(io.BytesIO(kept.data)) as image:
            assert sorted(image.size) == sorted((kept.height, kept.width))
        return "accepted"


class Recipes:
    """Recipe files and overrides, spoilt: a model can be built of what is accepted."""

    def __init__(self, shared: Path) -> None:
        self._settings = load_recipe("small", ["data.shards=set"]).model_dump(mode="json")
        self._keys = [f"{section}.{key}" for section, keys in self._settings.items() for key in keys]

    def attempt(self, rng: random.Random, folder: Path) -> str:
        path, overrides = folder / "recipe.yaml", []
        kind = rng.choice(("settings", "bytes", "override"))
        settings = mutations.json_value(rng, self._settings) if kind == "settings" else self._settings
        try:
            text = yaml.safe_dump(settings)
        except yaml.YAMLError:  # what YAML cannot write, JSON can
            text = json.dumps(settings)
        content = text.encode("utf-8", "surrogateescape")
        path.write_bytes(mutations.data(rng, content) if kind == "bytes" else content)
        if kind == "override":
            value = rng.choice(mutations.NASTY)
            overrides = [f"{rng.choice(self._keys)}={value if isinstance(value, str) else json.dumps(value)}"]

        def use() -> None:
            recipe = load_recipe(str(path), overrides)
            recipe.micro_batch(1)
            with torch.device("meta"):
                build_model(recipe)

        return "refused" if refused(use) else "accepted"


class Checkpoints:
    """A run whose checkpoint, left-out.json or logs were spoilt, under right checksums, and which is then resumed."""

    def __init__(self, shared: Path) -> None:
        from resuming import OLD

        self._run, self._set = OLD / "pretrain", OLD / "set"
        self._losses = [json.loads(line)["loss"] for line in (OLD / "pretrain.jsonl").read_text().splitlines()]

    def attempt(self, rng: random.Random, folder: Path) -> str:
        from resuming import resume

        run = Path(shutil.copytree(self._run, folder / "pretrain"))
        (checkpoint,) = (run / "checkpoints").iterdir()
        getattr(self, f"_{rng.choice(('state', 'tensors', 'seals', 'log', 'left_out'))}")(rng, run, checkpoint)
        if refused(lambda: resume(run)):
            return "refused"
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[-5:]]
        assert [line["loss"] for line in lines] == pytest.approx(self._losses[3:], rel=1e-4), "other losses, in silence"
        return "accepted"

    def _state(self, rng: random.Random, run: Path, checkpoint: Path) -> None:
        state = json.loads((checkpoint / STATE).read_text())
        (checkpoint / STATE).write_text(json.dumps(mutations.json_value(rng, state)))
        _reseal(checkpoint)

    def _tensors(self, rng: random.Random, run: Path, checkpoint: Path) -> None:
        (part,) = checkpoint.glob("part-*")
        if rng.random() < 1 / 7:
            name, tensor = rng.choice(sorted(load_file(part).items(), key=lambda item: item[0]))
            save_file({name: tensor + 1}, checkpoint / "part-00001.safetensors")  # which is there twice
        else:
            spoil_tensors(rng, part)
        _reseal(checkpoint)

    def _seals(self, rng: random.Random, run: Path, checkpoint: Path) -> None:
        seals = json.loads((checkpoint / FILES).read_text())
        (checkpoint / FILES).write_text(json.dumps(mutations.json_value(rng, seals)))

    def _log(self, rng: random.Random, run: Path, checkpoint: Path) -> None:
        name = rng.choice(("metrics.jsonl", "quarantine.jsonl", "config.yaml", "baselines.json"))
        value = rng.choice(mutations.NASTY)
        with (run / name).open("ab") as file:
            file.write(rng.choice((json.dumps(value).encode() + b"\n", bytes(100), b"\xff\xfe\n", b'{"step": "3"}\n')))
        if name == "config.yaml":  # which `resume` reads as its recipe
            shutil.copy(self._run / name, run / name)

    def _left_out(self, rng: random.Random, run: Path, checkpoint: Path) -> None:
        value = mutations.json_value(rng, {"steps": [200, 201], "reason": "x"})  # after the end: nothing is left out
        (run / "left-out.json").write_text(json.dumps(value))


class Exports:
    """A folder of maskfeat export whose JSON or tensors were spoilt: what is accepted has features of every image.

    There are the encoder as timm and transformers read it, a whole model, a classifier, and the encoder of clips.
    """

    def __init__(self, shared: Path) -> None:
        from resuming import OLD

        from model.export_video import export_video
        from model.weights import KINETICS
        from pipeline.commands.export import write_timm
        from pipeline.whole_model import write_model

        self._folders = [shared / name for name in ("encoder", "whole", "classifier", "clips")]
        for folder, run in zip(self._folders, (OLD / "pretrain", OLD / "pretrain", OLD / "finetune"), strict=False):
            folder.mkdir()
            found = chosen(run, None)
            recipe = recipe_of(found)
            model = load_model(found, recipe)
            if folder.name == "whole":
                assert isinstance(model, MaskFeat) and isinstance(recipe, Recipe)
                write_model(folder, model, recipe, found.facts.step)
            else:
                write_timm(run, found, model, recipe, folder, average=False)
        options: dict[str, Any] = {"embed_dim": 8, "depth": 2, "stages": [1]}
        network = build_network("mvit_v2", 64, 4, **options)
        export_video(network, self._folders[-1], name="mvit_v2", options=options, normalisation=KINETICS)
        torch.manual_seed(0)

    def attempt(self, rng: random.Random, folder: Path) -> str:
        root = Path(shutil.copytree(rng.choice(self._folders), folder / "export"))
        (stated,) = root.glob("*.json")
        (weights,) = root.glob("*.safetensors")
        if rng.random() < 0.7:
            stated.write_text(json.dumps(mutations.json_value(rng, json.loads(stated.read_text()))))
        else:
            spoil_tensors(rng, weights)

        def use() -> None:
            trained = open_trained(str(root))
            with torch.no_grad():
                features = trained.features(torch.zeros(1, *trained.encoder.input_shape, dtype=torch.uint8))
            assert features.shape == (1, trained.encoder.width) and features.isfinite().all()

        return "refused" if refused(use) else "accepted"


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "data sets": DataSets,
    "listings": Listings,
    "tars": Tars,
    "images": Images,
    "recipes": Recipes,
    "checkpoints": Checkpoints,
    "exports": Exports,
}
