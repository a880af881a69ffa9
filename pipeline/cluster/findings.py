"""The findings of checks before a run, in words that name the nodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

_SHOWN = 4  # most places named in a line


class Verdict(IntEnum):
    """The meaning of a finding: fine, worth a look, or do not start."""

    OK = 0
    WARNING = 1
    PROBLEM = 2


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: what was checked.
        verdict: its meaning.
        results: the results by place: some ranks, or a node.
        remedy: what to do, where the verdict is not ok.
    """

    check: str
    verdict: Verdict
    results: dict[str, str]
    remedy: str = ""

    def __str__(self) -> str:
        places = [f"{place}: {result}" for place, result in self.results.items()]
        more = [f"and {len(places) - _SHOWN} more"] if len(places) > _SHOWN else []
        return f"{self.check}: {'; '.join(places[:_SHOWN] + more)}: {self.remedy}"


def conclude(check: str, hosts: Sequence[str], told: Sequence[tuple[Verdict, str]], remedy: str) -> Finding:
    """Combine what every rank reports into a finding.

    Args:
        check: what was checked.
        hosts: the node of each rank.
        told: verdict and result of each rank.
        remedy: what to do unless all is well.

    Returns:
        The worst verdict. Ranks with equal results are one place, "ranks 0-7, 16 (2 nodes)"; the worst come first.
    """
    results: dict[str, str] = {}
    for verdict in reversed(Verdict):
        ranks_of: dict[str, list[int]] = {}
        for rank, (its_verdict, text) in enumerate(told):
            if its_verdict is verdict:
                ranks_of.setdefault(text, []).append(rank)
        results |= {_place(ranks, hosts): text for text, ranks in ranks_of.items()}
    worst = max(verdict for verdict, _ in told)
    return Finding(check, worst, results, "" if worst is Verdict.OK else remedy)


def _place(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    spans: list[tuple[int, int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1] = spans[-1][0], rank
        else:
            spans.append((rank, rank))
    numbers = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    nodes = {hosts[rank] for rank in ranks}
    return f"rank{'s' * (len(ranks) > 1)} {numbers} ({nodes.pop() if len(nodes) == 1 else f'{len(nodes)} nodes'})"
