"""Others' weights: what they become, and that a wrong or hostile file is one error that runs nothing.

Checkpoints are written here under the keys and shapes of the published codes' own models (tests/golden/keys.json);
that their numbers then come out is for test_parity.py.
"""

import json
import os
import pickle
import re
import runpy
import subprocess
import sys
import types
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from golden import checkpoints, formula
from launching import losses, pretrain, small_recipe
from timm.layers import resample_abs_pos_embed
from timm.models import save_for_hf

from model.convert import classifier, fill, geometry, load_mmpretrain, load_slowfast
from model.maskfeat import MaskFeat, build_encoder
from model.weights import MMPRETRAIN, SLOWFAST, Layout, Weights, WeightsError, read
from pipeline.build import build_model, init_identity, start_from_init
from pipeline.config import ConfigError, Recipe, load_recipe
from pipeline.data.exact import ExactData
from pipeline.targets.objective import Objective, squared_errors
from pipeline.train.checkpoint import CheckpointError

CHECKOUT = Path(__file__).resolve().parents[1]
LOAD = {"slowfast": load_slowfast, "mmpretrain": load_mmpretrain}
# The published codes' names of a few of our parameters, one of each kind
NAMES = {
    "encoder.pos_embed": ("pos_embed", "backbone.pos_embed"),
    "encoder.patch_embed.proj.weight": ("patch_embed.proj.weight", "backbone.patch_embed.projection.weight"),
    "encoder.blocks.1.norm2.bias": ("blocks.1.norm2.bias", "backbone.layers.1.ln2.bias"),
    "encoder.blocks.0.attn.qkv.weight": ("blocks.0.attn.qkv.weight", "backbone.layers.0.attn.qkv.weight"),
    "encoder.blocks.0.mlp.fc1.bias": ("blocks.0.mlp.fc1.bias", "backbone.layers.0.ffn.layers.0.0.bias"),
    "encoder.blocks.1.mlp.fc2.weight": ("blocks.1.mlp.fc2.weight", "backbone.layers.1.ffn.layers.1.weight"),
    "encoder.norm.weight": ("pred_head.transforms.0.0.weight", "backbone.ln1.weight"),
    "mask_token": ("mask_token", "backbone.mask_token"),
    "head.bias": ("pred_head.projections.0.bias", "neck.fc.bias"),
}
PARAMETERS = [
    (code, kind, key)
    for code in LOAD
    for kind in ("pretraining", "fine_tuned")
    for key in checkpoints.KEYS[code][kind]
    if not key.startswith(checkpoints.BUFFERS)
]


def shapes(code: str, width: int, depth: int, size: int, patch: int) -> dict[str, list[int]]:
    """By key, of a pre-training checkpoint in another geometry."""
    second = re.compile(r"\.1\.(?=norm|ln|attn|mlp|ffn)")  # of the two blocks in the golden files
    tokens = (size // patch) ** 2 + 1
    sizes = {128: width, 384: 3 * width, 512: 4 * width, 17: tokens, 16: patch, 108: 27 * (patch // 8) ** 2}
    made = {}
    for key, shape in checkpoints.KEYS[code]["pretraining"].items():
        for block in range(1, depth) if second.search(key) else [1]:
            made[second.sub(f".{block}.", key)] = [sizes.get(number, number) for number in shape]
    return made


@pytest.mark.parametrize("code", LOAD)
def test_every_tensor_finds_its_place(code: str, tmp_path: Path) -> None:
    tensors = checkpoints.tensors(code, "pretraining")
    model = LOAD[code](checkpoints.write(tmp_path / "file", code, tensors))
    state = model.state_dict()
    for name, theirs in NAMES.items():
        assert torch.equal(state[name], tensors[theirs[list(LOAD).index(code)]]), name
    sums = sorted(tensor.sum().item() for key, tensor in tensors.items() if not key.startswith(checkpoints.BUFFERS))
    assert sorted(tensor.sum().item() for tensor in state.values()) == sums
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize(("code", "layout"), [("slowfast", SLOWFAST), ("mmpretrain", MMPRETRAIN)])
@pytest.mark.parametrize(
    ("name", "width", "depth", "size"),
    [
        ("vit_base_patch16_224", 768, 12, 224),
        ("vit_large_patch16_224", 1024, 24, 224),
        ("vit_small_patch16_224", 384, 12, 96),
    ],
)
def test_published_geometries(name: str, width: int, depth: int, size: int, code: str, layout: Layout) -> None:
    """On shapes alone, since ViT-L has 1.2 GB."""
    with torch.device("meta"):
        tensors = {key: torch.empty(shape) for key, shape in shapes(code, width, depth, size, 16).items()}
        encoder = build_encoder(name, size)
    assert geometry(Weights(Path("file"), layout, tensors)) == (name, size, {})
    model = {f"encoder.{key}": value.shape for key, value in encoder.state_dict().items()}
    assert model == {key: tensors[layout.key(key)].shape for key in model}
    assert encoder.blocks[0].attn.head_dim == 64


@pytest.mark.parametrize("code", LOAD)
def test_any_other_geometry(code: str, tmp_path: Path) -> None:
    state = {key: torch.zeros(shape) for key, shape in shapes(code, 192, 3, size=40, patch=8).items()}
    model = LOAD[code](checkpoints.write(tmp_path / "file", code, state))
    encoder = model.encoder
    assert (encoder.embed_dim, len(encoder.blocks), model.grid, model.patch) == (192, 3, (5, 5), 8)
    assert encoder.blocks[0].attn.num_heads == 3 and model.head.out_features == 27


def test_files_of_every_format_are_read_alike(tmp_path: Path) -> None:
    """torch.save's archives and the plain pickles before them, half precision, and the command line of a run."""
    tensors = checkpoints.tensors("mmpretrain", "pretraining")
    want = load_mmpretrain(checkpoints.write(tmp_path / "new", "mmpretrain", tensors)).state_dict()
    old = checkpoints.write(tmp_path / "old", "mmpretrain", tensors, _use_new_zipfile_serialization=False)
    torch.save({"state_dict": tensors, "args": Namespace(lr=1.0)}, tmp_path / "args")
    for path in (old, tmp_path / "args"):
        got = load_mmpretrain(path).state_dict()
        assert all(torch.equal(got[name], want[name]) for name in want)
    half = checkpoints.write(tmp_path / "half", "mmpretrain", {key: value.half() for key, value in tensors.items()})
    for name, value in load_mmpretrain(half).state_dict().items():
        assert torch.equal(value, want[name].half().float()), name


class HistoryBuffer:
    """As mmengine's, which is not installed here: arrays, and methods of its own."""

    def __init__(self) -> None:
        self._log_history = np.array([0.5, 0.25])
        self._statistics_methods = {"mean": self.mean}

    def mean(self) -> float:
        return float(self._log_history.mean())


@pytest.mark.parametrize("zipped", [True, False])
def test_logs_in_mmengines_checkpoints_are_passed_over(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmselfsup's published files have them: its publishing tool removed no more than the optimizer."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for owner in (HistoryBuffer, HistoryBuffer.mean):
        monkeypatch.setattr(owner, "__module__", module.__name__)
    tensors = checkpoints.tensors("mmpretrain", "pretraining")
    hub = {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"lr": np.float64(1e-3)}}
    content = {"state_dict": tensors, "message_hub": hub, "meta": {"epoch": 300}}
    torch.save(content, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    if zipped:
        refused = set(torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "file"))
        assert {"mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr"} <= refused
    monkeypatch.undo()
    assert torch.equal(load_mmpretrain(tmp_path / "file").mask_token, tensors["backbone.mask_token"])


@pytest.mark.parametrize("head", ["head.head.", "head.predictor.fc."])
def test_names_of_mmselfsup(head: str, tmp_path: Path) -> None:
    for kind, today in (("pretraining", "neck.fc."), ("fine_tuned", "head.fc.")):
        tensors = checkpoints.tensors("mmpretrain", kind)
        before = {
            key.replace(today, head).replace("backbone.ln2.", "backbone.fc_norm."): t for key, t in tensors.items()
        }
        assert before.keys() != tensors.keys()
        file = read(checkpoints.write(tmp_path / kind, "mmpretrain", before))
        assert file.tensors.keys() == tensors.keys()
        assert all(torch.equal(file.tensors[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("code", LOAD)
def test_a_fine_tuned_checkpoint_gives_its_encoder(code: str, tmp_path: Path) -> None:
    tensors = checkpoints.tensors(code, "fine_tuned")
    path = checkpoints.write(tmp_path / "file", code, tensors)
    model, whole = LOAD[code](path), classifier(read(path))
    for name, value in model.encoder.state_dict().items():
        if name.startswith("norm."):  # untrained
            assert torch.equal(value, torch.full_like(value, name == "norm.weight"))
        else:
            assert torch.equal(value, whole.state_dict()[name]), name
    assert model.mask_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.head.out_features == 108 and not model.head.bias.any()


@pytest.mark.parametrize(("code", "kind", "key"), PARAMETERS)
def test_a_missing_or_misshaped_key_is_named(code: str, kind: str, key: str, tmp_path: Path) -> None:
    tensors = checkpoints.tensors(code, kind)
    wrong = tensors[key].flatten()[:-1]
    for state in (tensors | {key: wrong}, {k: value for k, value in tensors.items() if k != key}):
        path = checkpoints.write(tmp_path / "file", code, state)
        load = (lambda path: classifier(read(path))) if kind == "fine_tuned" else LOAD[code]
        with pytest.raises(WeightsError) as error:
            load(path)
        assert key in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("code", LOAD)
@pytest.mark.parametrize("kind", ["pretraining", "fine_tuned"])
def test_an_unknown_key_is_named(code: str, kind: str, tmp_path: Path) -> None:
    tensors = checkpoints.tensors(code, kind) | {
        "backbone.blocks.7.gamma_1" if code == "mmpretrain" else "extra": torch.ones(3)
    }
    unknown = list(tensors)[-1]
    with pytest.raises(WeightsError, match=f"unknown {re.escape(unknown)}$"):
        LOAD[code](checkpoints.write(tmp_path / "file", code, tensors))


def test_each_code_has_its_own_door(tmp_path: Path) -> None:
    for code, other in (("slowfast", "mmpretrain"), ("mmpretrain", "slowfast")):
        path = checkpoints.write(tmp_path / code, code, checkpoints.tensors(code, "pretraining"))
        with pytest.raises(WeightsError, match="is no checkpoint of"):
            LOAD[other](path)


class Hostile:
    """Pickled, this runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["beside", "inside"])
def test_code_in_a_checkpoint_does_not_run(where: str, zipped: bool, tmp_path: Path) -> None:
    tensors: dict[str, Any] = checkpoints.tensors("slowfast", "pretraining")
    content = {"model_state": tensors | ({"x": Hostile(tmp_path / "ran")} if where == "inside" else {})}
    content |= {"cfg": Hostile(tmp_path / "ran")} if where == "beside" else {}
    torch.save(content, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        WeightsError, match=r"holds more than tensors \((posix|nt)\.mkdir\), which is not loaded"
    ) as error:
        load_slowfast(tmp_path / "file")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "ran").exists()  # so it would have


@pytest.mark.parametrize("suffix", [".pth", ".old", ".safetensors"])
def test_a_file_cut_anywhere_is_one_error(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    tensors = checkpoints.tensors("slowfast", "pretraining")
    if suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        checkpoints.write(path, "slowfast", tensors, _use_new_zipfile_serialization=suffix == ".pth")
    whole = path.read_bytes()
    for length in [*range(0, 300, 13), *range(300, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError) as error:
            read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_files_without_weights(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ([1, 2], {}, {"model_state": 3}, {"model_state": {}}, {"a": torch.ones(1), "b": 3}, torch.ones(3)):
        torch.save(content, path)
        with pytest.raises(WeightsError, match="holds no weights"):
            read(path)
    path.write_text("not weights")
    with pytest.raises(WeightsError, match="is damaged, or no weights file"):
        read(path)
    path.write_bytes(pickle.dumps({"model_state": {"a": [1]}}, protocol=2))
    with pytest.raises(WeightsError):
        read(path)
    torch.save({"model_state": {"pos_embed": torch.zeros(1).expand(10**6, 10**6)}}, path)
    with pytest.raises(WeightsError, match="claim more bytes"):
        read(path)
    for nothing in (tmp_path / "none", tmp_path):
        with pytest.raises(WeightsError, match="there is no weights file"):
            read(nothing)


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: Path) -> int:
    """scripts/convert.py in this process; its exit status."""
    script = CHECKOUT / "scripts" / "convert.py"
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    return int(end.value.code or 0)


def test_the_script_writes_what_plain_timm_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process that imports nothing of this project: features of a pre-trained, logits of a fine-tuned one."""
    files = {}
    for code, kind in (("slowfast", "pretraining"), ("mmpretrain", "fine_tuned")):
        files[kind] = checkpoints.write(tmp_path / f"{kind}.pth", code, checkpoints.tensors(code, kind))
        assert run_script(monkeypatch, files[kind], tmp_path / kind) == 0
        assert f"local-dir:{tmp_path / kind}" in capsys.readouterr().out
    images = formula.exact_input(formula.pictures())
    torch.save(images, tmp_path / "images")
    reader = (
        "import sys, timm, torch\n"
        "for kind in ('pretraining', 'fine_tuned'):\n"
        "    model = timm.create_model(f'local-dir:{kind}', pretrained=True).eval()\n"
        "    torch.save(model(torch.load('images')).detach(), f'{kind}.output')\n"
        "assert 'model' not in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", reader], cwd=tmp_path, check=True, timeout=120)
    with torch.no_grad():
        features = load_slowfast(files["pretraining"]).encoder.forward_features(images)[:, 1:].mean(1)
        logits = classifier(read(files["fine_tuned"])).eval()(images)
    assert logits.shape == (formula.IMAGES, formula.CLASSES)
    for kind, want in (("pretraining", features), ("fine_tuned", logits)):
        torch.testing.assert_close(torch.load(tmp_path / f"{kind}.output"), want, atol=1e-6, rtol=0)
        config = json.loads((tmp_path / kind / "config.json").read_text())
        assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]


def test_the_script_tells_what_it_cannot_convert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").write_text("not weights")
    write_timm(timm_encoder(), tmp_path / "timm.pth")
    for name, message in (("broken", "is damaged, or no weights file"), ("timm.pth", "needs no conversion")):
        assert run_script(monkeypatch, tmp_path / name, tmp_path / "out") == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ---- model.init


def recipe(init: Path, *overrides: str) -> Recipe:
    options = "model.options={embed_dim: 128, depth: 2, num_heads: 2}"
    return load_recipe(
        "demo", ["data.shards=/nowhere", "data.image_size=64", options, *overrides, f"model.init={init}"]
    )


def started(init: Path, *overrides: str) -> tuple[MaskFeat, MaskFeat]:
    """The model as it starts, and as it would without `model.init`."""
    settings = recipe(init, *overrides)
    torch.manual_seed(0)
    untrained = build_model(settings)
    torch.manual_seed(0)
    model = build_model(settings)
    start_from_init(model, settings)
    return model, untrained


@pytest.mark.parametrize("code", LOAD)
def test_a_run_starts_from_a_pretraining_checkpoint(code: str, tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path / "file", code, checkpoints.tensors(code, "pretraining"))
    model, _ = started(path)
    want = LOAD[code](path).state_dict()
    assert all(torch.equal(value, want[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("code", LOAD)
def test_a_run_starts_from_a_fine_tuned_checkpoint(code: str, tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path / "file", code, checkpoints.tensors(code, "fine_tuned"))
    model, untrained = started(path)
    want = classifier(read(path)).state_dict()
    for name, value in model.state_dict().items():
        fresh = name.startswith(("mask_token", "head.", "encoder.norm."))
        assert torch.equal(value, untrained.state_dict()[name] if fresh else want[name.removeprefix("encoder.")]), name


def timm_encoder(name: str = "vit_base_patch16_224", **options: Any) -> timm.models.VisionTransformer:
    torch.manual_seed(1)
    return timm.create_model(name, **{"img_size": 64, "embed_dim": 128, "depth": 2, "num_heads": 2, **options})


def write_timm(model: torch.nn.Module, path: Path) -> Path:
    """In the format that the name asks for."""
    state = model.state_dict()
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    elif path.suffix == ".mae":  # with what an MAE's pre-training has besides an encoder
        decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.ones(8)}
        torch.save({"model": state | decoder, "args": Namespace(model="mae_vit_base_patch16")}, path)
    elif path.suffix:
        torch.save(state, path)
    else:
        save_for_hf(model, str(path), safe_serialization=True)
    return path


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.mae", "folder"])
@pytest.mark.parametrize("classes", [0, 10])
def test_a_run_starts_from_an_encoder_of_timms(name: str, classes: int, tmp_path: Path) -> None:
    """As timm has the weights of MAE, and classifiers with a norm before the pooling."""
    encoder = timm_encoder(num_classes=classes)
    model, untrained = started(write_timm(encoder, tmp_path / name))
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[key]), key
    assert torch.equal(model.mask_token, untrained.mask_token) and torch.equal(model.head.weight, untrained.head.weight)


def test_a_norm_behind_the_pooling_is_not_taken(tmp_path: Path) -> None:
    encoder = timm_encoder(global_pool="avg", num_classes=10)
    torch.nn.init.constant_(encoder.fc_norm.weight, 3)
    model, _ = started(write_timm(encoder, tmp_path / "weights.pth"))
    assert torch.equal(model.encoder.norm.weight, torch.ones(128))
    assert torch.equal(model.encoder.cls_token, encoder.cls_token)


@pytest.mark.parametrize(
    ("name", "options"),
    [("beit3_base_patch16_224", {}), ("deit3_small_patch16_224", {}), ("vit_base_patch16_224", {"reg_tokens": 4})],
)
def test_position_embeddings_of_another_grid_are_resampled(name: str, options: dict[str, int], tmp_path: Path) -> None:
    """BEiT-3's sub-norms, DeiT-3's layer scales and class token without a position, and register tokens."""
    encoder = timm_encoder(name, img_size=96, **options)
    settings = {"embed_dim": 128, "depth": 2, "num_heads": 2} | options
    overrides = [f"model.name={name}", f"model.options={json.dumps(settings)}"]
    model, _ = started(write_timm(encoder, tmp_path / "weights.pth"), *overrides)
    prefix = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    want = resample_abs_pos_embed(encoder.pos_embed, [4, 4], num_prefix_tokens=prefix)
    assert encoder.pos_embed.shape[1] == 36 + prefix
    torch.testing.assert_close(model.encoder.pos_embed, want, atol=0, rtol=0)
    for key in encoder.state_dict().keys() - {"pos_embed", "head.weight", "head.bias", "norm.weight", "norm.bias"}:
        if not key.startswith("fc_norm."):
            assert torch.equal(model.encoder.state_dict()[key], encoder.state_dict()[key]), key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, "unknown blocks.2.norm1.weight, blocks.2.norm1.bias, blocks.2.attn.qkv.weight and 9 more"),
        ({"depth": 1}, "missing blocks.1.norm1.weight, "),
        ({"embed_dim": 64}, "cls_token is (1, 1, 64) instead of (1, 1, 128)"),
        ({"patch_size": 8}, "patch_embed.proj.weight is (128, 3, 8, 8) instead of (128, 3, 16, 16)"),
        ({"qkv_bias": False}, "missing blocks.0.attn.qkv.bias, blocks.1.attn.qkv.bias "),
        ({"class_token": False}, "missing cls_token"),
    ],
)
def test_an_encoder_that_does_not_fit_the_recipe(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    if options.get("class_token") is False:
        options = options | {"global_pool": "avg"}
    path = write_timm(timm_encoder(**options), tmp_path / "weights.pth")
    settings = recipe(path)
    with pytest.raises(ConfigError) as error:
        start_from_init(build_model(settings), settings)
    assert f"model.init: {path}" in str(error.value) and message in str(error.value)
    assert "(model.name and model.options must be those of the weights)" in str(error.value)


def test_nothing_changes_when_the_weights_do_not_fit(tmp_path: Path) -> None:
    model = build_model(recipe(tmp_path))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError):
        fill(model, read(write_timm(timm_encoder(depth=3), tmp_path / "weights.pth")))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_run_is_bound_to_the_weights_and_not_to_their_path(tmp_path: Path) -> None:
    first, moved = (write_timm(timm_encoder(), tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    folder = write_timm(timm_encoder(), tmp_path / "folder")
    assert init_identity(recipe(first)) == init_identity(recipe(moved))
    assert init_identity(recipe(folder)) == init_identity(recipe(folder / "model.safetensors"))
    other = write_timm(timm_encoder(num_classes=3), tmp_path / "other.safetensors")
    assert init_identity(recipe(first)) != init_identity(recipe(other))
    assert init_identity(load_recipe("demo", ["data.shards=/nowhere"])) is None
    with pytest.raises(ConfigError, match=r"model\.init: there is no weights file"):
        init_identity(recipe(tmp_path / "none"))


def test_a_run_from_others_weights_resumes_with_them_elsewhere(shards: Path, tmp_path: Path) -> None:
    """The first loss is that of the weights; they may move, but not change."""
    options = "model.options={embed_dim: 128, depth: 2, num_heads: 2}"
    tensors = checkpoints.tensors("slowfast", "pretraining")
    path = checkpoints.write(tmp_path / "file", "slowfast", tensors)
    settings = ["data.image_size=64", options]
    pretrain(shards, tmp_path / "run", *settings, "run.max_steps=2", f"model.init={path}")
    pretrain(shards, tmp_path / "untrained", *settings, "run.max_steps=1")
    ranks = {"rank": 0, "world_size": 1, "local_rank": 0, "local_size": 1}
    data = ExactData(small_recipe(shards, tmp_path, *settings), 16, torch.device("cpu"), **ranks)
    (batch,) = data.batches(0, 1)
    example = Objective((4, 4), 16, 0.4, torch.float32, compile=False).example(batch.images, batch.mask_keys)
    with torch.no_grad():
        predictions = load_slowfast(path)(example.images, example.mask)
    loss = squared_errors(predictions, example.targets, 16).mean().item()
    assert losses(tmp_path / "run")[1] == pytest.approx(loss, rel=1e-5)
    assert losses(tmp_path / "untrained")[1] != pytest.approx(loss, rel=0.1)

    moved = path.rename(tmp_path / "moved")
    pretrain(shards, tmp_path / "run", *settings, "run.max_steps=3", f"model.init={moved}")
    assert list(losses(tmp_path / "run")) == [1, 2, 3]
    checkpoints.write(moved, "slowfast", tensors | {"cls_token": torch.ones(1, 1, 128)})
    with pytest.raises(CheckpointError, match=r"model\.init was [0-9a-f]{64}, now [0-9a-f]{64}"):
        pretrain(shards, tmp_path / "run", *settings, "run.max_steps=4", f"model.init={moved}")
