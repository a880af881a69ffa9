"""The figures of scripts/compare.py."""

import sys

import pytest
from launching import CHECKOUT

sys.path.insert(0, str(CHECKOUT / "scripts"))  # as for a script there

from compare import Block, Pretraining, Variant, line, plt, show


def test_the_figures_are_those_of_the_table() -> None:
    """The block is chosen on held-out samples, and fine-tuning counts at its last step."""
    blocks = [Block(0, 0.3, 0.25, 0.4), Block(1, 0.35, 0.2, 0.38)]
    run = Pretraining(epochs=100, batch_size=70, images_per_second=87.5, losses={1.0: 0.9}, probes={1.0: 0.5})
    variant = Variant("HOG", run, blocks, {"0": {10: 0.7, 20: 0.6}, "1": {20: 0.5}})
    assert variant.figures == {
        "name": "HOG",
        "epochs": 100,
        "images_per_second": 87.5,
        "step_ms": 800,
        "last_block": {"index": 1, "linear": 0.35, "neighbours": 0.2, "held_out": 0.38},
        "chosen_block": {"index": 0, "linear": 0.3, "neighbours": 0.25, "held_out": 0.4},
        "fine_tuned": {"0": 0.6, "1": 0.5},
    }
    assert variant.row == ["HOG", "100", "88", "800", "35.0", "20.0", "0", "30.0", "25.0", "55.0", "60.0, 50.0"]


def test_without_pretraining_there_is_no_pace() -> None:
    figures = Variant("none", None, [Block(0, 0.3, 0.25, 0.4)], {"0": {20: 0.5}}).figures
    assert {figures[name] for name in ("epochs", "images_per_second", "step_ms")} == {None}


def test_without_fine_tuning_its_cells_are_empty() -> None:
    variant = Variant("none", None, [Block(0, 0.3, 0.25, 0.4)], {})
    assert variant.row == ["none", "", "", "", "30.0", "25.0", "0", "30.0", "25.0", "", ""]
    assert variant.figures["fine_tuned"] == {}


def test_the_table_is_whole_on_any_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    show([["HOG", "100", "88", "800", "35.0", "20.0", "0", "30.0", "25.0", "55.0", ", ".join(["55.0"] * 30)]])
    said = capsys.readouterr().out
    assert "pre-training" in said and "…" not in said and ", ".join(["55.0"] * 30) in said


def test_one_point_is_a_dot_and_more_are_a_line() -> None:
    _, axes = plt.subplots()
    for points, marker in (({1.0: 0.5}, "."), ({0.5: 0.5, 1.0: 0.75}, "None")):
        line(axes, points, 100)
        assert axes.lines[-1].get_marker() == marker
    assert list(axes.lines[-1].get_ydata()) == [50, 75]
    plt.close()
