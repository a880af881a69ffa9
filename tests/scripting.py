"""The programs of scripts/ in this process, and a pickle that would run code."""

import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: Path | str) -> int:
    """Run scripts/NAME; return its exit status."""
    script = CHECKOUT / "scripts" / name
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    return int(end.value.code or 0)


class Hostile:
    """Pickled, this runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)
