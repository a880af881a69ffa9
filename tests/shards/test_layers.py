"""Within `shards`, imports point downward only."""

import ast
from pathlib import Path

import shards

ROOT = Path(shards.__file__).parent
# From the ground up; what shares a line may import each other. A folder stands for all that is in it.
LAYERS = [
    {"text", "secrets", "files", "terminal", "labels", "interrupts", "program"},
    {"remote"},
    {"storage"},
    {"media"},
    {"tables"},
    {"dataset"},
    {"manifest"},
    {"tars", "sources"},
    {"making"},
    {"build", "index", "verify", "preview", "page"},
    {"output"},
    {"build_command"},
    {"cli"},
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}


def imported(file: Path) -> set[str]:
    """The modules and folders right in `shards` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "shards":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shards."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("shards.")}
    return found


def test_every_module_has_a_layer_and_imports_from_none_above() -> None:
    for file in ROOT.rglob("*.py"):
        name = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if name != "__init__":
            above = {other for other in imported(file) if HEIGHT[other] > HEIGHT[name]}
            assert not above, f"{file} imports {above}"


def test_a_kind_of_sample_knows_nothing_of_data_sets() -> None:
    for file in (ROOT / "media").glob("*.py"):
        assert imported(file) <= {"media", "files"}, file
