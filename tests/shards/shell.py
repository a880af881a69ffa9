"""A caller of `maskfeat-shards` in the process of a test."""

import sys

import pytest

from shards.cli import main


class Shell:
    """Runs `maskfeat-shards` in this process: (exit status, stdout, stderr)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["maskfeat-shards", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        out, err = self.capsys.readouterr()
        return int(exit.value.code or 0), out, err
