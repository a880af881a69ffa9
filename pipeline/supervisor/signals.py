"""Receive signals of the supervisor by waiting for them, instead of being interrupted."""

import os
import select
import signal
import time

STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Signals:
    """A queue of signals to this process: those that ask it to stop, and SIGCHLD."""

    def __init__(self) -> None:
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (*STOP, signal.SIGCHLD):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets SIGHUP
                signal.signal(number, lambda number, frame: None)

    def next(self, seconds: float | None) -> int | None:
        """Return the next signal; None if none arrived within `seconds`."""
        ready, _, _ = select.select([self._read], [], [], seconds)
        return os.read(self._read, 1)[0] if ready else None

    def asked_within(self, seconds: float) -> bool:
        """Wait until asked to stop, or for `seconds`; return whether it was asked."""
        deadline = time.monotonic() + seconds
        while (number := self.next(max(0, deadline - time.monotonic()))) is not None:
            if number in STOP:
                return True
        return False
