"""Sum this rank's numbers between two log steps, and gather those of all ranks under the same names."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.cluster.world import World
from pipeline.report.pace import Clock


@dataclass(frozen=True)
class Gathered:
    """Numbers of all ranks, by name.

    Attributes:
        total: their sum over the ranks.
        by_rank: the numbers of each rank, in rank order.
    """

    total: dict[str, float]
    by_rank: dict[str, list[float]]


class Meter:
    """Sums that stay on the device until they are gathered, and the elapsed time.

    Args:
        device: device of the sums.

    Attributes:
        clock: a clock that starts with the meter.
    """

    def __init__(self, device: torch.device) -> None:
        self.clock = Clock(device)
        self._device = device
        self._sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        """Add scalars on the device to the sums of their names, without waiting for it."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def gather(self, world: World, numbers: Mapping[str, float]) -> Gathered:
        """Exchange the sums and further `numbers` of this rank with all others. Waits for the device.

        All ranks call this together, with the same names.
        """
        names = [*sorted(self._sums), *sorted(numbers)]
        own = torch.tensor([numbers[name] for name in sorted(numbers)], dtype=torch.float64, device=self._device)
        sums = [self._sums[name].double()[None] for name in sorted(self._sums)]
        rows = world.rows(torch.cat([*sums, own]))
        return Gathered(
            dict(zip(names, rows.sum(0).tolist(), strict=True)),
            dict(zip(names, rows.T.tolist(), strict=True)),
        )
