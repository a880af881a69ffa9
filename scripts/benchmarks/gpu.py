"""All that needs a GPU, on one of them and within 8 minutes: is it right, and how fast is it. One JSON file.

Every group of parts is a process with a time limit of its own, and writes what it finds line by line: neither an error
nor a hang, nor a GPU that refuses all further work, costs more than its group.
"""

import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.children import run
from benchmarks.figures import Figure, machine, print_figures, write
from benchmarks.gpu_checks import (
    Check,
    augmented_pixels,
    bad_image,
    compiled_loss,
    decoded_pixels,
    fused_kernel,
    no_waiting,
)
from benchmarks.gpu_figures import (
    checkpointing,
    compile_modes,
    decoding,
    from_shards,
    hog_and_image,
    masks_alone,
    snapshot,
    step_base,
    step_large,
)
from benchmarks.scale import DRY, GPU, Scale

SECONDS = 460  # for all

Part = Callable[[Scale, Path], list[Check] | list[Figure]]

# By importance, with the seconds that each may take
GROUPS: list[tuple[int, list[Part]]] = [
    (110, [fused_kernel, decoded_pixels, bad_image, no_waiting, compiled_loss, augmented_pixels]),
    (50, [hog_and_image, masks_alone]),
    (120, [step_base]),
    (140, [step_large]),
    (80, [from_shards]),
    (50, [decoding]),
    (80, [snapshot]),
    (90, [checkpointing]),
    (120, [compile_modes]),
]
PARTS = {part.__name__: part for _, group in GROUPS for part in group}


def gpu(shards: Path, out: Path, dry: bool) -> bool:
    """Run all parts, writing `out` after each group. Whether every part ran and no check failed."""
    begin = time.monotonic()
    found: list[dict[str, Any]] = []
    # A trial is about the code: one process for all saves the start of eight
    groups = (
        [(SECONDS, list(PARTS))] if dry else [(limit, [part.__name__ for part in group]) for limit, group in GROUPS]
    )
    for limit, names in groups:
        left = SECONDS - (time.monotonic() - begin)
        found += _in_a_process(names, shards, min(limit, left), dry)
        kinds = {kind: [entry[kind] for entry in found if kind in entry] for kind in ("check", "figure", "failure")}
        seconds = {entry["over"]: entry["seconds"] for entry in found if "over" in entry}
        facts = {"machine": machine(), "dry": dry, "seconds": seconds | {"all": time.monotonic() - begin}}
        write(out, facts | {"checks": kinds["check"], "figures": kinds["figure"], "failures": kinds["failure"]})
    for check in kinds["check"]:
        verdict = {True: "right", False: "WRONG", None: "not told without a GPU"}[check["passed"]]
        print(f"{verdict}: {check['name']}: {check['numbers']}")
    print_figures([Figure.from_json(figure) for figure in kinds["figure"]])
    for failure in kinds["failure"]:
        print(f"FAILED: {failure['part']}: {failure['message']}")
    return not kinds["failure"] and not any(check["passed"] is False for check in kinds["check"])


def _in_a_process(names: list[str], shards: Path, seconds: float, dry: bool) -> list[dict[str, Any]]:
    if seconds < 10:
        return [_failure(name, f"left out: the {SECONDS} seconds for all were over") for name in names]
    environment = os.environ | (
        {"TRITON_INTERPRET": "1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"} if dry else {}
    )
    with tempfile.TemporaryDirectory() as scratch:
        lines = Path(scratch) / "lines"
        lines.touch()
        command = [sys.executable, sys.argv[0], "gpu-parts", *names, "--shards", str(shards), "--lines", str(lines)]
        problem = run(command + ["--dry"] * dry, environment, seconds)
        found = [json.loads(line) for line in lines.read_text().splitlines()]
    over = [entry["over"] for entry in found if "over" in entry]
    if problem:
        here, *rest = [name for name in names if name not in over] or [names[-1]]
        found.append(_failure(here, problem))
        found += [_failure(name, f"left out, as {here} ended the process") for name in rest]
    return found


def _failure(part: str, message: str) -> dict[str, Any]:
    return {"failure": {"part": part, "message": message}}


def run_parts(names: list[str], shards: Path, lines: Path, dry: bool) -> None:
    """Run parts one after the other, and write a line for each thing found and for each part that is over."""
    scale = DRY if dry else GPU
    if not dry:
        torch._dynamo.config.recompile_limit = 64  # beyond it, models of a class that has many would go uncompiled
    gc.freeze()  # DeepSpeed collects garbage several times for every engine: let it not go through all modules
    with lines.open("a", buffering=1) as file:
        for name in names:
            begin = time.perf_counter()
            try:
                for result in PARTS[name](scale, shards):
                    file.write(
                        json.dumps({"check" if isinstance(result, Check) else "figure": result.to_json()}) + "\n"
                    )
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                message = f"{error!r} at {where.filename}:{where.lineno}"
                file.write(json.dumps(_failure(name, message)) + "\n")
            file.write(json.dumps({"over": name, "seconds": time.perf_counter() - begin}) + "\n")
            if not dry:  # nothing is compiled in a trial
                torch.compiler.reset()
                torch.cuda.empty_cache()
