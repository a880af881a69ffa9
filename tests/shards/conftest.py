"""A data set to change, and the program `maskfeat-shards`, which every test may use."""

import shutil
from pathlib import Path

import pytest
from making_images import make_tree
from shell import Shell

from shards.build import build


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images of 2 classes in 3 shards, one image twice, and a reject."""
    root = tmp_path_factory.mktemp("sealed")
    source = make_tree(root / "source", 12)
    (source / "ant" / "bad.jpg").write_bytes(b"")
    shutil.copy(source / "ant" / "000.JPG", source / "bee" / "twin.jpg")
    build(source, root / "out", samples_per_shard=5, workers=1)
    return root / "out"


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """A copy of that data set."""
    shutil.copytree(original, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Run `maskfeat-shards` with arguments."""
    return Shell(monkeypatch, capsys)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """10 images of 3 classes."""
    return make_tree(tmp_path / "source", 10, ("ant", "bee", "cat"))
