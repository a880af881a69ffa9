"""What the parts of `scripts/bench.py gpu` tell: figures, checks, failures, and what was left out."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from benchmarks.gpu.scale import Scale


@dataclass(frozen=True)
class Check:
    """Whether something is right, and the numbers that say so."""

    name: str
    passed: bool
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """An error that cost a contestant or a whole part."""

    name: str
    why: str


@dataclass(frozen=True)
class LeftOut:
    """A contestant or part that was not run."""

    name: str
    why: str


Result = Figure | Check | Failure | LeftOut
KINDS = {"figure": Figure, "check": Check, "failure": Failure, "left out": LeftOut}


@dataclass(frozen=True)
class Bench:
    """What every part is given.

    Attributes:
        scale: sizes.
        shards: a data set.
        until: when its process must have ended, by `time.monotonic`, which is the same in all processes.
    """

    scale: Scale
    shards: Path
    until: float

    def lacking(self, name: str, seconds: float) -> LeftOut | None:
        """Ask before each contestant: that it is left out, if less time is left than it is estimated to take."""
        left = self.until - time.monotonic()
        needed = 0 if self.scale.dry else seconds
        return LeftOut(name, f"estimated at {seconds:g} s, {max(left, 0):.0f} s were left") if left < needed else None


@dataclass(frozen=True)
class Part:
    """One of the things that an item of the list measures."""

    item: int
    name: str
    run: Callable[[Bench], Iterator[Result]]


@dataclass(frozen=True)
class Line:
    """A line of the file in which results arrive one by one.

    Attributes:
        item, part: that found it.
        kind: one of KINDS, "machine" for the facts about it, or "seconds" at the part's end.
        content: as JSON.
    """

    item: int
    part: str
    kind: str
    content: Any

    @classmethod
    def of(cls, part: Part, result: Result) -> "Line":
        """What a part has found."""
        kind = next(kind for kind, known in KINDS.items() if isinstance(result, known))
        content = result.to_json() if isinstance(result, Figure) else asdict(result)
        return cls(part.item, part.name, kind, content)

    def to_json(self) -> str:
        """Without a line break."""
        return json.dumps(asdict(self))


def read_lines(file: Path) -> list[Line]:
    """All that was found so far; a line that a process did not live to complete is passed over."""
    if not file.exists():
        return []
    lines = []
    for text in file.read_text().splitlines():
        try:
            lines.append(Line(**json.loads(text)))
        except ValueError:
            continue
    return lines
