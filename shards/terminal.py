"""What the programs print: one line a message, which a terminal shows and does not obey, and which holds no secret.

Messages quote the names of folders, of members of tars and of columns that others made, and URLs. A name can hold line
breaks, with which it would forge a message, and escapes that move the cursor or rename the window.
"""

import argparse
import io
import logging
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from typing import NoReturn, TextIO

from shards.secrets import masked
from shards.text import one_line

_LONGEST = 20_000  # characters of a line


def shown(text: str) -> str:
    """`text` as one line to be shown: what controls a terminal is escaped, and what is secret is masked."""
    text = masked(text)  # before it is cut, as what is left of a secret need not look like one
    cut = f"... and {len(text) - _LONGEST:,} more characters" if len(text) > _LONGEST else ""
    return one_line(text[:_LONGEST]) + cut


def say(line: str) -> None:
    """Prints to stdout, at once. Raises OSError where that cannot be written."""
    _print(line, sys.stdout)


def note(line: str) -> None:
    """Prints to stderr, if that can be written: what cannot be told does not change how a command ends."""
    with suppress(OSError):
        _print(line, sys.stderr)


def note_error(error: BaseException) -> None:
    """Prints an exception that nobody expected to stderr, with its traceback, as Python would."""
    for line in "".join(traceback.format_exception(error)).splitlines():
        note(line)


def prepare() -> None:
    """Make the rest of this process print as `say` and `note` do, where libraries, or Python itself, print.

    That is what they log, warn of and raise; and no character ends a command since the terminal does not have it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(_Record)
    warnings.formatwarning = _warning
    sys.excepthook = lambda kind, error, trace: note_error(error)
    threading.excepthook = lambda thread: _thread_ended(thread.exc_value)


def _thread_ended(error: BaseException | None) -> None:
    if error and not isinstance(error, SystemExit):
        note_error(error)


def _print(line: str, stream: TextIO) -> None:
    print(shown(line), file=stream, flush=True)


class Parser(argparse.ArgumentParser):
    """Arguments of a command, with its module's docstring as its help; what is not understood is one line."""

    def __init__(self, description: str | None) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(usage=argparse.SUPPRESS, description=description, formatter_class=formatter)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and end with status 2."""
        super().error(shown(message))


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return "\n".join(map(shown, super().getMessage().split("\n")))


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{filename}:{lineno}: {category.__name__}: {shown(str(message))}\n"
