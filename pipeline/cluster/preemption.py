"""Stop on a signal: all ranks finish the same step, save, and exit.

Schedulers send SIGTERM or SIGUSR1 some time before they kill, to some ranks or to all, at different moments. A terminal
sends SIGINT to all processes of its foreground job when Ctrl-C is pressed, and SIGHUP when it is closed. So a signal
only sets a flag, which ranks exchange in the background: a flag that any rank has set before one step is known to all
after the next. Nothing here waits for a GPU.
"""

import signal
from types import FrameType
from typing import Any, Self

import torch
from torch import distributed

from pipeline.cluster.world import World

SIGNALS: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: start the same command again


class Preemption:
    """Listens for signals within its context. All ranks enter it, and call `agreed` after every step."""

    def __init__(self, world: World) -> None:
        self._asked = False
        self._group: Any = distributed.new_group(backend="gloo") if world.size > 1 else None
        self._exchange: tuple[Any, torch.Tensor] | None = None  # in progress, and its result

    def __enter__(self) -> Self:
        heeded = set(SIGNALS)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup: the run must outlive its terminal
            heeded.remove(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Return whether any rank had been asked to stop at its previous call; the same result on all ranks."""
        if self._group is None:
            return self._asked
        answer = False
        if self._exchange:
            work, asked = self._exchange
            work.wait()  # a step has passed: it is complete, unless a rank is far behind
            answer = bool(asked)
        asked = torch.tensor([self._asked], dtype=torch.int32)
        self._exchange = distributed.all_reduce(asked, distributed.ReduceOp.MAX, self._group, async_op=True), asked
        return answer

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:  # a person insists
            raise KeyboardInterrupt
        self._asked = True
