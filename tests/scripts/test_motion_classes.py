"""The motions of scripts/motion_classes.py: that they move, and that frames alone do not tell which."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from making_videos import all_frames
from scripting import CHECKOUT, run_script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(CHECKOUT / "scripts"))
    import motion_classes

    return motion_classes


def test_a_motion_backwards_is_the_opposite_one(script: ModuleType) -> None:
    """So that the same frames in another order are of the other class, each as likely there as here."""
    plane = script.mirrored(script.textured()[5])
    opposite = {"left": "right", "up": "down", "zoom": "zoom", "in": "out", "slow": "slow", "fast": "fast"}
    for motion in ("left-slow", "left-fast", "up-slow", "up-fast", "zoom-in"):
        back = "-".join(opposite[word] for word in motion.split("-"))
        one, other = (script.moving(plane, name, np.random.default_rng(1)) for name in (motion, back))
        assert np.abs(one[::-1].astype(int) - other).max() <= 1 and not np.array_equal(one, other)


def test_windows_move_by_their_speed(script: ModuleType) -> None:
    """Left of a window lies what it shows next: what it shows moves to the right."""
    plane = script.mirrored(script.textured()[3])
    for motion, down, across in (("left-fast", 0, 4), ("right-slow", 0, -2), ("up-slow", 2, 0), ("down-fast", -4, 0)):
        clip = script.moving(plane, motion, np.random.default_rng(2)).astype(int)
        moved = np.roll(clip[:-1], (down, across), (1, 2))
        inner = np.s_[:, 6:-6, 6:-6]
        assert np.abs(moved[inner] - clip[1:][inner]).mean() < 1 < np.abs(clip[:-1][inner] - clip[1:][inner]).mean()


def test_a_photograph_goes_on_without_an_end(script: ModuleType) -> None:
    """Its plane repeats itself where a window's middle no longer lies, so that all places are equally likely."""
    photograph = script.textured()[5]
    pixels, margin = np.asarray(script.mirrored(photograph)), script.MARGIN
    for axis, side in ((0, 160), (1, round(photograph.shape[1] * 160 / photograph.shape[0]))):
        assert pixels.shape[axis] == 2 * side + 2 * margin
        first, last = (np.take(pixels, range(start, start + 2 * margin), axis) for start in (0, 2 * side))
        assert np.array_equal(first, last)
    reach = script.SIDE / 2 * 1.25 * 1.06**3.5, script.SIDE / 2 * 1.25 + 3.5 * script.FAST * 1.25
    assert max(reach) < margin


def test_sets_have_the_same_clips(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script.make(tmp_path / "out", {"train": 10, "validation": 10})
    names = sorted(path.relative_to(tmp_path / "out/clips") for path in (tmp_path / "out/clips").rglob("*.mp4"))
    assert len(names) == 20 and {name.parts[1] for name in names} == set(script.MOTIONS)
    for name in names:
        clip, still, shuffled = (
            all_frames((tmp_path / "out" / kind / name).read_bytes())[1].astype(int)
            for kind in ("clips", "still", "shuffled")
        )
        assert clip.shape == still.shape == shuffled.shape == (8, 32, 32, 3)
        assert np.abs(still - clip[4]).mean() < 6  # as lossy as they are
        apart = np.abs(shuffled[:, None] - clip).mean((2, 3, 4))
        assert sorted(apart.argmin(1)) == list(range(8))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    assert run_script(monkeypatch, "motion_classes.py", tmp_path / "other") == 2
    assert "name a new folder" in capsys.readouterr().err and (tmp_path / "other/file").exists()
