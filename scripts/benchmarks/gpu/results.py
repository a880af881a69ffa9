"""Results of `scripts/bench.py gpu`: figures, checks, failures and omissions, and the file that collects them."""

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
    """A comparison, its verdict, and the numbers behind it."""

    name: str
    passed: bool
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """An error that ended a contestant or a part."""

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
    """The setting in which a part runs.

    Attributes:
        scale: sizes.
        shards: a data set of images.
        videos: a data set of videos, or the folder in which to make one.
        until: end of its process by `time.monotonic`, a clock that all processes share.
    """

    scale: Scale
    shards: Path
    videos: Path
    until: float

    def too_late(self, name: str, seconds: float) -> LeftOut | None:
        """Return an omission if less time is left than a contestant is estimated to take. Call this before each one."""
        left = self.until - time.monotonic()
        needed = 0 if self.scale.dry else seconds
        return LeftOut(name, f"estimated at {seconds:g} s, {max(left, 0):.0f} s were left") if left < needed else None


@dataclass(frozen=True)
class Part:
    """A function that checks or measures something, with its item in the list."""

    item: int
    name: str
    run: Callable[[Bench], Iterator[Result]]


@dataclass(frozen=True)
class Line:
    """A line of the file that collects results.

    Attributes:
        item, part: the source of the line.
        kind: one of KINDS; "machine", its facts, at the start of a process; or "seconds" at the end of a part.
        content: JSON values.
    """

    item: int
    part: str
    kind: str
    content: Any

    @classmethod
    def of(cls, part: Part, result: Result) -> "Line":
        """Make the line of a result."""
        kind = next(kind for kind, known in KINDS.items() if isinstance(result, known))
        content = result.to_json() if isinstance(result, Figure) else asdict(result)
        return cls(part.item, part.name, kind, content)

    def to_json(self) -> str:
        """Return the line without its break."""
        return json.dumps(asdict(self))


def read_lines(file: Path) -> list[Line]:
    """Read all lines except a torn last one. A missing file counts as an empty one."""
    if not file.exists():
        return []
    lines = []
    for text in file.read_text().splitlines():
        try:
            lines.append(Line(**json.loads(text)))
        except ValueError:
            continue
    return lines
