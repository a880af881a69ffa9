"""Let Ctrl-C end a program without a traceback, also while modules are imported."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STATUS = 130  # of a program that was interrupted


@contextmanager
def ending_quietly() -> Iterator[None]:
    """End the process at once on Ctrl-C in the block, as a process does that has no handler.

    For imports: Python would raise KeyboardInterrupt in the middle of a module, and some packages turn it into an error
    of theirs. Handlers other than Python's own are kept.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
