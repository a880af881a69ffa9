"""Compile the mask kernels ahead of time, for GPUs that are not present."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CAPABILITIES = (80, 90, 100)  # A100, H100 and B200

_COMPILE = """
import json, subprocess, sys, triton
from importlib import import_module
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

module, sizes, warps, capabilities = json.loads(sys.argv[1])
kernel = import_module(module)._few_masks
tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
types = {"keys": "*i64", "masks": "*u8", "count": "i32", "target": "i32", "smallest": "i32"}
types |= dict.fromkeys(sizes, "constexpr")
constants = {(kernel.arg_names.index(name),): value for name, value in sizes.items()}
for capability in capabilities:
    source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constants)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    built = triton.compile(source, GPUTarget("cuda", capability, 32), options).asm
    Path("kernel.cubin").write_bytes(built["cubin"])
    usage = subprocess.run([tool, "-res-usage", "kernel.cubin"], capture_output=True, text=True, check=True).stdout
    print(json.dumps([usage, built["ptx"]]))
"""


def compiled(folder: Path, module: str, sizes: dict[str, int], warps: int) -> list[tuple[dict[str, str], str]]:
    """Compile a kernel for each of `CAPABILITIES`: what it uses, such as {"REG": "64", "STACK": "0"}, and its PTX.

    Args:
        folder: for what is written on the way.
        module: that has the kernel `_few_masks`.
        sizes: its constants; an argument among them is one that Triton makes constant.
        warps: of a program.
    """
    root = str(Path(__file__).resolve().parents[2])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    task: Any = [module, sizes, warps, CAPABILITIES]
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE, json.dumps(task)],
        cwd=folder,
        env=environment | {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    built = [json.loads(line) for line in done.stdout.splitlines()]
    return [(dict(part.split(":") for part in usage.split() if ":" in part[:-1]), ptx) for usage, ptx in built]
