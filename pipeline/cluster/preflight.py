"""Check before a run that all ranks have the same program, recipe and data, and share one run folder.

Nothing else in a run would notice: ranks with different recipes would train on silently, or hang in a collective of
different sizes. `maskfeat doctor` makes the same checks and measures the machines as well.
"""

import hashlib
import json
import platform
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import deepspeed
import timm
import torch
from nvidia import dali

from pipeline.cluster.findings import Finding, Verdict, conclude
from pipeline.cluster.world import World
from pipeline.config import TrainingRecipe
from pipeline.data.decode.libraries import driver_version
from pipeline.settings import ConfigError

_MAY_DIFFER = {"timm", "DALI", "python", "CUDA", "driver"}  # versions that may differ, at the operator's risk
_PACKAGES = ("pipeline", "model", "shards")
_PATIENCE = 3.0  # seconds until a file of another node must be visible


@dataclass(frozen=True)
class Claims:
    """The facts that one rank reports.

    Attributes:
        host: name of its node.
        versions: versions of the programs, by name.
        recipe: all settings, "section.key" to value.
        inputs: identities of the inputs, by the setting that names them.
        run_dir: the problem with the run's folder on this rank; empty: none.
    """

    host: str
    versions: dict[str, str]
    recipe: dict[str, Any]
    inputs: dict[str, Any]
    run_dir: str


def check(recipe: TrainingRecipe, inputs: Mapping[str, Any], world: World) -> list[str]:
    """Compare what the ranks are about to run; all ranks call this together. It creates `run.dir`.

    Args:
        inputs: as in `Claims`.

    Returns:
        Lines for the operator.

    Raises:
        ConfigError: on all ranks alike, if the run must not start.
    """
    findings = agreement(exchange(recipe, inputs, world))
    if problems := [str(finding) for finding in findings if finding.verdict is Verdict.PROBLEM]:
        raise ConfigError("; ".join(problems))
    return [str(finding) for finding in findings if finding.verdict is Verdict.WARNING]


def exchange(recipe: TrainingRecipe, inputs: Mapping[str, Any], world: World) -> list[Claims]:
    """Return the claims of all ranks, on every rank: one broadcast, one gather."""
    # A new name each time: network file systems cache for seconds that a file does not exist
    sign, problem = recipe.run.dir / f".preflight-{uuid4().hex}", ""
    if world.rank == 0:
        try:
            recipe.run.dir.mkdir(parents=True, exist_ok=True)
            sign.touch()
        except OSError as error:
            problem = _not_writable(error)
    name, lost = world.from_first((sign.name, bool(problem)))
    if world.rank and not lost:
        problem = _looks_for(recipe.run.dir / name, recipe.run.dir / f"{name}-{world.rank}")
    settings = recipe.plain()
    flat = {f"{section}.{key}": value for section, keys in settings.items() for key, value in keys.items()}
    claims = world.gather(Claims(socket.gethostname(), versions(), flat, dict(inputs), problem))
    if world.rank == 0:
        with suppress(OSError):
            sign.unlink(missing_ok=True)
    return claims


def agreement(claims: Sequence[Claims]) -> list[Finding]:
    """Compare the claims of the ranks, in rank order."""
    first, hosts = claims[0], [claim.host for claim in claims]
    return [
        _compared(
            "versions",
            [claim.versions for claim in claims],
            hosts,
            _listed(first.versions),
            "install the same checkout and environment on every node",
        ),
        _compared(
            "recipe",
            [claim.recipe for claim in claims],
            hosts,
            f"sha256 {hashlib.sha256(_text(first.recipe).encode()).hexdigest()[:12]}",
            "start every rank with the same recipe and overrides",
        ),
        _compared(
            "inputs",
            [claim.inputs for claim in claims],
            hosts,
            _listed(first.inputs),
            "let every node read the same files: shared ones, or whole copies of one build",
        ),
        _shared(str(first.recipe["run.dir"]), [claim.run_dir for claim in claims], hosts),
    ]


def versions() -> dict[str, str]:
    """Return the versions of everything that a rank's numbers or its communication depend on."""
    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else ()  # type: ignore[no-untyped-call]
    return {
        "this project": _source_hash(),
        "torch": str(torch.__version__),
        "deepspeed": deepspeed.__version__,
        "timm": timm.__version__,
        "DALI": dali.__version__,
        "python": platform.python_version(),
        "CUDA": torch.version.cuda or "none",
        "NCCL": ".".join(map(str, nccl)) or "unused",
        "driver": driver_version(),
    }


def _source_hash() -> str:
    """Hash the source code itself, whatever its version number."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for file in sorted(file for package in _PACKAGES for file in (root / package).rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _looks_for(sign: Path, own: Path) -> str:
    """Look for rank 0's file, and write one. Return why either fails, or an empty string."""
    deadline = time.monotonic() + _PATIENCE
    try:
        while not sign.exists():
            if time.monotonic() > deadline:
                return "does not see the file that rank 0 wrote there"
            time.sleep(0.1)
        own.touch()
        own.unlink()
    except OSError as error:
        return _not_writable(error)
    return ""


def _not_writable(error: OSError) -> str:
    return f"cannot be written: {error.strerror}"


def _compared(
    check: str, values: Sequence[Mapping[str, Any]], hosts: Sequence[str], equal: str, remedy: str
) -> Finding:
    """Return whether all ranks have the same values, with `equal` as the result if so."""
    names = dict.fromkeys(name for value in values for name in value)
    differing = [name for name in names if len({_text(value.get(name)) for value in values}) > 1]
    if not differing:
        return conclude(check, hosts, [(Verdict.OK, equal)] * len(hosts), remedy)
    verdict = Verdict.WARNING if _MAY_DIFFER.issuperset(differing) else Verdict.PROBLEM
    told = [(verdict, _listed({name: value.get(name) for name in differing})) for value in values]
    return conclude(check, hosts, told, remedy)


def _shared(run_dir: str, wrong: Sequence[str], hosts: Sequence[str]) -> Finding:
    told = [(Verdict.PROBLEM, why) if why else (Verdict.OK, f"{run_dir} is there and can be written") for why in wrong]
    remedy = f"put run.dir={run_dir} on storage that every node mounts there and may write to"
    return conclude("run.dir", hosts, told, remedy)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
