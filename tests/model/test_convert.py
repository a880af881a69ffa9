"""MaskFeat checkpoints of SlowFast and mmpretrain: what they become, and that a key too many or too few is named.

Checkpoints are written here under the keys and shapes of the published codes' own models (tests/golden/keys.json);
that their numbers then come out is for test_parity.py.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden import checkpoints, formula
from scripting import Hostile, run_script

from model.convert import classifier, load_mmpretrain, load_slowfast
from model.geometry import geometry
from model.maskfeat import build_encoder
from model.weights import MMPRETRAIN, SLOWFAST, Layout, Weights, WeightsError, read

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
    """Return shapes by key, for a pre-training checkpoint in another geometry."""
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
    assert geometry(Weights(Path("file"), layout, tensors)) == (name, size, None, {})
    model = {f"encoder.{key}": value.shape for key, value in encoder.state_dict().items()}
    assert model == {key: tensors[layout.key(key)].shape for key in model}
    assert encoder.blocks[0].attn.head_dim == 64


@pytest.mark.parametrize("code", LOAD)
def test_any_other_geometry(code: str, tmp_path: Path) -> None:
    state = {key: torch.zeros(shape) for key, shape in shapes(code, 192, 3, size=40, patch=8).items()}
    model = LOAD[code](checkpoints.write(tmp_path / "file", code, state))
    encoder = model.encoder
    assert (encoder.embed_dim, len(encoder.blocks), model.view.mask_layout.shape, model.view.prediction_patch) == (
        192,
        3,
        (5, 5),
        (1, 8, 8),
    )
    assert encoder.blocks[0].attn.num_heads == 3 and model.head.out_features == 27


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
        with pytest.raises(WeightsError, match="is not a checkpoint of"):
            LOAD[other](path)


def test_the_script_writes_what_plain_timm_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process that imports nothing of this project: features of a pre-trained, logits of a fine-tuned one."""
    files = {}
    for code, kind in (("slowfast", "pretraining"), ("mmpretrain", "fine_tuned")):
        files[kind] = checkpoints.write(tmp_path / f"{kind}.pth", code, checkpoints.tensors(code, kind))
        assert run_script(monkeypatch, "convert.py", files[kind], tmp_path / kind) == 0
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
    whole = checkpoints.write(tmp_path / "whole", "slowfast", checkpoints.tensors("slowfast", "pretraining"))
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:-1])
    torch.save({"model_state": {}, "cfg": Hostile(tmp_path / "ran")}, tmp_path / "hostile")
    torch.save(build_encoder("vit_tiny_patch16_224", 32, depth=1).state_dict(), tmp_path / "timm")
    torch.save({"model_state": {"stem.weight": torch.ones(3, 3)}}, tmp_path / "other")
    for name, message in (
        ("none", "there is no weights file"),
        ("cut", "is damaged: "),
        ("hostile", "contains more than tensors"),
        ("timm", "needs no conversion"),
        ("other", "is not a vision transformer of SlowFast: missing patch_embed.proj.weight"),
    ):
        assert run_script(monkeypatch, "convert.py", tmp_path / name, tmp_path / "out") == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "ran").exists()
