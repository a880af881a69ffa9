"""Write all results as one JSON file, and as a table for docs/explanation/benchmarks.md."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, write
from benchmarks.gpu.results import Line, read_lines


@dataclass(frozen=True)
class Report:
    """The table in Markdown, and whether every part ran and no check failed."""

    text: str
    right: bool


def report(lines: Path, out: Path) -> Report:
    """Write all results so far to `out`, and the table beside it."""
    found = _last_of_each(read_lines(lines))

    def of(kind: str) -> list[Any]:
        return [line.content for line in found if line.kind == kind]

    machines = of("machine")
    devices = {facts["device"] for facts in machines}
    right = not of("failure") and all(check["passed"] for check in of("check")) and len(devices) <= 1
    content = {
        "machine": machines[-1] if machines else None,
        "dry": any(facts["dry"] for facts in machines),
        "seconds": {line.part: line.content for line in found if line.kind == "seconds"},
        "checks": of("check"),
        "figures": of("figure"),
        "failures": of("failure"),
        "left out": of("left out"),
    }
    write(out, content)
    text = markdown(found)
    if len(devices) > 1:
        text += f"\nThese are of different machines: {', '.join(sorted(devices))}.\n"
    out.with_suffix(".md").write_text(text)
    return Report(text, right)


def markdown(found: list[Line]) -> str:
    """Return the table, in the order of the items, below the machine that it was measured on."""
    machines = [line.content for line in found if line.kind == "machine"]
    rows = [row for line in sorted(found, key=lambda line: line.item) for row in _rows(line)]
    table = ["| item | what | result | beside it, and how many times that the result is |", "|---|---|---|---|"]
    cells = (" | ".join(cell.replace("|", "/").replace("\n", " ") for cell in row) for row in rows)
    return "\n".join([*map(_machine, machines[-1:]), "", *table, *(f"| {row} |" for row in cells)]) + "\n"


def _machine(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    driver = f", driver {facts['driver']}" if facts["driver"] else ""
    return f"{facts['device']}{driver}, {facts['cores']} cores; {versions}."


def _rows(line: Line) -> list[tuple[str, str, str, str]]:
    item, content = str(line.item), line.content
    if line.kind == "figure":
        figure = Figure.from_json(content)
        others = [*figure.peers.items(), *figure.limits.items()]
        beside = "; ".join(f"{name}: {value:,.4g} ({figure.achieved / value:.3g})" for name, value in others)
        return [(item, figure.name, f"{figure.achieved:,.4g} {figure.unit}".strip(), beside)]
    if line.kind == "check":
        return [(item, content["name"], "right" if content["passed"] else "WRONG", _numbers(content["numbers"]))]
    if line.kind == "failure":
        return [(item, content["name"], "FAILED", _shortened(content["why"]))]
    if line.kind == "left out":
        return [(item, content["name"], "not run", content["why"])]
    return []


def _shortened(text: str) -> str:
    """Keep the beginning, with the error, and the end, with the last output."""
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-150:]}"


def _numbers(numbers: dict[str, Any]) -> str:
    shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in numbers.values())
    return ", ".join(f"{name}: {value}"[:160] for name, value in zip(numbers, shown, strict=True))


def _last_of_each(lines: list[Line]) -> list[Line]:
    """Keep only the last of each figure, since it is repeated more exactly in every round."""
    last: dict[Any, Line] = {}
    for nth, line in enumerate(lines):
        last[(line.part, line.content["name"]) if line.kind == "figure" else nth] = line
    return list(last.values())
