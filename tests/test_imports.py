"""One direction of data: `shards` and `model` are leaves, `pipeline` composes them, `scripts` are on top."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
OURS = {"shards", "pipeline", "model", "scripts"}
MAY_IMPORT = {"shards": {"shards"}, "model": {"model"}, "pipeline": {"pipeline", "shards", "model"}, "scripts": OURS}
# Within the pipeline, from the ground up; a folder stands for all that is in it. Modules on one line do not import each
# other: data, masks and targets do not know of each other, and training does not know what is learned.
LAYERS = [
    ["supervisor"],
    ["device", "files", "metrics", "optimizers", "peaks", "pixels", "plain_yaml", "progress_bar"],
    ["random", "settings", "model_options"],
    ["augmentation", "data", "masks", "targets"],
    ["examples", "record", "sections"],
    ["recipe_files"],
    ["overrides"],
    ["descriptions", "load_recipe"],
    ["config"],
    ["build"],
    ["whole_model"],
    ["cluster", "estimate"],
    ["checkpoints", "report"],
    ["train"],
    ["validation", "words", "probe"],
    ["pretrain"],
    ["card"],
    ["finetune"],
    ["trained"],
    ["predict"],
    ["api"],
    ["doctor", "measure"],
    ["cli", "commands"],
    ["console"],
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
# Names of types alone, which are not imported when the program runs
TYPES_ONLY = {("overrides", "config"), ("load_recipe", "config"), ("descriptions", "config")}


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


def test_the_pipeline_has_one_direction() -> None:
    """Every module and folder has a layer, and imports from lower ones and from itself only."""
    root = CHECKOUT / "pipeline"
    for file in root.rglob("*.py"):
        name = file.relative_to(root).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        others = {module.split(".")[1] for module in imported(file) if module.startswith("pipeline.")} - {name}
        wrong = {other for other in others if HEIGHT[other] >= HEIGHT[name] and (name, other) not in TYPES_ONLY}
        assert not wrong, f"{file} imports {wrong}"


def test_the_program_maskfeat_needs_no_torch() -> None:
    """So that it answers at once, and launched processes are not kept waiting by it."""
    code = "import sys, pipeline.console.main; sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT).returncode == 0


def test_shards_need_no_torch() -> None:
    code = "import sys, shards.cli, shards.build, shards.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT).returncode == 0


def test_reading_a_checkpoint_and_notebooks_need_no_deepspeed() -> None:
    code = "import sys, pipeline.checkpoints.checkpoint, pipeline.api; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT).returncode == 0
