"""Choose how a GPU decodes, by tests in separate processes, and cache the choice for the node.

DALI leaves decoding to nvImageCodec, which uses nvJPEG; some versions crash, or fail, where they decode regions of
images on some GPUs (docs/explanation/data.md). A run cannot report that it crashed, so the crash is provoked elsewhere
first.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from uuid import uuid4

from pydantic import TypeAdapter

from pipeline.data.decode.graphs import Decoding
from pipeline.data.decode.libraries import upsamples
from pipeline.data.decode.selftest import READY, SLOW, SOUND
from pipeline.data.errors import DataError
from pipeline.data.pipe import ended
from pipeline.files import flock

LIMIT = 120.0  # seconds that a test may take; it needs a few

_ROOT = Path(__file__).parents[3]
INSTALL = "install versions that docs/explanation/data.md names as good"
_MISSING = "libnvjpeg is missing, so DALI decodes on the CPU"
_INSTALL_NVJPEG = "pip install nvidia-nvjpeg (for CUDA 12 nvidia-nvjpeg-cu12)"


class Ending(IntEnum):
    """The outcome of a test, from worst to best."""

    KILLED = 0  # by a signal, or by the caller because it hung
    FAILED = 1  # with an error, or with wrong pixels
    SOUND = 2


@dataclass(frozen=True)
class Outcome:
    """The result of a test.

    Attributes:
        ending: how it ended; None: before it began to decode, which says nothing about the decoder.
        reason: why it failed, unless it was sound.
        library: whether libnvjpeg was found.
    """

    ending: Ending | None
    reason: str = ""
    library: bool = True


@dataclass(frozen=True)
class Choice:
    """A way for a GPU to decode, with the reason.

    Attributes:
        decoding: the decoder options.
        note: a description and the reason, for the operator.
        final: whether it is valid until versions change, so that no test has to be repeated.
        remedy: what to do for better decoding; empty if there is nothing.
    """

    decoding: Decoding
    note: str
    final: bool
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.note}: {self.remedy}" if self.remedy else self.note


@dataclass(frozen=True)
class _Kept:
    circumstances: dict[str, str]
    choice: Choice


_KEPT = TypeAdapter(_Kept)


def choose(test: Callable[[Decoding], Outcome], versions: dict[str, str], hardware: int) -> Choice:
    """Choose to decode regions of images rather than whole ones, unless a test of the latter ends better.

    Args:
        test: tests one of them.
        versions: as from `library_versions`.
        hardware: share of each batch for the JPEG hardware.

    Raises:
        DataError: both kill the process.
    """
    regions, whole = (Decoding(way, hardware, upsamples(way, versions)) for way in (True, False))
    first = test(regions)
    if first.ending is None:
        remedy = "fix what prevents the test from running"
        return Choice(regions, f"regions of images, which could not be tested: {first.reason}", False, remedy)
    if first.ending is Ending.SOUND:
        return _sound(regions, "regions of images, as tested on this node", first)
    second = test(whole)
    failed = f"a test of decoding regions of images {first.reason}"
    if second.ending is Ending.SOUND:
        note = f"whole images and crops them afterwards, which takes more time and memory: {failed}"
        return _sound(whole, note, second, INSTALL)
    failed += f", and one of whole images {second.reason}"
    if first.ending is second.ending is Ending.KILLED:
        raise DataError(f"the GPU cannot decode: {failed}; {INSTALL}, and start again")
    if first.ending is Ending.KILLED:
        return Choice(whole, f"whole images, although {failed}", False, INSTALL)
    return Choice(regions, f"regions of images, although {failed}", False, INSTALL)


def _sound(decoding: Decoding, note: str, outcome: Outcome, remedy: str = "") -> Choice:
    if outcome.library:
        return Choice(decoding, note, True, remedy)
    return Choice(decoding, f"{note}, but {_MISSING}", False, _INSTALL_NVJPEG)


def selftest(device: str, decoding: Decoding) -> list[str]:
    """Return the command that tests a decoder, see `pipeline.data.decode.selftest`."""
    return [sys.executable, "-P", "-m", "pipeline.data.decode.selftest", device, json.dumps(asdict(decoding))]


def examine(command: list[str], limit: float = LIMIT) -> Outcome:
    """Run a test that prints the lines of `pipeline.data.decode.selftest`, for `limit` seconds at most."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    try:
        child = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, timeout=limit)
        output, errors, status = child.stdout, child.stderr, child.returncode
    except OSError as error:
        return Outcome(None, f"{command[0]}: {error.strerror}")
    except subprocess.TimeoutExpired as error:
        output, errors, status = error.stdout or b"", b"", None
    said = output.decode(errors="replace").splitlines()
    if status is None:
        reason = f"did not end within {limit:g} s"
    elif status < 0:
        reason = ended(status)
    else:
        lines = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
        reason = f"failed ({lines[-1] if lines else ended(status)})"
    if READY not in said:
        return Outcome(None, f"it {reason}")
    if status == 0 and SOUND in said:
        return Outcome(Ending.SOUND, library=SLOW not in said)
    return Outcome(Ending.KILLED if status is None or status < 0 else Ending.FAILED, reason)


def remembered(circumstances: Mapping[str, str], choose: Callable[[], Choice]) -> Choice:
    """Return the choice that this user's processes cached for the same circumstances, or else choose and cache it.

    A choice that is not final is not cached.
    """
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 (that of Path may raise)
    key = hashlib.sha256(json.dumps(dict(circumstances), sort_keys=True).encode()).hexdigest()[:16]
    memory = Path(folder) / "maskfeat-pipeline" / f"decoding-{key}.json"
    with _one_at_a_time(memory.with_suffix(".lock")):
        if found := _recall(memory, circumstances):
            return found
        choice = choose()
        if choice.final:
            _keep(memory, circumstances, choice)
        return choice


def _recall(memory: Path, circumstances: Mapping[str, str]) -> Choice | None:
    """Return the cached choice for these circumstances, if there is one; a damaged file counts as none."""
    with suppress(OSError, ValueError):
        kept = _KEPT.validate_json(memory.read_bytes(), strict=True)
        if kept.circumstances == circumstances:
            return kept.choice
    return None


def _keep(memory: Path, circumstances: Mapping[str, str], choice: Choice) -> None:
    """Write a choice atomically; where it cannot be written, the next start tests again."""
    scratch = memory.with_name(f".{uuid4().hex}")
    with suppress(OSError):
        try:
            scratch.write_bytes(_KEPT.dump_json(_Kept(dict(circumstances), choice), indent=1))
            scratch.replace(memory)
        finally:
            scratch.unlink(missing_ok=True)


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Let one process at a time enter, but wait no longer than a test may take: testing twice is harmless."""
    held, end = None, time.monotonic() + 2 * LIMIT
    with suppress(OSError):
        lock.parent.mkdir(parents=True, exist_ok=True)
        while (held := flock(lock)) is None and time.monotonic() < end:
            time.sleep(0.2)
    try:
        yield
    finally:
        if held is not None:
            os.close(held)
