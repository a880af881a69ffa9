"""One direction of data: `shards` and `model` are leaves, `pipeline` composes them, `scripts` are on top."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
OURS = {"shards", "pipeline", "model", "scripts"}
MAY_IMPORT = {"shards": {"shards"}, "model": {"model"}, "pipeline": {"pipeline", "shards", "model"}, "scripts": OURS}
# Within the pipeline: data and targets know nothing of training, training nothing of its tasks, and each other's order
# is that of one image's way.
LAYERS = {
    "pipeline/data": {"pipeline.train", "pipeline.build"},
    "pipeline/targets": {"pipeline.train", "pipeline.data"},
    "pipeline/train": {"pipeline.pretrain", "pipeline.finetune", "pipeline.probe", "pipeline.validation"},
    "pipeline/pretrain": {"pipeline.finetune", "pipeline.probe"},
}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_packages_import_only_what_they_may(package: str) -> None:
    for file in (CHECKOUT / package).rglob("*.py"):
        ours = {name for name in imported(file) if name.split(".")[0] in OURS}
        assert {name.split(".")[0] for name in ours} <= MAY_IMPORT[package], f"{file}: {ours}"


@pytest.mark.parametrize("folder", sorted(LAYERS))
def test_the_pipeline_has_one_direction(folder: str) -> None:
    for file in (CHECKOUT / folder).rglob("*.py"):
        against = {name for name in imported(file) for layer in LAYERS[folder] if name.startswith(layer)}
        assert not against, f"{file}: {against}"


def test_shards_need_no_torch() -> None:
    code = "import sys, shards.cli, shards.build, shards.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT).returncode == 0


def test_reading_a_checkpoint_needs_no_deepspeed() -> None:
    code = "import sys, pipeline.train.checkpoint, pipeline.build; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT).returncode == 0
