"""Histograms of every weight, and of its mean gradient."""

from collections.abc import Mapping

from pipeline.cluster.world import World
from pipeline.report.histogram import Histogram, histogram_of
from pipeline.train.engine import Engine
from pipeline.train.state import full_states


def histograms(engine: Engine, world: World) -> Mapping[str, Histogram]:
    """Return histograms on rank 0, "weights/NAME" and "mean_gradients/NAME"; on other ranks, nothing.

    The mean gradient is the first state of the optimizer: its moving average of the gradient after clipping or, of
    SGDW, the momentum, which is the average divided by 1 - `betas[0]`. The gradient itself is not kept beyond a step.
    At stages 1 to 3 every tensor is assembled by a collective, so all ranks call this together.
    """
    found: dict[str, Histogram | None] = {}
    for name, state in full_states(engine):
        if world.rank == 0:
            found[f"weights/{name}"] = histogram_of(state["weight"])
            found[f"mean_gradients/{name}"] = histogram_of(state[engine.states[0]])
    return {name: histogram for name, histogram in found.items() if histogram}
