"""From a folder of photographs to weights, as README and the tutorial say: their commands, on a few pictures."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from launching import CHECKOUT
from making_images import picture

PROGRAMS = {"maskfeat-shards": ["-m", "pipeline.cli"], "maskfeat": ["-m", "pipeline.console"], "python": []}
TINY = ["run.max_steps=2", "run.eval_every=2", "optim.batch_size=4", "engine.compile=none", "data.image_size=32"]
TINY += ["model.options.embed_dim=24", "model.options.depth=1", "--processes", "1"]
SMALLER = {
    "pretrain": TINY,
    "finetune": TINY,
    "probe": ["--processes", "1", "--epochs", "1", "--held-out", "0.5", "--k", "1"],
}


@pytest.mark.parametrize(
    ("page", "folders"),
    [
        ("README.md", ["photos"]),
        ("docs/tutorials/photographs.md", ["photos/a", "photos/b"]),
    ],
)
def test_your_own_photographs(page: str, folders: list[str], tmp_path: Path) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        for seed in range(8):
            picture(seed).save(tmp_path / folder / f"{seed}.png")
    for name in ("cat.jpg", "dog.jpg"):  # the pictures of one's own that the tutorial predicts
        picture(9).save(tmp_path / name)
    text = (CHECKOUT / page).read_text().split("## Your own photographs")[-1]
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program in PROGRAMS:  # not an environment to activate, nor a server
            command = [sys.executable, *PROGRAMS[program], *arguments, *SMALLER.get(arguments[0], [])]
            ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
            assert ran.returncode == 0, f"{line}\n{ran.stdout}\n{ran.stderr}"
    assert (tmp_path / "weights" / "photos" / "model.safetensors").exists()
