"""Time matters: a video model that MaskFeat pre-trained tells motions that single frames do not show."""

import json
from pathlib import Path

import pytest
from launching import train
from scripting import CHECKOUT

from pipeline.cluster.world import join
from pipeline.config import load_recipe
from pipeline.probe.judge import Settings
from pipeline.probe.probe import Asked, probe
from shards.build import build

pytestmark = pytest.mark.slow  # it trains for two minutes

KINDS = ("clips", "still", "shuffled")
TRAINED, JUDGED = 600, 300  # clips


@pytest.fixture(scope="module")
def motions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of all three sets, as scripts/motion_classes.py and `maskfeat-shards build` make them."""
    out = tmp_path_factory.mktemp("motions")
    make_sets(out)
    return out


@pytest.fixture(scope="module")
def run(motions: Path) -> Path:
    """A model that was pre-trained on the clips, without their classes."""
    run = motions / "run"
    shards = f"data.shards={motions / 'clips' / 'train'}"
    train(load_recipe("motions", [shards, f"run.dir={run}", "engine.compile=none"]))
    return run


def make_sets(out: Path) -> None:
    """Make shards of all three sets."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(CHECKOUT / "scripts"))
        from motion_classes import make

        make(out / "videos", {"train": TRAINED, "validation": JUDGED})
    for kind in KINDS:
        for part in ("train", "validation"):
            build(out / "videos" / kind / part, out / kind / part, samples_per_shard=1000, workers=1)


def judged(run: Path, motions: Path, kind: str) -> float:
    """Return the accuracy of the linear probe of a set, of the last block."""
    data = [f"data.shards={motions / kind / 'train'}", f"data.validation={motions / kind / 'validation'}"]
    out = motions / f"probe-{kind}"
    settings = Settings([20], 0.07, [0.01, 0.03, 0.1, 0.3, 1, 3], 100, 300, 0.1, seed=0)
    probe(Asked(str(run), data, None, False, [-1], "mean", 1.0, out), settings, join())
    (report,) = out.glob("step-*.json")
    (layer,) = json.loads(report.read_text())["layers"].values()
    return float(layer["linear"]["top1"])


def test_clips_tell_motions_and_single_frames_do_not(run: Path, motions: Path) -> None:
    """One class in ten is named by chance; docs/how-to/video.md has what three seeds gave."""
    clips, still, shuffled = (judged(run, motions, kind) for kind in KINDS)
    assert clips > 0.42
    assert still < 0.2
    assert still - 0.05 < shuffled < clips - 0.15
