"""Signals to the supervisor, which it waits for instead of being interrupted by them."""

import os
import select
import signal
import time

STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Signals to this process, one after the other: those that ask it to stop, and SIGCHLD."""

    def __init__(self) -> None:
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (*STOP, signal.SIGCHLD):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it for SIGHUP
                signal.signal(number, lambda number, frame: None)

    def next(self, seconds: float | None) -> int | None:
        """The next one; None when none came for so long."""
        ready, _, _ = select.select([self._read], [], [], seconds)
        return os.read(self._read, 1)[0] if ready else None

    def asked_within(self, seconds: float) -> bool:
        """Wait for so long, or until asked to stop; whether that was it."""
        deadline = time.monotonic() + seconds
        while (number := self.next(max(0, deadline - time.monotonic()))) is not None:
            if number in STOP:
                return True
        return False
