"""Run the list of `scripts/bench.py gpu` within its time, in separate processes.

Results are appended to a file beside the JSON one, so that an error, a hang, a GPU that refuses further work, or the
end of the time does not cost earlier results. When a process dies, the part in progress is lost; later parts get
another process.
"""

import gc
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Collection
from pathlib import Path

import torch

from benchmarks.children import run
from benchmarks.figures import machine
from benchmarks.gpu.items import PARTS, PROCESSES
from benchmarks.gpu.machine import NEEDS
from benchmarks.gpu.report import report
from benchmarks.gpu.results import Bench, Failure, LeftOut, Line, Part, Result, read_lines
from benchmarks.gpu.scale import DRY, GPU
from pipeline.data.errors import DataError
from shards.terminal import say

SECONDS = 460  # for all parts
_START = 15  # least remaining seconds to start a process
_MARGIN = 3  # seconds from the planned end of a process until it is killed
_SCRIPT = Path(__file__).parents[2] / "bench.py"


def gpu(
    shards: Path, out: Path, items: Collection[int], dry: bool, seconds: float = SECONDS, videos: Path | None = None
) -> bool:
    """Run these items, and keep results of others in `out`. Without `videos`, they are made from `shards`.

    Returns:
        Whether every part ran and no check failed.

    Raises:
        DataError: there is no GPU, or results of a trial would be mixed with those of a GPU.
    """
    if not dry and not torch.cuda.is_available():
        raise DataError("no GPU: --dry tries all that does not need one")
    if dry and videos:
        raise DataError("--dry makes videos that a CPU decodes: leave out --videos")
    end = time.monotonic() + seconds
    for need in NEEDS:
        say(need.line())
    lines = out.with_suffix(".jsonl")
    _keep_others(lines, items, dry)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        environment = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"} | os.environ
        if dry:  # a trial only tests the code: one process saves the start of a dozen
            environment |= {"TRITON_INTERPRET": "1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
            groups = [(seconds, [part for process in PROCESSES for part in process.parts])]
        else:
            groups = [(process.seconds, process.parts) for process in PROCESSES]
        for limit, parts in groups:
            chosen = [part for part in parts if part.item in items]
            _run(chosen, limit, end, shards, videos or Path(cache, "videos"), lines, environment, dry)
            found = report(lines, out)
    for line in found.text.splitlines():
        say(line)
    return found.right


def _keep_others(lines: Path, items: Collection[int], dry: bool) -> None:
    found = read_lines(lines)
    if any(line.content["dry"] != dry for line in found if line.kind == "machine"):
        raise DataError(f"{lines} is of a {'run on a GPU' if dry else 'trial'}: name another file")
    lines.write_text("")
    for line in found:
        if line.item not in items:
            _append(lines, line)


def _run(
    parts: list[Part],
    limit: float,
    end: float,
    shards: Path,
    videos: Path,
    lines: Path,
    environment: dict[str, str],
    dry: bool,
) -> None:
    """Run parts in a process, and the rest in another one after a part that ended it."""
    stop = min(time.monotonic() + limit, end)
    while parts:
        left = stop - time.monotonic()
        if left < _START:
            for part in parts:
                _add(lines, part, LeftOut(part.name, f"{max(left, 0):.0f} s were left"))
            return
        names = [part.name for part in parts]
        until = f"{stop - _MARGIN:.3f}"
        command = [sys.executable, str(_SCRIPT), "gpu-parts", *names, "--shards", str(shards), "--videos", str(videos)]
        problem = run([*command, "--lines", str(lines), "--until", until, *["--dry"] * dry], environment, left)
        over = {line.part for line in read_lines(lines) if line.kind == "seconds"}
        parts = [part for part in parts if part.name not in over]
        if parts:
            _add(lines, parts[0], Failure(parts[0].name, problem or "its process ended early"))
            parts = parts[1:]
        elif problem:  # after its last part
            _add(lines, PARTS[names[-1]], Failure(names[-1], problem))


def run_parts(names: list[str], shards: Path, videos: Path, lines: Path, until: float, dry: bool) -> None:
    """Run parts in order, write a line for each result and each part's end, and end the process."""
    if not dry:
        torch._dynamo.config.recompile_limit = 64  # otherwise, further models of a class would run uncompiled
    gc.freeze()  # DeepSpeed collects garbage several times per engine; this excludes the modules
    bench = Bench(DRY if dry else GPU, shards, videos, until)
    first = PARTS[names[0]]
    _append(lines, Line(first.item, first.name, "machine", machine() | {"dry": dry}))
    for part in (PARTS[name] for name in names):
        begin = time.perf_counter()
        try:
            for result in part.run(bench):
                _add(lines, part, result)
        except Exception as error:
            _add(lines, part, Failure(part.name, f"{error!r} at {_place(error)}"))
        gc.collect()  # the part's models, which have reference cycles
        if not dry:
            torch.cuda.empty_cache()
        _append(lines, Line(part.item, part.name, "seconds", time.perf_counter() - begin))
    os._exit(0)  # libraries need no cleanup, and some hang in it


def _place(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{where.filename}:{where.lineno}"


def _add(lines: Path, part: Part, result: Result) -> None:
    _append(lines, Line.of(part, result))


def _append(lines: Path, line: Line) -> None:
    with lines.open("a") as file:
        file.write("\n" + line.to_json())  # the previous line may be torn, if a process was killed
