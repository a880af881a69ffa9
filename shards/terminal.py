"""Print messages as single lines without terminal control sequences and secrets.

Messages quote URLs, and the names of folders, tar members and columns, which are not trusted. A name can contain line
breaks, which would forge a message, and escape sequences that move the cursor or rename the window.
"""

import argparse
import io
import logging
import os
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from typing import Any, NoReturn, TextIO

from shards.secrets import masked
from shards.text import one_line

_LONGEST = 20_000  # characters of a line


def shown(text: str) -> str:
    """Return `text` as one printable line: control characters are escaped, and secrets are masked."""
    text = masked(text)  # before it is cut, since the rest of a cut secret may not be recognised
    cut = f"... and {len(text) - _LONGEST:,} more characters" if len(text) > _LONGEST else ""
    return one_line(text[:_LONGEST]) + cut


def say(line: str) -> None:
    """Print to stdout, and flush. Raises OSError where that cannot be written."""
    _print(line, sys.stdout)


def note(line: str) -> None:
    """Print to stderr if possible; a failure to print does not change how a command ends."""
    with suppress(OSError):
        _print(line, sys.stderr)


def note_error(error: BaseException) -> None:
    """Print an unexpected exception to stderr, with its traceback, as Python would."""
    for line in "".join(traceback.format_exception(error)).splitlines():
        note(line)


def prepare() -> None:
    """Make libraries, and Python itself, print as `say` and `note` do, for the rest of this process.

    This covers their logs, warnings and exceptions. A character that the terminal lacks does not end a command.
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
    """A command's arguments, with its module's docstring as the help; a usage error is one line."""

    def __init__(self, description: str | None, **options: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(usage=argparse.SUPPRESS, description=description, formatter_class=formatter, **options)

    def error(self, message: str) -> NoReturn:
        """Print the error, once if a launcher started several processes on this machine, and exit with status 2."""
        if os.environ.get("LOCAL_RANK", "0") != "0":
            sys.exit(2)
        super().error(shown(message))


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return "\n".join(map(shown, super().getMessage().split("\n")))


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{filename}:{lineno}: {category.__name__}: {shown(str(message))}\n"
